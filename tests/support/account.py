"""What the recorded runs of an actor amount to: what is lost, came twice and why, came out of order.

A run that repeats another one is explained by one of three things. An outage of the broker: acks on their
way are lost with the connection, and a killed broker forgets what it delivered and had acked but not written
down, so what was handled shortly before or held meanwhile may come again. The death of the process that made
the earlier run, which had as many in hand as the actor's concurrency allows; if nobody took over within
`ack_wait`, what it had handled shortly before comes again too. An attempt that failed, as one does whose
outputs no stream takes while the broker starts. Everything else is unexplained, and a difference.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from support.records import Record, read_records
from understudy.runtime.jetstream import api

# How long before its end, or the broker's, a run may have begun whose ack the broker never had or wrote down.
UNWRITTEN_SECONDS = 1.0


class Recorded(NamedTuple):
    """An actor whose runs are recorded.

    Args:
        actor: its name.
        keys: how many there are; an event's key is its number modulo this.
        concurrency: how many runs may be under way in one of its processes, and so be repeated.
        held: how many its cells together may hold.
        ack_wait_seconds: of its consumer.
        is_sole_owner: whether it promises order per key.
    """

    actor: str
    keys: int
    concurrency: int
    held: int
    ack_wait_seconds: float
    is_sole_owner: bool


class Kill(NamedTuple):
    """A cell's process that died, or began to: which, and when in ns of CLOCK_MONOTONIC."""

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

    @property
    def repeats(self) -> int:
        """Runs that repeat another one."""
        explained = self.after_kill + self.after_late_takeover + self.after_outage + self.after_failure
        return explained + self.unexplained

    def differences(self) -> list[str]:
        """Return what is not as it must be."""
        return [
            f"{count} {what}"
            for what, count in (
                ("lost", self.lost),
                ("invented", self.invented),
                ("stored twice", self.stored_twice),
                ("repeats unexplained", self.unexplained),
                ("out of order", self.out_of_order or 0),
            )
            if count
        ]


def is_outage(outages: Sequence[Outage], moment: str) -> bool:
    """Return whether who failed then may have missed the broker, or waited for it in vain.

    Args:
        outages: of the broker.
        moment: as a log entry tells it.
    """
    ago_seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    at = time.monotonic_ns() - round(ago_seconds * 1e9)
    return any(outage.began <= at <= outage.ended + api.REQUEST_TIMEOUT_SECONDS * 1e9 for outage in outages)


def account_of(
    recorded: Recorded, directory: Path, messages: int, kills: Sequence[Kill], outages: Sequence[Outage]
) -> Stage:
    """Return what the runs of one actor amount to.

    Args:
        recorded: the actor.
        directory: where its cells have recorded.
        messages: how many numbers there are, from 0.
        kills: of cells, also of other actors.
        outages: of the broker.
    """
    by_pid = dict(read_records(directory, recorded.actor))
    counts = Counter[int]()
    # When each number was first handled, in the order in which they were.
    firsts: dict[int, int] = {}
    newest = [-1] * recorded.keys
    out_of_order = 0
    for record in heapq.merge(*by_pid.values(), key=attrgetter("at")):
        number = record.number
        counts[number] += 1
        if number not in firsts:
            firsts[number] = record.at
            out_of_order += number < newest[number % recorded.keys]
            newest[number % recorded.keys] = max(newest[number % recorded.keys], number)
    repeated: dict[int, list[tuple[int, Record]]] = {}
    for pid, records in by_pid.items():
        for record in records:
            if counts[record.number] > 1:
                repeated.setdefault(record.number, []).append((pid, record))
    causes = _Causes(recorded, firsts, kills, outages)
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
        out_of_order=out_of_order if recorded.is_sole_owner else None,
    )


class _Causes:
    """What may explain that an actor handled a number again."""

    def __init__(
        self,
        recorded: Recorded,
        firsts: dict[int, int],
        kills: Sequence[Kill],
        outages: Sequence[Outage],
    ) -> None:
        self._killed = {kill.pid: kill.at for kill in kills}
        self._in_hand = {kill.pid: recorded.concurrency for kill in kills}
        self._ack_wait = round(recorded.ack_wait_seconds * 1e9)
        unwritten = round(UNWRITTEN_SECONDS * 1e9)
        times = list(firsts.values())
        numbers = list(firsts)

        def touched(outage: Outage) -> frozenset[int]:
            # What was handled first shortly before it, or next when the broker was gone: that the cells held.
            first = bisect(times, outage.began - unwritten)
            return frozenset(numbers[first : bisect(times, outage.gone) + recorded.held])

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
        if killed + self._ack_wait < later.at and earlier.at > killed - UNWRITTEN_SECONDS * 1e9:
            return "late"
        return "nothing"
