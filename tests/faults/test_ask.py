"""Askers and answerers that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.nats import NatsServer
from support.running import running, until


def asking(server: NatsServer) -> subprocess.Popen[bytes]:
    """Ask from a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "understudy.runtime", "ask", "asked.who", "--json", "{}"),
            *("--timeout", "600", "--servers", server.url),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_killed_answerers_and_askers_cost_nobody_else_an_answer(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The replacement of a killed cell takes the request over, and answers; a dead asker's goes nowhere."""
    with running(nats_server.url, tmp_path, "support.asked_app:app") as run:
        first = asking(nats_server)
        until(lambda: len(run.handled()) == 1)
        second = asking(nats_server)
        try:
            # It is behind the first, which never ends.
            until(lambda: run.cell("teller/0")["status"]["held"] == 2)
        finally:
            second.kill()
            second.communicate()
        run.kill_cell("teller/0")
        answer, errors = first.communicate(timeout=60)
        assert (first.returncode, errors) == (0, b"")
        until(lambda: len(run.handled()) == 3)
        assert asking(nats_server).communicate(timeout=60)[0] == answer
        killed, *others = (int(line[0]) for line in run.handled())
        assert others == [json.loads(answer)["pid"]] * 3
        assert killed not in others
        assert not [entry for entry in run.entries() if entry["level"] == "error"]
