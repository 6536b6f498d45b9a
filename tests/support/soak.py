"""Events through a chain of three actors while cells and the broker are killed, and an account of every run.

`python -m support.soak --messages 1000000`, in tests/, is the long form of what
tests/faults/test_data_path.py runs. Progress goes to stderr, the account as JSON to stdout; the exit status
is 1 if it doesn't add up.

A run that repeats another one is explained by one of three things. An outage of the broker: acks on their
way are lost with the connection, and a killed broker forgets what it delivered and had acked but not written
down, so what was handled shortly before or held meanwhile may come again. The kill of the process that made
the earlier run, which had as many in hand as the actor's concurrency allows; if nobody took over within
`ack_wait`, what it had handled shortly before comes again too. An attempt that failed, as one does whose
outputs no stream takes while the broker starts. Everything else is unexplained, and a difference.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from bisect import bisect
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import nats.errors

from support.nats import NatsServer
from support.relay import (
    ACK_WAIT_SECONDS,
    ACTORS,
    CAPACITY,
    CONCURRENCY,
    Entered,
    Record,
    count_records,
    read_records,
)
from support.running import Running, running, until
from understudy.actors.errors import BrokerError, PublishError
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.telemetry.logs import configure_logging

KEYS = 256
SOLE_OWNERS = ("intake", "tally")
CELLS = ("intake/0", "tally/0", "archive/0", "archive/1")
# How many runs may be under way in a process of each actor, and so be repeated after a kill.
IN_HAND = {"intake": CONCURRENCY, "tally": CONCURRENCY, "archive": 1}
# How long before its end, or the broker's, a run may have begun whose ack the broker never had or wrote down.
UNWRITTEN_SECONDS = 1.0
# How many an actor's cells together may hold.
HELD = {"intake": CAPACITY, "tally": CAPACITY, "archive": 2 * CAPACITY}
KILLED = "killed by SIGKILL"


class Kill(NamedTuple):
    """A cell that was killed: which process, and when in ns of CLOCK_MONOTONIC."""

    pid: int
    at: int


class Outage(NamedTuple):
    """When the broker was to end, had ended, and had every cell connected again, in ns of CLOCK_MONOTONIC."""

    began: int
    gone: int
    ended: int


class Stage(msgspec.Struct, kw_only=True):
    """What became of the events at one actor.

    Args:
        runs: of its handler, repeats included.
        lost: numbers that it never handled.
        invented: numbers that nobody published.
        stored_twice: numbers that came under two sequences of the stream.
        after_kill, after_late_takeover, after_outage, after_failure: repeats by what explains them.
        unexplained: repeats that nothing does.
        examples: of them, the first few.
        out_of_order: keys' events that were handled first after a later one of their key; None where no order
            is promised.
    """

    runs: int
    lost: int
    invented: int
    stored_twice: int
    after_kill: int
    after_late_takeover: int
    after_outage: int
    after_failure: int
    unexplained: int
    examples: list[str]
    out_of_order: int | None


class Account(msgspec.Struct, kw_only=True):
    """What a soak has shown.

    Args:
        messages: that were published.
        seconds: from the first published to the last handled.
        kills: of cells.
        outages: of the broker.
        ends: of cells, by reason, but for those that could not start while the broker was away.
        dead_letters: that were written.
        exit_status: the run's.
        stages: by actor.
    """

    messages: int
    seconds: float
    kills: int
    outages: int
    ends: dict[str, int]
    dead_letters: int
    exit_status: int
    stages: dict[str, Stage]

    def differences(self) -> list[str]:
        """Return what is not as it must be."""
        found = []
        if self.dead_letters:
            found.append(f"{self.dead_letters} dead letters")
        if self.exit_status:
            found.append(f"exit status {self.exit_status}")
        if self.ends.get(KILLED, 0) > self.kills:
            found.append(f"{self.kills} cells killed, {self.ends[KILLED]} died so")
        found += [f"a cell ended: {reason}" for reason in self.ends if reason != KILLED]
        for name, stage in self.stages.items():
            found += [
                f"{name}: {count} {what}"
                for what, count in (
                    ("lost", stage.lost),
                    ("invented", stage.invented),
                    ("stored twice", stage.stored_twice),
                    ("repeats unexplained", stage.unexplained),
                    ("out of order", stage.out_of_order or 0),
                )
                if count
            ]
        return found


class _Soak:
    """One soak's run, from the first event to the last ack."""

    def __init__(
        self, server: NatsServer, run: Running, directory: Path, messages: int, seed: int, progress: bool
    ) -> None:
        self.server = server
        self.run = run
        self.directory = directory
        self.messages = messages
        self.kills: list[Kill] = []
        self.outages: list[Outage] = []
        self.published = 0
        self.began = time.monotonic()
        self.failure: BaseException | None = None
        self._random = random.Random(seed)
        self._progress = progress
        self._said = 0.0

    def is_outage(self, moment: datetime) -> bool:
        """Return whether a cell that failed then may have missed the broker, or waited for it in vain."""
        at = time.monotonic_ns() - round((datetime.now(UTC) - moment).total_seconds() * 1e9)
        return any(
            outage.began <= at <= outage.ended + api.REQUEST_TIMEOUT_SECONDS * 1e9 for outage in self.outages
        )

    def publish(self) -> None:
        """Publish everything, never far ahead; runs in a thread of its own."""
        try:
            asyncio.run(self._publish())
        except BaseException as error:
            self.failure = error
            raise

    async def _publish(self) -> None:
        async with Publisher.connect(self.server.url) as publisher:
            for first in range(0, self.messages, KEYS):
                # One of each key, and all of them confirmed before the next, so that the stream has each
                # key's in order whatever has to be tried again.
                numbers = range(first, min(first + KEYS, self.messages))
                await asyncio.gather(*(self._publish_one(publisher, number) for number in numbers))
                self.published = numbers.stop
                while self.published - self.handled() > self.messages // 5 + KEYS:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def _publish_one(self, publisher: Publisher, number: int) -> None:
        while True:
            try:
                await publisher.publish(Entered(number=number, key=number % KEYS), message_id=f"n{number}")
                return
            except PublishError as error:
                if "no stream confirmed" not in str(error) and not isinstance(
                    error.__cause__, nats.errors.Error
                ):
                    raise

    def handled(self) -> int:
        """Return how many runs the last actor has recorded."""
        return count_records(self.directory, ACTORS[-1])

    def disturb(self, kill_every_seconds: float) -> None:
        """Kill cells now and then, stop the broker after a third and kill it after two, until all is done."""
        next_kill = time.monotonic() + kill_every_seconds
        while True:
            done = self.handled()
            self._say(done)
            if self.failure is not None:
                raise self.failure
            if len(self.outages) < 2 and done >= self.messages * (1 + len(self.outages)) // 3:
                self._restart_broker()
            elif done >= self.messages and self._is_settled():
                return
            elif done < self.messages and time.monotonic() >= next_kill:
                self._kill(self._random.choice(CELLS))
                next_kill = time.monotonic() + kill_every_seconds * self._random.uniform(0.5, 1.5)
            time.sleep(0.02)

    def _restart_broker(self) -> None:
        began = time.monotonic_ns()
        if not self.outages:
            self.server.stop()
        else:
            self.server.kill()
            self._kill(self._random.choice(CELLS))
        gone = time.monotonic_ns()
        self.server.start()
        until(lambda: self.run.get("/readyz")[0] == 200, 40)
        self.outages.append(Outage(began, gone, time.monotonic_ns()))

    def _kill(self, cell: str) -> None:
        supervision = self.run.cell(cell)["supervision"]
        if supervision["state"] == "up":
            try:
                os.kill(supervision["pid"], signal.SIGKILL)
            except ProcessLookupError:
                # It failed meanwhile, and the account says why.
                return
            self.kills.append(Kill(supervision["pid"], time.monotonic_ns()))

    def _is_settled(self) -> bool:
        consumers = asyncio.run(_consumers(self.server.url))
        return all(info["num_pending"] == 0 and info["num_ack_pending"] == 0 for info in consumers)

    def _say(self, done: int) -> None:
        now = time.monotonic()
        if self._progress and now >= self._said + 1:
            self._said = now
            seconds = now - self.began
            print(
                f"{seconds:6.1f} s  {self.published} published, {done} handled by all, "
                f"{len(self.kills)} kills, {len(self.outages)} outages",
                file=sys.stderr,
                flush=True,
            )


async def _consumers(url: str) -> list[dict[str, Any]]:
    client = await connection.connect(ConnectionSpec(servers=(url,)), name="soak")
    try:
        found = [await api.consumer_info(client, "RELAY", f"relay-{actor}") for actor in ACTORS]
        return [info for info in found if info is not None]
    except BrokerError:
        return [{"num_pending": -1}]
    finally:
        await client.close()


async def _dead_letters(url: str) -> int:
    client = await connection.connect(ConnectionSpec(servers=(url,)), name="soak")
    try:
        info = await api.stream_info(client, "RELAY_DEAD_LETTERS")
        assert info is not None
        return int(info["state"]["messages"])
    finally:
        await client.close()


def account_of(actor: str, directory: Path, messages: int, kills: list[Kill], outages: list[Outage]) -> Stage:
    """Return what the runs of one actor amount to.

    Args:
        actor: one of the chain.
        directory: where its cells have recorded.
        messages: how many numbers there are, from 0.
        kills: of cells.
        outages: of the broker.
    """
    by_pid = dict(read_records(directory, actor))
    counts = Counter[int]()
    # When each number was first handled, in the order in which they were.
    firsts: dict[int, int] = {}
    newest = [-1] * KEYS
    out_of_order = 0
    for record in heapq.merge(*by_pid.values(), key=attrgetter("at")):
        number = record.number
        counts[number] += 1
        if number not in firsts:
            firsts[number] = record.at
            out_of_order += number < newest[number % KEYS]
            newest[number % KEYS] = max(newest[number % KEYS], number)
    repeated: dict[int, list[tuple[int, Record]]] = {}
    for pid, records in by_pid.items():
        for record in records:
            if counts[record.number] > 1:
                repeated.setdefault(record.number, []).append((pid, record))
    causes = _Causes(actor, firsts, kills, outages)
    explained = Counter[str]()
    examples: list[str] = []
    for number, runs in repeated.items():
        runs.sort(key=itemgetter(1))
        for (pid, earlier), (again, later) in pairwise(runs):
            cause = causes.of(number, pid, earlier, later)
            explained[cause] += 1
            if cause == "nothing" and len(examples) < 5:
                examples.append(
                    f"{number}, sequence {earlier.sequence}: process {pid} at {earlier.at / 1e9:.3f} s, "
                    f"again process {again} at {later.at / 1e9:.3f} s; {causes.told(pid)}"
                )
    return Stage(
        runs=counts.total(),
        lost=messages - sum(number < messages for number in counts),
        invented=sum(number >= messages for number in counts),
        stored_twice=sum(len({record.sequence for _, record in runs}) > 1 for runs in repeated.values()),
        after_kill=explained["kill"],
        after_late_takeover=explained["late"],
        after_outage=explained["outage"],
        after_failure=explained["failure"],
        unexplained=explained["nothing"],
        examples=examples,
        out_of_order=out_of_order if actor in SOLE_OWNERS else None,
    )


class _Causes:
    """What may explain that an actor handled a number again."""

    def __init__(self, actor: str, firsts: dict[int, int], kills: list[Kill], outages: list[Outage]) -> None:
        self._killed = {kill.pid: kill.at for kill in kills}
        self._in_hand = {kill.pid: IN_HAND[actor] for kill in kills}
        unwritten = round(UNWRITTEN_SECONDS * 1e9)
        times = list(firsts.values())
        numbers = list(firsts)

        def touched(outage: Outage) -> frozenset[int]:
            # What was handled first shortly before it, or next when the broker was gone: that the cells held.
            first = bisect(times, outage.began - unwritten)
            return frozenset(numbers[first : bisect(times, outage.gone) + HELD[actor]])

        self._touched = [(outage.began, touched(outage)) for outage in outages]

    def told(self, pid: int) -> str:
        """Return what was done to a process and to the broker."""
        killed = (
            f"the first killed at {self._killed[pid] / 1e9:.3f} s" if pid in self._killed else "not killed"
        )
        return f"{killed}, outages at {[round(began / 1e9, 3) for began, _ in self._touched]}"

    def of(self, number: int, pid: int, earlier: Record, later: Record) -> str:
        """Return what explains that `later` repeats `earlier`, which the process `pid` ran."""
        if later.attempt > earlier.attempt:
            return "failure"
        if any(number in touched and later.at > began for began, touched in self._touched):
            return "outage"
        killed = self._killed.get(pid, later.at)
        if killed < later.at and self._in_hand[pid]:
            self._in_hand[pid] -= 1
            return "kill"
        if killed + ACK_WAIT_SECONDS * 1e9 < later.at and earlier.at > killed - UNWRITTEN_SECONDS * 1e9:
            return "late"
        return "nothing"


def soak(
    server: NatsServer,
    directory: Path,
    *,
    messages: int,
    kill_every_seconds: float,
    seed: int,
    progress: bool = False,
) -> Account:
    """Run the chain over so many events, with cells and the broker killed meanwhile.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        server: a broker that runs.
        directory: for the run's files.
        messages: how many events.
        kill_every_seconds: how often a cell is killed, on average.
        seed: of the choice which and when.
        progress: whether stderr is told each second.
    """
    records = directory / "records"
    records.mkdir()
    with running(server.url, directory, "support.relay:app", RELAY_DIRECTORY=str(records)) as run:
        work = _Soak(server, run, records, messages, seed, progress)
        publishing = threading.Thread(target=work.publish, name="publisher", daemon=True)
        publishing.start()
        work.disturb(kill_every_seconds)
        seconds = time.monotonic() - work.began
        publishing.join()
        ends = Counter(
            str(entry["reason"])
            for entry in run.events("cell exited")
            if entry["reason"] == KILLED or not work.is_outage(datetime.fromisoformat(entry["time"]))
        )
        exit_status = run.terminate(40)
    return Account(
        messages=messages,
        seconds=round(seconds, 1),
        kills=len(work.kills),
        outages=len(work.outages),
        ends=ends,
        dead_letters=asyncio.run(_dead_letters(server.url)),
        exit_status=exit_status,
        stages={actor: account_of(actor, records, messages, work.kills, work.outages) for actor in ACTORS},
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m support.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--kill-every-seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = soak(
            server,
            Path(directory),
            messages=options.messages,
            kill_every_seconds=options.kill_every_seconds,
            seed=options.seed,
            progress=True,
        )
    differences = account.differences()
    result = {"seed": options.seed, **msgspec.to_builtins(account), "differences": differences}
    print(json.dumps(result, indent=2))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
