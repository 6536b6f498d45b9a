"""A run under a service manager and in a container: process 1, everyone signalled at once, started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.lines import read_lines
from support.nats import NatsServer
from support.processes import GONE_SECONDS
from support.running import until as wait_until
from support.terminal import Terminal, until

# What an actor holds comes back by itself only long after the test, so that only a takeover brings it sooner.
APP = """
import asyncio, pathlib, subprocess
from understudy import Actor, App, Event, Stream, handles

class Departed(Event, subject="flights.departed"):
    carrier: str

class Monitor(Actor, concurrency=4, ack_wait_seconds=120):
    @handles
    async def departed(self, event: Departed) -> None:
        note("begun", event)
        if event.carrier == "orphan":
            subprocess.run(["sh", "-c", "true & echo $! > orphan"], check=True)
        while event.carrier == "slow" and not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
        note("handled", event)

def note(name, event):
    with open(name, "a") as file:
        file.write(event.carrier + "\\n")

app = App("deployed", streams=[Stream("FLIGHTS", subjects=["flights.>"])], children=[Monitor])
"""

# What deploy/kubernetes.yaml asks for: process 1 of its namespace, no capability, none to be had, everything
# read-only but the working directory.
CONTAINER = """
set -e
mount --bind "$PWD" "$PWD"
cd "$PWD"
mount -o remount,bind,ro /
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all "$@"
"""


@pytest.fixture
def terminal(tmp_path: Path, nats_server: NatsServer) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        (tmp_path / "flights.py").write_text(APP)
        terminal.environment |= {"UNDERSTUDY_NATS__SERVERS": nats_server.url, "TMPDIR": str(tmp_path)}
        yield terminal


def start(terminal: Terminal, *, wrapped: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a run that is up."""
    process = terminal.start("run", "flights:app", "--http-port", "0", wrapped=wrapped)
    until(process, "ready")
    return process


def publish(terminal: Terminal, *carriers: str) -> None:
    (terminal.directory / "events").write_text("".join(f'{{"carrier": "{one}"}}\n' for one in carriers))
    published = terminal.type("publish", "flights.departed", "--file", "events")
    assert published.returncode == 0, published.stderr


def noted(terminal: Terminal, name: str) -> list[str]:
    return read_lines(terminal.directory / name)


@pytest.fixture
def container(tmp_path: Path) -> tuple[str, ...]:
    """The command line that runs another in namespaces of its own; skips where those can't be had."""
    command = (
        *(
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ),
        *("sh", "-c", CONTAINER, "sh"),
    )
    missing = [tool for tool in ("unshare", "setpriv", "mount") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt install util-linux mount")
    allowed = subprocess.run([*command, "true"], capture_output=True, text=True, check=False, cwd=tmp_path)
    if allowed.returncode:
        pytest.skip(f"namespaces can't be made here: {allowed.stderr.strip()}")
    return command


def first_process(container: subprocess.Popen[str]) -> psutil.Process:
    """Return process 1 of a container."""
    (process,) = psutil.Process(container.pid).children()
    return process


def test_process_1_of_a_container_reaps_orphans_and_drains_at_sigterm(
    terminal: Terminal, container: tuple[str, ...]
) -> None:
    """Without any capability, and without a file that it may write but in its run directory and TMPDIR."""
    run = start(terminal, wrapped=container)
    launcher = first_process(run)
    status = Path(f"/proc/{launcher.pid}/status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
    assert (fields["NSpid"][-1], fields["CapEff"], fields["NoNewPrivs"]) == ("1", ["0" * 16], ["1"])
    publish(terminal, "orphan")
    wait_until(lambda: noted(terminal, "handled") == ["orphan"])
    orphan = noted(terminal, "orphan")[0]
    # Its number is one of the container's own.
    container_processes = Path("/proc", str(launcher.pid), "root", "proc")
    assert (container_processes / "1").exists()
    # As a zombie it would still be there.
    wait_until(lambda: not (container_processes / orphan).exists())
    launcher.terminate()
    assert run.wait(30) == 0
    assert psutil.wait_procs(terminal.processes(), timeout=GONE_SECONDS)[1] == []


def test_a_container_that_is_started_again_takes_over_what_it_held(
    terminal: Terminal, container: tuple[str, ...]
) -> None:
    """As after process 1 was killed for memory: the run directory outlives the container, in its pod."""
    run = start(terminal, wrapped=container)
    publish(terminal, *["slow"] * 6)
    wait_until(lambda: len(noted(terminal, "begun")) == 4)
    first_process(run).kill()
    run.wait(30)
    assert psutil.wait_procs(terminal.processes(), timeout=GONE_SECONDS)[1] == []
    (terminal.directory / "go").touch()
    again = start(terminal, wrapped=container)
    wait_until(lambda: noted(terminal, "handled") == ["slow"] * 6)
    first_process(again).terminate()
    assert again.wait(30) == 0


def everyone(run: subprocess.Popen[str]) -> list[int]:
    """Return the launcher and all below it, as a service manager finds them in a control group."""
    return [run.pid, *(process.pid for process in psutil.Process(run.pid).children(recursive=True))]


def test_sigterm_to_every_process_at_once_is_one_drain(terminal: Terminal) -> None:
    """As systemd's KillMode=control-group does, and a terminal's hangup: what is begun is finished."""
    run = start(terminal)
    publish(terminal, *["slow"] * 6)
    wait_until(lambda: len(noted(terminal, "begun")) == 4)
    for pid in everyone(run):
        os.kill(pid, signal.SIGTERM)
    until(run, "draining")
    (terminal.directory / "go").touch()
    assert run.wait(30) == 0
    # What had not begun is given back, unless there was still time for it.
    again = start(terminal)
    wait_until(lambda: noted(terminal, "handled") == ["slow"] * 6)
    again.terminate()
    assert again.wait(30) == 0
    assert noted(terminal, "begun") == ["slow"] * 6


def test_what_the_service_managers_sigkill_cut_off_is_taken_over_by_the_next_start(
    terminal: Terminal,
) -> None:
    """SIGTERM, then SIGKILL to all at the end of the grace period, in the middle of the drain."""
    run = start(terminal)
    publish(terminal, *["slow"] * 6)
    wait_until(lambda: len(noted(terminal, "begun")) == 4)
    run.terminate()
    until(run, "draining")
    for pid in everyone(run):
        # The launcher takes along who isn't killed yet.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert run.wait(30) == -signal.SIGKILL
    (terminal.directory / "go").touch()
    again = start(terminal)
    wait_until(lambda: noted(terminal, "handled") == ["slow"] * 6)
    again.terminate()
    assert again.wait(30) == 0
