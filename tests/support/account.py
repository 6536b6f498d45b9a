"""What the recorded runs of an actor amount to: what is lost, came twice and why, came out of order.

A run that repeats another one is explained by one of four things. An outage of the broker: acks on their
way are lost with the connection, and a killed broker forgets what it delivered and had acked but not written
down, so what was handled shortly before or held meanwhile may come again. The death of the process that made
the earlier run, which had as many in hand as the actor's concurrency allows; if nobody took over within
`ack_wait`, what it had handled shortly before comes again too. An attempt that failed, as one does whose
outputs no stream takes while the broker starts. A suspension of all processes of ours, or several, for about
as long as the broker waits for an ack. Everything else is unexplained, and a difference.
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
# A process that was killed so long before a run had the same pid, and was another one.
PID_SECONDS = 10.0
# What is held is extended each third of `ack_wait`: so much of it is left then.
EXTENDED_SHARE = 2 / 3


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


class Suspension(NamedTuple):
    """When all processes but the broker stood still, in ns of CLOCK_MONOTONIC."""

    began: int
    ended: int


class Stage(msgspec.Struct, kw_only=True):
    """What became of the events at one actor.

    Args:
        runs: of its handler, repeats included.
        lost: numbers that it never handled.
        invented: numbers that nobody published.
        stored_twice: numbers that came under two sequences of the stream.
        after_kill, after_late_takeover, after_outage, after_failure, after_suspension: repeats by what
            explains them.
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
    after_suspension: int
    unexplained: int
    examples: list[str]
    out_of_order: int | None

    @property
    def repeats(self) -> int:
        """Runs that repeat another one."""
        after_death = self.after_kill + self.after_late_takeover
        return after_death + self.after_outage + self.after_failure + self.after_suspension + self.unexplained

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
    recorded: Recorded,
    directory: Path,
    messages: int,
    kills: Sequence[Kill],
    outages: Sequence[Outage],
    suspensions: Sequence[Suspension] = (),
) -> Stage:
    """Return what the runs of one actor amount to.

    Args:
        recorded: the actor.
        directory: where its cells have recorded.
        messages: how many numbers there are, from 0.
        kills: of cells, also of other actors.
        outages: of the broker.
        suspensions: of everything else.
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
    causes = _Causes(recorded, firsts, kills, outages, suspensions)
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
                    f"again process {again} at {later.at / 1e9:.3f} s; {causes.told(pid, earlier)}"
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
        after_suspension=explained["suspension"],
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
        suspensions: Sequence[Suspension],
    ) -> None:
        # A pid may belong to several processes, one after the other.
        self._kills: dict[int, list[int]] = {}
        for kill in sorted(kills, key=attrgetter("at")):
            self._kills.setdefault(kill.pid, []).append(kill.at)
        self._in_hand = {tuple(kill): recorded.concurrency for kill in kills}
        self._ack_wait = round(recorded.ack_wait_seconds * 1e9)
        self._suspensions = sorted(suspensions)
        times = list(firsts.values())
        numbers = list(firsts)

        def touched(began: int, gone: int) -> frozenset[int]:
            # What was handled first shortly before it, or next when it was there: that the cells held.
            first = bisect(times, self._unwritten_since(began))
            return frozenset(numbers[first : bisect(times, gone) + recorded.held])

        self._touched = [(outage.began, touched(outage.began, outage.gone)) for outage in outages]
        self._asleep = [(one.ended, touched(one.began, one.ended)) for one in self._suspensions]

    def told(self, pid: int, earlier: Record) -> str:
        """Return what was done to a process after a run of its, and to the broker and to all others."""
        killed = self._killed(pid, earlier)
        return (
            f"{'not killed' if killed is None else f'the first killed at {killed / 1e9:.3f} s'}, "
            f"outages at {[round(began / 1e9, 3) for began, _ in self._touched]}, "
            f"suspensions until {[round(ended / 1e9, 3) for ended, _ in self._asleep]}"
        )

    def of(self, number: int, pid: int, earlier: Record, later: Record) -> str:
        """Return what explains that `later` repeats `earlier`, which the process `pid` ran."""
        if later.attempt > earlier.attempt:
            return "failure"
        if any(number in touched and later.at > began for began, touched in self._touched):
            return "outage"
        killed = self._killed(pid, earlier)
        if killed is not None and killed < later.at:
            if self._in_hand[pid, killed]:
                self._in_hand[pid, killed] -= 1
                return "kill"
            if killed + self._ack_wait < later.at and earlier.at > self._unwritten_since(killed):
                return "late"
        if self._has_slept_too_long(number, later.at):
            return "suspension"
        return "nothing"

    def _killed(self, pid: int, run: Record) -> int | None:
        """Return when the process died that made a run."""
        # It is noted when it begins, and what gets stuck may go on for a while.
        since = run.at - round(PID_SECONDS * 1e9)
        return next((at for at in self._kills.get(pid, ()) if at >= since), None)

    def _unwritten_since(self, end: int) -> int:
        """Return since when runs may have begun whose acks weren't written at the end."""
        since = end - round(UNWRITTEN_SECONDS * 1e9)
        for one in reversed(self._suspensions):
            if one.began < end and one.ended > since:
                since -= one.ended - one.began
        return since

    def _has_slept_too_long(self, number: int, at: int) -> bool:
        """Return whether the broker may have waited in vain for what was held to be acked or extended."""
        since = at - 2 * self._ack_wait
        asleep = sum(min(one.ended, at) - one.began for one in self._suspensions if since < one.began < at)
        return asleep > self._ack_wait * EXTENDED_SHARE and any(
            number in touched and at < ended + self._ack_wait for ended, touched in self._asleep
        )
