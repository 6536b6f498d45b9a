"""Lanes: which delivery is handled next.

Deliveries of one key go one at a time and in stream order; different keys, and deliveries without a key,
go side by side up to the actor's concurrency. A delivery that is to be tried again in place keeps its key
shut and nothing else. While a circuit breaker is open the lanes rest; then one delivery at a time is let
through as a trial, a different one each time, until the breaker has closed. A delivery whose handler declares
the breaker waits at its gate instead, and the others go on.

Deliveries whose handler takes batches are collected first, without a lane. A batch then goes as one delivery
does; it may hold several of one key, which nothing else of that key may pass.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Protocol

from understudy.runtime.cell.batches import Batches, HeldBatch
from understudy.runtime.cell.blocked import Blocked
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.gates import Gate, Gates
from understudy.runtime.cell.line import Line
from understudy.runtime.cell.outcomes import (
    SETTLED,
    Again,
    Back,
    BatchOutcome,
    Finishing,
    Held,
    Outcome,
    Settled,
)

# Handlers that never wait would starve the connection's reader; this many may follow each other.
BURST = 64
# When to try again what met a breaker that has closed since.
SOON_SECONDS = 0.05
# The key of everything in an actor that keeps one order.
ONE_ORDER: Hashable = ()


class BatchHandler(Protocol):
    """Handles batches."""

    async def handle(self, batch: HeldBatch, deadline: Deadline) -> BatchOutcome:
        """Handle a batch that is closed; must not raise."""
        ...

    def is_alone(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery of which something is recorded is to be handled by itself."""
        ...


class Mode(enum.Enum):
    """What the breakers let through."""

    ALL = "all"
    TRIAL = "trial"
    NONE = "none"


class Lanes:
    """Runs `handle` on deliveries, in the order that the module describes.

    Args:
        concurrency: how many deliveries may be handled at once.
        hang_timeout_seconds: how long past its timeout a handler may still run, see `Deadline`.
        handle: handles a delivery; must not raise.
        wait_seconds: how long the breaker of that name lets no trial through; 0 if one may be made now, None
            if it is closed.
        mode_changed: called when the breakers' mode changes, with the breaker's name if it is open.
        blocked_changed: called when more or fewer deliveries wait for one that is tried again in place, that
            one included.
        gated_changed: called when more or fewer deliveries wait at a gate.
        idle: called when nothing runs and nothing may begin.
        batches: handles batches; None if no handler takes any.
        declared: the breakers that handlers declare.
        handle_line: handles what waits of a key together, in place of `handle`; must not raise. The lane is
            free when it returns, the key when the line is settled.

    Attributes:
        broken: never done, but for the error of a line that failed when its lane was free already.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        hang_timeout_seconds: float,
        handle: Callable[[HeldDelivery, Deadline], Awaitable[Outcome | Finishing]],
        wait_seconds: Callable[[str], float | None],
        mode_changed: Callable[[Mode, str], None],
        blocked_changed: Callable[[int], None] = lambda _: None,
        gated_changed: Callable[[int], None] = lambda _: None,
        idle: Callable[[], None] = lambda: None,
        batches: BatchHandler | None = None,
        declared: frozenset[str] = frozenset(),
        handle_line: Callable[[Line, Deadline], Awaitable[None]] | None = None,
    ) -> None:
        self._declared = declared
        self._concurrency = concurrency
        self._handle_line = handle_line
        self._hang_timeout_seconds = hang_timeout_seconds
        self._handle = handle
        self._wait_seconds = wait_seconds
        self._mode_changed = mode_changed
        self._idle = idle
        self._blocked = Blocked(blocked_changed)
        self._tried_again = self._blocked.deliveries
        self._batch_handler = batches
        self._batches = None if batches is None else Batches(self._due, batches.is_alone)
        self._ready: deque[HeldDelivery | HeldBatch] = deque()
        # By key; None as long as nothing waits behind what is collected, ready or runs.
        self._behind: dict[Hashable, deque[HeldDelivery] | None] = {}
        self._held: deque[HeldDelivery | HeldBatch] = deque()
        self._mode = Mode.ALL
        # The breaker that the lanes rest for, and the timer of its next trial.
        self._rests_for = ""
        self._next_trial: asyncio.TimerHandle | None = None
        self._gates = Gates(self._behind, gated_changed)
        self._shut_gates = self._gates.shut
        self._gate_timers: dict[str, asyncio.TimerHandle] = {}
        self._running: set[HeldDelivery | HeldBatch] = set()
        self._stopping = False
        self._halted = False
        self._paused = False
        self._unpaused = asyncio.Event()
        self._sleepers: deque[asyncio.Future[None]] = deque()
        # Whether a worker that was woken hasn't run yet. It wakes the next one if there is more, so that
        # handlers that never wait don't have all workers come for nothing.
        self._waking = False
        self._quiet = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def workers(self) -> list[asyncio.Task[None]]:
        """The workers' tasks; they end only by failing or by `stop`."""
        return self._workers

    def start(self) -> None:
        """Start as many workers as the concurrency says."""
        self._workers = [
            asyncio.create_task(self._work(), name=f"understudy-lane-{number}")
            for number in range(self._concurrency)
        ]

    def add(self, delivery: HeldDelivery) -> None:
        """Take a delivery in; deliveries come in stream order."""
        key = delivery.key
        if key is not None:
            if key in self._behind:
                behind = self._behind[key]
                if self._batches is not None and self._joins(self._batches, delivery, behind):
                    return
                if behind is None:
                    behind = self._behind[key] = deque()
                behind.append(delivery)
                if key in self._blocked.keys:
                    self._blocked.waits()
                if key in self._gates.keys:
                    self._gates.waits()
                return
            self._behind[key] = None
        if self._batches is not None and self._batches.collect(delivery):
            return
        self._ready.append(delivery)
        if not self._waking:
            self._wake()

    def is_stuck(self) -> bool:
        """Return whether something could be begun and nothing runs, which should never last."""
        return bool(self._ready) and not self._running and self._may_begin()

    def is_at_rest(self) -> bool:
        """Return whether nothing runs."""
        return not self._running

    def pause(self) -> None:
        """Begin nothing more until `resume`; what runs finishes."""
        self._paused = True
        self._unpaused.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._unpaused.set()
        self._wake_all()

    def halt(self) -> None:
        """Begin nothing more until the cell is started anew; what is held stays held."""
        self._halted = True

    def clear(self) -> set[HeldDelivery]:
        """Forget what isn't handled right now, and return what is."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._held.clear()
        if self._batches is not None:
            self._batches.clear()
        running = {
            delivery
            for item in self._running
            for delivery in (item.members if isinstance(item, HeldBatch) else (item,))
        }
        # The gates know it by this very object.
        self._behind.clear()
        self._behind.update({one.key: None for one in running if one.key is not None})
        self._blocked.keep(running)
        self._gates.clear()
        if self._mode is not Mode.ALL:
            self._mode = Mode.ALL
            self._mode_changed(Mode.ALL, "")
        # Their timers are gone too.
        for gate in tuple(self._shut_gates.values()):
            self._look_at(gate)
        return running

    def hurry(self) -> None:
        """Hear that nothing more comes, so that no batch need wait for it."""
        if self._batches is not None:
            self._batches.begin_hurry()

    async def quiet(self) -> None:
        """Wait until nothing runs and nothing may begin; what waits for a time or a breaker doesn't count.

        Meanwhile batches don't wait for more.
        """
        if self._batches is not None:
            self._batches.begin_hurry()
        try:
            while self._running or (self._ready and self._may_begin()):
                self._quiet.clear()
                await self._quiet.wait()
        finally:
            if self._batches is not None:
                self._batches.end_hurry()

    async def quiet_and_unpaused(self) -> None:
        """Wait as `quiet` does, but for a pause to end too, and for what is begun then."""
        await self.quiet()
        while self._paused:
            await self._unpaused.wait()
            await self.quiet()

    async def stop(self) -> None:
        """Begin nothing more, and return when what runs has finished."""
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        if self._batches is not None:
            self._batches.clear()
        self._wake_all()
        if self._workers:
            await asyncio.wait(self._workers)
        while self._running:
            self._quiet.clear()
            await self._quiet.wait()

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(task, self._hang_timeout_seconds)
        burst = 0
        while not self._stopping:
            item = self._take()
            if item is None:
                burst = 0
                if not self._running:
                    self._quiet.set()
                    self._idle()
                sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._sleepers.append(sleeper)
                await sleeper
                self._waking = False
                continue
            self._running.add(item)
            if self._ready and not self._waking:
                self._wake()
            if type(item) is HeldBatch:
                await self._run_batch(item, deadline)
                burst += len(item.members)
            elif self._handle_line is not None:
                line = Line(item, follow=self._follow, settle=self._settle_line, fail=self._fail_line)
                await self._handle_line(line, deadline)
                burst += len(line.members)
            else:
                outcome = await self._handle(item, deadline)
                if outcome is SETTLED and self._mode is Mode.ALL and not self._shut_gates:
                    self._running.discard(item)
                    self._done(item)
                elif type(outcome) is Finishing:
                    outcome.settled.add_done_callback(functools.partial(self._finished, item))
                else:
                    self._running.discard(item)
                    self._finish(item, outcome)
                burst += 1
            if burst >= BURST:
                burst = 0
                await asyncio.sleep(0)

    def _may_begin(self) -> bool:
        return self._mode is Mode.ALL and not (self._halted or self._paused)

    def _take(self) -> HeldDelivery | HeldBatch | None:
        if self._halted or self._paused:
            return None
        if self._mode is not Mode.ALL:
            if self._mode is Mode.NONE or self._running:
                return None
            if self._held:
                return self._held.popleft()
        if self._shut_gates:
            return self._take_past_gates()
        return self._ready.popleft() if self._ready else None

    def _take_past_gates(self) -> HeldDelivery | HeldBatch | None:
        item = self._gates.take()
        while item is None and self._ready:
            item = self._ready.popleft()
            gate = self._gates.find(item)
            if gate is not None:
                if isinstance(item, HeldBatch) and self._batches is not None:
                    self._batches.close(item)
                self._gates.hold(gate, item)
                item = self._gates.take()
        return item

    async def _run_batch(self, batch: HeldBatch, deadline: Deadline) -> None:
        assert self._batches is not None
        assert self._batch_handler is not None
        self._batches.close(batch)
        outcome = await self._batch_handler.handle(batch, deadline)
        self._running.discard(batch)
        if isinstance(outcome, Held):
            self._hold(batch, outcome)
            self._decide()
            return
        gate = self._gates.left(batch) if self._shut_gates else None
        if isinstance(outcome, Settled):
            if self._tried_again:
                for member in batch.members:
                    self._unblock(member)
            for key in batch.keys:
                self._next(key)
        else:
            self._finish_members(batch, outcome)
        if gate is not None:
            self._look_at(gate)
        self._decide()

    def _finished(self, delivery: HeldDelivery, settled: asyncio.Future[Settled | Again]) -> None:
        """Hear that what was left to do of a delivery is done."""
        self._running.discard(delivery)
        self._finish(delivery, settled.result())
        if not self._running:
            self._quiet.set()
            # A worker says that we are idle.
            self._wake()

    def _settle_line(self, line: Line, outcome: BatchOutcome) -> None:
        members = line.members
        first = members[0]
        self._running.difference_update(members)
        staying: list[tuple[HeldDelivery, Outcome | Back]] = []
        if outcome is not SETTLED or self._tried_again:
            outcomes = [outcome] * len(members) if isinstance(outcome, Settled | Held) else outcome
            for member, its in zip(members, outcomes, strict=True):
                if its is not SETTLED:
                    staying.append((member, its))
                elif self._tried_again:
                    self._unblock(member)
        if not staying:
            gate = self._gates.left(first) if self._shut_gates else None
            if first.key is not None:
                self._next(first.key)
            if gate is not None:
                self._look_at(gate)
            self._decide()
        else:
            # The first one that stays keeps the key shut for the others.
            self._put_behind(first.key, [other for other, _ in staying[1:]])
            self._stay_of_line(first, *staying[0])
        if not self._running:
            self._quiet.set()
            # A worker says that we are idle.
            self._wake()

    def _stay_of_line(self, first: HeldDelivery, member: HeldDelivery, outcome: Outcome | Back) -> None:
        if not isinstance(outcome, Back):
            self._finish(member, outcome)
            return
        gate = self._gates.left(first) if self._shut_gates else None
        self._offer(member, first=True)
        if gate is not None:
            self._look_at(gate)
        self._decide()

    def _fail_line(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    def _follow(self, first: HeldDelivery) -> HeldDelivery | None:
        """Take the delivery that is next of a line's key, if nothing stands against it."""
        behind = self._behind.get(first.key)
        if not behind or self._stopping or self._shut_gates or not self._may_begin():
            return None
        if first in self._tried_again:
            return None
        delivery = behind.popleft()
        self._running.add(delivery)
        return delivery

    def _finish(self, delivery: HeldDelivery, outcome: Outcome) -> None:
        if isinstance(outcome, Held):
            self._hold(delivery, outcome)
            self._decide()
            return
        gate = self._gates.left(delivery) if self._shut_gates else None
        if isinstance(outcome, Settled):
            self._done(delivery)
        else:
            self._block(delivery)
            self._later(outcome.delay_seconds, lambda: self._offer(delivery, first=True))
        if gate is not None:
            self._look_at(gate)
        self._decide()

    def _finish_members(self, batch: HeldBatch, outcomes: Iterable[Outcome | Back]) -> None:
        staying: list[tuple[HeldDelivery, Outcome | Back]] = []
        later: dict[Hashable, list[HeldDelivery]] = {}
        for member, outcome in zip(batch.members, outcomes, strict=True):
            if outcome is SETTLED:
                if self._tried_again:
                    self._unblock(member)
            elif member.key in later:
                later[member.key].append(member)
            else:
                staying.append((member, outcome))
                if member.key is not None:
                    later[member.key] = []
        for key in batch.keys:
            if key in later:
                self._put_behind(key, later[key])
            else:
                self._next(key)
        self._stay(batch, staying)

    def _stay(self, batch: HeldBatch, staying: list[tuple[HeldDelivery, Outcome | Back]]) -> None:
        """Keep the members that aren't settled, of each key the first."""
        held: tuple[HeldBatch, Held] | None = None
        for member, outcome in staying:
            if isinstance(outcome, Again):
                self._block(member)
                self._later(outcome.delay_seconds, functools.partial(self._offer, member))
            elif isinstance(outcome, Held):
                held = held or (HeldBatch(batch.handler), outcome)
                held[0].add(member)
            else:
                self._offer(member)
        if held is not None:
            self._hold(*held)

    def _decide(self) -> None:
        """See whether a trial has closed the breaker."""
        if self._mode is Mode.TRIAL:
            if self._wait_seconds(self._rests_for) is None:
                self._open()
            else:
                self._wake()

    def breaker_changed(self, breaker: str) -> None:
        """Hear that a breaker has opened, closed, or lets its next trial through at another time.

        Args:
            breaker: its name; an actor's handler declares it, or has met it, or has nothing to do with it.
        """
        gate = self._shut_gates.get(breaker)
        wait = self._wait_seconds(breaker)
        if gate is None and wait is not None and breaker in self._declared:
            gate = self._gates.shut_for(breaker)
        if gate is not None:
            self._look_at(gate)
        if self._mode is Mode.ALL or self._rests_for != breaker:
            return
        if wait is None:
            self._open()
        elif self._mode is Mode.NONE:
            self._rest(wait)

    def _hold(self, item: HeldDelivery | HeldBatch, outcome: Held) -> None:
        """Have an item wait that met an open breaker."""
        handler = item.handler
        if handler is not None and outcome.breaker in handler.breakers:
            gate = self._gates.shut_for(outcome.breaker)
            self._gates.hold(gate, item)
            self._look_at(gate, met=True)
            return
        if self._shut_gates:
            # It was the trial of another breaker.
            self._gates.left(item)
        self._held.append(item)
        self._shut(outcome)

    def _look_at(self, gate: Gate, *, met: bool = False) -> None:
        """Open a gate whose breaker has closed, or let the next trial through when its time has come.

        Args:
            gate: which.
            met: whether a handler has just met the breaker; if it is open no more the next one tries soon,
                but not at once, since a handler may go on saying so.
        """
        timer = self._gate_timers.pop(gate.breaker, None)
        if timer is not None:
            self._forget(timer)
        wait = self._wait_seconds(gate.breaker)
        if met and not wait:
            wait = SOON_SECONDS
        if wait is None:
            self._ready.extendleft(reversed(self._gates.open(gate)))
            self._wake_all()
            return
        gate.may_try = wait <= 0
        if gate.may_try:
            self._wake()
            return
        due = self._later(wait, functools.partial(self._look_at, gate))
        if due is not None:
            self._gate_timers[gate.breaker] = due

    def _done(self, delivery: HeldDelivery) -> None:
        """Let the next one of its key go on."""
        if self._tried_again:
            self._unblock(delivery)
        key = delivery.key
        if key is None:
            return
        behind = self._behind[key]
        if behind:
            self._offer(behind.popleft())
        else:
            del self._behind[key]

    def _next(self, key: Hashable) -> None:
        behind = self._behind[key]
        if behind:
            self._offer(behind.popleft())
        else:
            del self._behind[key]

    def _offer(self, delivery: HeldDelivery, *, first: bool = False) -> None:
        """Have a delivery begun whose turn it is; in a batch, those of its key that follow it go with it.

        Args:
            delivery: the first one of its key, if it has one.
            first: whether it comes before all else that is ready.
        """
        if self._batches is None or not self._batches.collect(delivery):
            if first:
                self._ready.appendleft(delivery)
            else:
                self._ready.append(delivery)
            self._wake()
            return
        key = delivery.key
        if key is None:
            return
        behind = self._behind[key]
        while behind and self._joins(self._batches, behind[0], None):
            behind.popleft()
        if key == ONE_ORDER and key in self._blocked.keys:
            self._batches.hurry()

    def _joins(self, batches: Batches, delivery: HeldDelivery, behind: deque[HeldDelivery] | None) -> bool:
        """Put a delivery into the batch that those of its key wait in, if nothing stands between them.

        What is tried again in place has nothing of its key with it, so that the rest is handled once.
        """
        if not behind and delivery.key not in self._blocked.keys and batches.join(delivery):
            return True
        if delivery.key == ONE_ORDER:
            # Nor will anything that comes later.
            batches.hurry()
        return False

    def _put_behind(self, key: Hashable, deliveries: list[HeldDelivery]) -> None:
        """Put deliveries back behind the first one of their key, before those that came later.

        It isn't one that is tried again in place: nothing of its key would have been with it.
        """
        if not deliveries:
            return
        behind = self._behind[key]
        if behind is None:
            behind = self._behind[key] = deque()
        behind.extendleft(reversed(deliveries))

    def _due(self, batch: HeldBatch) -> None:
        self._ready.append(batch)
        self._wake()

    def _block(self, delivery: HeldDelivery) -> None:
        self._blocked.add(delivery, len(self._behind.get(delivery.key) or ()))

    def _unblock(self, delivery: HeldDelivery) -> None:
        self._blocked.discard(delivery, len(self._behind.get(delivery.key) or ()))

    def _shut(self, outcome: Held) -> None:
        if self._mode is Mode.NONE:
            return
        self._mode = Mode.NONE
        self._rests_for = outcome.breaker
        self._mode_changed(Mode.NONE, outcome.breaker)
        seconds = outcome.retry_after_seconds
        if self._wait_seconds(outcome.breaker) is None:
            # It has closed since, and nobody tells us of it a second time.
            seconds = min(seconds, SOON_SECONDS)
        self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        """Let the next trial through after so long."""
        if self._next_trial is not None:
            self._forget(self._next_trial)
        self._next_trial = self._later(seconds, self._try)

    def _try(self) -> None:
        self._mode = Mode.TRIAL
        self._mode_changed(Mode.TRIAL, "")

    def _open(self) -> None:
        self._mode = Mode.ALL
        self._ready.extendleft(sorted(self._held, key=lambda item: item.sequence, reverse=True))
        self._held.clear()
        self._mode_changed(Mode.ALL, "")
        self._wake_all()

    def _later(self, delay_seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle | None:
        if math.isinf(delay_seconds) or self._stopping:
            return None

        def run() -> None:
            self._timers.discard(timer)
            action()
            self._wake()

        timer = asyncio.get_running_loop().call_later(delay_seconds, run)
        self._timers.add(timer)
        return timer

    def _forget(self, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._timers.discard(timer)

    def _wake(self) -> None:
        while self._sleepers and not self._waking:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                self._waking = True

    def _wake_all(self) -> None:
        while self._sleepers:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
