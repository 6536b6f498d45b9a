"""A rolling deploy under a steady load: four nodes, one after another, with a changed app in every round.

`python -m support.rolling`, in tests/, is the long form of what tests/faults/test_rolling_deploy.py runs.
Progress goes to stderr, the account as JSON to stdout; the exit status is 1 if it doesn't add up.

Each node is a run of its own, with a run directory of its own, as on a machine of its own. It gets SIGTERM,
is waited for and started again with the next version of the app, which has a handler more, other attempts and
a higher revision; what only that version handles is published once the last process of the old one is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import sys
import tempfile
import time
from collections import Counter
from operator import attrgetter
from pathlib import Path

import msgspec

from support.load import Load
from support.nats import NatsServer
from support.rolled import (
    ACTORS,
    EVENTS,
    LAST_VERSION,
    OWNER,
    Entered,
    Record,
    count_records,
    read_records,
)
from support.running import Running, until
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.topology import backlog
from understudy.runtime.telemetry.logs import configure_logging

KEYS = 256
LATE_SECONDS = 1.0
# How long what was published last may take to be handled: a redelivery that nobody expects included.
SETTLE_SECONDS = 60.0


class Handled(msgspec.Struct, kw_only=True):
    """What became of the events at one actor.

    Args:
        runs: of its handler.
        lost: events that it never handled.
        repeated: runs beyond the first of their event.
        out_of_order: events handled after a later one of their key; None where no order is promised.
        late: events whose first run began later after they were published than is allowed.
        delay_p50_ms, delay_p99_ms, delay_max_ms: from publishing to the first run's begin.
        by_version: how many runs each version of the app had.
        unsettled: events that its consumer still waits for.
        examples: of what is wrong, the first few.
    """

    runs: int
    lost: int
    repeated: int
    out_of_order: int | None
    late: int
    delay_p50_ms: float
    delay_p99_ms: float
    delay_max_ms: float
    by_version: dict[int, int]
    unsettled: int
    examples: list[str]


class Account(msgspec.Struct, kw_only=True):
    """What a rolling deploy has shown.

    Args:
        published: events.
        seconds: from the first to the last of them.
        a_second, wanted_a_second: of them, on average.
        nodes: that ran side by side.
        rounds: in which each was replaced.
        exits: how often a node's run ended with which status.
        slowest_drain_seconds: from SIGTERM to the end of a node.
        slowest_start_seconds: from a node's start until it said that it is ready.
        actors: by name.
    """

    published: int
    seconds: float
    a_second: int
    wanted_a_second: int
    nodes: int
    rounds: int
    exits: dict[int, int]
    slowest_drain_seconds: float
    slowest_start_seconds: float
    actors: dict[str, Handled]

    def differences(self, *, timed: bool = True) -> list[str]:
        """Return what is not as it must be.

        Args:
            timed: whether as much must have been published as was wanted, which a busy machine can't.
        """
        found = [f"{count} nodes ended with {status}" for status, count in self.exits.items() if status]
        if timed and self.a_second < self.wanted_a_second * 0.95:
            found.append(f"{self.a_second} events a second, not {self.wanted_a_second}")
        for name, handled in self.actors.items():
            found += [
                f"{name}: {count} {what}"
                for what, count in (
                    ("lost", handled.lost),
                    ("handled twice", handled.repeated),
                    ("out of order", handled.out_of_order or 0),
                    ("late", handled.late),
                    ("not settled", handled.unsettled),
                )
                if count
            ]
            if len(handled.by_version) != self.rounds + 1:
                found.append(f"{name}: handled by versions {sorted(handled.by_version)} only")
        return found


class _Deploy:
    """The nodes, and how long each step took."""

    def __init__(self, url: str, directory: Path, nodes: int, progress: bool) -> None:
        self.records = directory / "records"
        self.records.mkdir()
        self._url = url
        self._directory = directory
        self._names = [f"node-{index}" for index in range(nodes)]
        self._runs: dict[str, Running] = {}
        self._progress = progress
        self._newest = 0
        self._began = time.monotonic()
        self.exits = Counter[int]()
        self.drains: list[float] = []
        self.starts: list[float] = []

    def start_all(self) -> None:
        for name in self._names:
            self._start(name, 0)

    def make_event(self, number: int) -> Entered:
        """Return the event of a number; every second of a key is one that only the newest version handles."""
        event_type = EVENTS[self._newest if number // KEYS % 2 else 0]
        return event_type(number=number, key=number % KEYS, published=time.monotonic_ns())

    def roll(self, version: int) -> None:
        """Replace the nodes one after another."""
        for name in self._names:
            self._stop(name)
            if name == self._names[-1]:
                # The last of the old processes is gone.
                self._newest = version
            self._start(name, version)

    def stop_all(self) -> None:
        for name in self._names:
            self._stop(name)

    def kill(self) -> None:
        """End what still runs, after a failure."""
        for run in self._runs.values():
            if run.process is not None and run.process.poll() is None:
                run.process.kill()
                run.process.wait()

    def _start(self, name: str, version: int) -> None:
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        run = Running(
            self._url,
            directory,
            "support.rolled:app",
            ROLLED_VERSION=str(version),
            ROLLED_DIRECTORY=str(self.records),
        )
        self._runs[name] = run
        began = time.monotonic()
        run.start()
        self.starts.append(time.monotonic() - began)
        self._say(f"{name}: version {version} ready after {self.starts[-1]:.1f} s")

    def _stop(self, name: str) -> None:
        began = time.monotonic()
        status = self._runs[name].terminate()
        self.exits[status] += 1
        self.drains.append(time.monotonic() - began)
        self._say(f"{name}: ended with {status} after {self.drains[-1]:.1f} s")

    def _say(self, text: str) -> None:
        if self._progress:
            print(f"{time.monotonic() - self._began:6.1f} s  {text}", file=sys.stderr, flush=True)


async def _unsettled(url: str) -> dict[str, int]:
    client = await connection.connect(ConnectionSpec(servers=(url,)), name="rolling")
    try:
        found = {actor: await backlog(client, "ROLLED", f"rolled-{actor}") for actor in ACTORS}
    finally:
        await client.close()
    return {actor: waiting.pending + waiting.ack_pending for actor, waiting in found.items()}


def account_of(
    actor: str, directory: Path, *, published: int, unsettled: int, late_seconds: float
) -> Handled:
    """Return what the runs of one actor amount to.

    Args:
        actor: whose.
        directory: where its processes have recorded.
        published: how many numbers there are, from 0.
        unsettled: what its consumer still waits for.
        late_seconds: after publishing, what is first handled later than this is late.
    """
    runs = list(heapq.merge(*read_records(directory, actor), key=attrgetter("at")))
    firsts: dict[int, Record] = {}
    newest = [-1] * KEYS
    out_of_order = 0
    examples: list[str] = []
    began = runs[0].at if runs else 0
    for run in runs:
        when = f"at {(run.at - began) / 1e9:.3f} s, version {run.version}"
        if run.number in firsts:
            first = firsts[run.number]
            examples.append(f"{run.number} again {when}; first at {(first.at - began) / 1e9:.3f} s")
            continue
        firsts[run.number] = run
        key = run.number % KEYS
        if run.number < newest[key]:
            out_of_order += 1
            if actor == OWNER:
                examples.append(f"{run.number} after {newest[key]} {when}")
        newest[key] = max(newest[key], run.number)
        if run.at - run.published > late_seconds * 1e9:
            examples.append(f"{run.number} late by {(run.at - run.published) / 1e9:.3f} s {when}")
    lost = [number for number in range(published) if number not in firsts]
    examples += [f"{number} lost" for number in lost[:5]]
    delays = sorted((run.at - run.published) / 1e6 for run in firsts.values()) or [0.0]
    return Handled(
        runs=len(runs),
        lost=len(lost),
        repeated=len(runs) - len(firsts),
        out_of_order=out_of_order if actor == OWNER else None,
        late=sum(delay > late_seconds * 1e3 for delay in delays),
        delay_p50_ms=round(delays[len(delays) // 2], 2),
        delay_p99_ms=round(delays[len(delays) * 99 // 100], 2),
        delay_max_ms=round(delays[-1], 2),
        by_version=dict(sorted(Counter(run.version for run in runs).items())),
        unsettled=unsettled,
        examples=examples[:10],
    )


def roll(
    server: NatsServer,
    directory: Path,
    *,
    nodes: int = 4,
    rounds: int = LAST_VERSION,
    rate: int = 2000,
    late_seconds: float = LATE_SECONDS,
    progress: bool = False,
) -> Account:
    """Roll the nodes so many times under load, and return what became of the events.

    Args:
        server: a broker that runs.
        directory: for the runs' files.
        nodes: how many runs of the app there are at once.
        rounds: how often all of them are replaced; at most as many as the app has versions to go to.
        rate: events published a second.
        late_seconds: after publishing, what is first handled later than this is late.
        progress: whether stderr is told of each step.
    """
    if not 0 < rounds <= LAST_VERSION:
        raise ValueError(f"rounds is {rounds}; there are {LAST_VERSION} versions to go to")
    deploy = _Deploy(server.url, directory, nodes, progress)
    try:
        deploy.start_all()
        began = time.monotonic()
        with Load(server.url, deploy.make_event, per_second=rate, keys=KEYS) as load:
            for version in range(1, rounds + 1):
                deploy.roll(version)
            # So that the last version, too, handles what only it does with all its nodes up.
            stop_at = load.published + rate
            until(lambda: load.published >= stop_at)
            published = load.finish()
        seconds = time.monotonic() - began
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and any(
            count_records(deploy.records, actor) < published for actor in ACTORS
        ):
            time.sleep(0.05)
        deploy.stop_all()
    finally:
        deploy.kill()
    unsettled = asyncio.run(_unsettled(server.url))
    return Account(
        published=published,
        seconds=round(seconds, 1),
        a_second=round(published / seconds),
        wanted_a_second=rate,
        nodes=nodes,
        rounds=rounds,
        exits=dict(deploy.exits),
        slowest_drain_seconds=round(max(deploy.drains), 2),
        slowest_start_seconds=round(max(deploy.starts), 2),
        actors={
            actor: account_of(
                actor,
                deploy.records,
                published=published,
                unsettled=unsettled[actor],
                late_seconds=late_seconds,
            )
            for actor in ACTORS
        },
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a rolling deploy as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m support.rolling", description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=LAST_VERSION, choices=range(1, LAST_VERSION + 1))
    parser.add_argument("--rate", type=int, default=2000, help="events published a second")
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = roll(
            server,
            Path(directory),
            nodes=options.nodes,
            rounds=options.rounds,
            rate=options.rate,
            progress=True,
        )
    differences = account.differences()
    print(json.dumps({**msgspec.to_builtins(account, str_keys=True), "differences": differences}, indent=2))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
