"""What the probes answer, and how soon, while all sorts of things go wrong with one node under load.

`python -m support.probing`, in tests/, is the long form of what tests/faults/test_probes.py runs. Progress
goes to stderr, the account as JSON to stdout; the exit status is 1 if an answer isn't as it must be. How soon
answers came is told and not judged: it depends on what else the machine has to do.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import nats
import psutil

from support.launched import Launched, publish
from support.nats import NatsServer
from support.tree import wait_until

PATHS = ("/livez", "/readyz", "/healthz")
# Of a kubelet's probe there is one in seconds; this is to see many.
PAUSE_SECONDS = 0.005
EVENTS_PER_PROBE = 200
# Within which, after the probes that were asked for, all that fails has to be named.
NAMED_SECONDS = 60.0
# Longer than all probes of a drain take; then the node is killed.
SHUTDOWN_TIMEOUT_SECONDS = 300
RECORDER, BYSTANDER, INNER = "cell recorder/0", "cell bystander/0", "supervisor inner"


class Answer(msgspec.Struct, frozen=True):
    """What a probe said, and how soon."""

    path: str
    status: int
    body: dict[str, Any]
    seconds: float

    def failing(self) -> tuple[set[str], set[str]]:
        """Return what isn't alive and what isn't ready by this answer."""
        named = set(self.body.get("failing", ()))
        return (
            named if self.path == "/livez" else set(self.body.get("not_alive", ())),
            named if self.path == "/readyz" else set(self.body.get("not_ready", ())),
        )


class Phase(msgspec.Struct, kw_only=True):
    """What the probes answered while one thing was so.

    Args:
        probes: how many.
        p50_ms, p99_ms, max_ms: from opening the connection to the whole answer.
        launcher_cpu_ms: of the launcher, for each probe, whatever else it did.
        handled: deliveries meanwhile.
        reasons: what was named as not ready, each with the last reason given.
        wrong: answers that shouldn't be.
    """

    probes: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    launcher_cpu_ms: float
    handled: int
    reasons: dict[str, str]
    wrong: list[str]


def ask(url: str, path: str) -> Answer:
    """Ask as a kubelet does: with a connection of its own for each probe."""
    began = time.perf_counter()
    host = urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=NAMED_SECONDS)
    connection.request("GET", path)
    response = connection.getresponse()
    body = json.loads(response.read())
    seconds = time.perf_counter() - began
    connection.close()
    return Answer(path, response.status, body, seconds)


def look(
    run: Launched,
    count: int,
    *,
    may_fail: frozenset[str] = frozenset(),
    must_fail: frozenset[str] = frozenset(),
    may_die: frozenset[str] = frozenset(),
) -> Phase:
    """Ask `count` times or more, until all has been named that must be.

    Args:
        run: whom.
        count: how many probes at least.
        may_fail: what may be named as not ready, beside `must_fail`.
        must_fail: what has to be named as not ready in at least one answer.
        may_die: what may be named as not alive.
    """
    process = psutil.Process(run.process.pid)
    began, handled = process.cpu_times(), handled_in(run)
    answers: list[Answer] = []
    reasons: dict[str, str] = {}
    deadline = math.inf
    while len(answers) < count or not must_fail <= reasons.keys():
        if len(answers) == count:
            deadline = time.monotonic() + NAMED_SECONDS
        assert time.monotonic() < deadline, f"{must_fail - reasons.keys()} not named in {len(answers)} probes"
        answer = ask(run.url, PATHS[len(answers) % len(PATHS)])
        answers.append(answer)
        if answer.path == "/readyz":
            reasons |= answer.body["failing"]
        time.sleep(PAUSE_SECONDS)
    ended = process.cpu_times()
    seconds = sorted(answer.seconds for answer in answers)
    return Phase(
        probes=len(answers),
        p50_ms=_ms(seconds[len(seconds) // 2]),
        p99_ms=_ms(seconds[len(seconds) * 99 // 100]),
        max_ms=_ms(seconds[-1]),
        launcher_cpu_ms=_ms((ended.user + ended.system - began.user - began.system) / len(answers)),
        handled=max(0, handled_in(run) - handled),
        reasons=reasons,
        wrong=[wrong for answer in answers for wrong in _faults(answer, may_fail | must_fail, may_die)][:5],
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _faults(answer: Answer, may_fail: frozenset[str], may_die: frozenset[str]) -> list[str]:
    """Return what is wrong with an answer by itself, and what it names that it mustn't."""
    dead, missing = answer.failing()
    if (answer.status == 503) != bool(dead or missing) or answer.status not in (200, 503):
        return [f"{answer.path}: {answer.status} with {answer.body}"]
    return [f"{answer.path}: {name} is named" for name in (dead - may_die) | (missing - may_fail)]


def handled_in(run: Launched) -> int:
    """Return how many deliveries the running generations of all cells have handled."""

    def count(node: dict[str, Any]) -> int:
        own = node["status"]["counters"]["handled"] if node["kind"] == "cell" and node["status"] else 0
        return int(own) + sum(count(child) for child in node.get("children", ()))

    return count(run.tree())


def publish_many(url: str, count: int) -> None:
    """Publish numbers as fast as they go, and return when they are stored."""

    async def send() -> None:
        client = await nats.connect(url)
        for value in range(count):
            await client.publish("tests.numbers", b'{"value": %d}' % value)
            if value % 1024 == 0:
                await client.flush()
        await client.flush()
        await client.close()

    asyncio.run(send())


def probe(server: NatsServer, directory: Path, *, count: int, progress: bool = False) -> dict[str, Phase]:
    """Return each phase of one run's life, from its readiness into its drain.

    Args:
        server: the broker, which is stopped and started.
        directory: the run's own.
        count: of probes in each phase.
        progress: whether to say which phase begins.
    """
    phases: dict[str, Phase] = {}
    environment = {"UNDERSTUDY_SHUTDOWN_TIMEOUT_SECONDS": str(SHUTDOWN_TIMEOUT_SECONDS)}

    def phase(name: str, begin: Callable[[], object], **expected: frozenset[str]) -> None:
        if progress:
            print(f"probing: {name}", file=sys.stderr)
        begin()
        phases[name] = look(run, count, **expected)

    def settle() -> None:
        wait_until(lambda: ask(run.url, "/healthz").status == 200, 60, "all well again")
        run.note_processes()

    with Launched(directory, "support.apps:stored", servers=server.url, environment=environment) as run:
        run.wait_until_ready()
        phase("at rest", lambda: None)
        phase("under full load", lambda: publish_many(server.url, EVENTS_PER_PROBE * count))
        phase(
            "a cell is stopped",
            lambda: os.kill(run.child("bystander/0")["pid"], signal.SIGSTOP),
            must_fail=frozenset({BYSTANDER}),
        )
        settle()
        phase(
            "a supervisor is stopped",
            lambda: os.kill(run.child("inner")["pid"], signal.SIGSTOP),
            must_fail=frozenset({INNER}),
            may_fail=frozenset({BYSTANDER}),
            may_die=frozenset({INNER}),
        )
        settle()
        phase(
            "a cell holds the GIL",
            lambda: publish(server.url, {"value": 0, "deed": "hold the GIL"}),
            must_fail=frozenset({RECORDER}),
        )
        # It does so as often as it is tried: the recorder may still be starting from now on.
        phase(
            "the broker is away",
            server.kill,
            must_fail=frozenset({"broker"}),
            may_fail=frozenset({RECORDER, BYSTANDER}),
        )
        server.start()
        settle()
        # It can't drain, so that the drain goes on.
        os.kill(run.child("bystander/0")["pid"], signal.SIGSTOP)
        run.process.terminate()
        wait_until(lambda: "launcher" in ask(run.url, "/readyz").body["failing"], what="draining")
        phase("during a drain", lambda: None, must_fail=frozenset({"launcher"}))
    return phases


def main(arguments: list[str] | None = None) -> int:
    """Probe as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m support.probing", description=__doc__.partition("\n")[0])
    parser.add_argument("--probes", type=int, default=500, help="in each phase, at least")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        phases = probe(server, Path(directory, "run"), count=options.probes, progress=True)
    print(json.dumps(msgspec.to_builtins(phases), indent=2))
    return 1 if any(phase.wrong for phase in phases.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
