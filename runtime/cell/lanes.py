"""Lanes: workers that handle deliveries, as many at once as the actor's concurrency says.

Whose turn it is, is told in `turns`; what an open circuit breaker holds up, in `trials`.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Protocol

from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
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
from understudy.runtime.cell.trials import Mode, Trials

# Handlers that never wait would starve the connection's reader; this many may follow each other.
BURST = 64


class BatchHandler(Protocol):
    """Handles batches."""

    async def handle(self, batch: HeldBatch, deadline: Deadline) -> BatchOutcome:
        """Handle a batch that is closed; must not raise."""
        ...

    def is_alone(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery of which something is recorded is to be handled by itself."""
        ...


class Lanes(Trials):
    """Runs `handle` on deliveries, each key's in stream order, others side by side.

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
        drop: lets go of what would be tried again and is another cell's by now.
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
        drop: Callable[[HeldDelivery], None] = lambda _: None,
        idle: Callable[[], None] = lambda: None,
        batches: BatchHandler | None = None,
        declared: frozenset[str] = frozenset(),
        handle_line: Callable[[Line, Deadline], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(
            None if batches is None else batches.is_alone,
            wait_seconds,
            mode_changed,
            blocked_changed,
            gated_changed,
            declared,
        )
        self._concurrency = concurrency
        self._handle_line = handle_line
        self._hang_timeout_seconds = hang_timeout_seconds
        self._handle = handle
        self._drop = drop
        self._idle = idle
        self._batch_handler = batches
        self._running: set[HeldDelivery | HeldBatch] = set()
        self._halted = False
        self._paused = False
        self._unpaused = asyncio.Event()
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._quiet = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._deadlines: list[Deadline] = []
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def workers(self) -> list[asyncio.Task[None]]:
        """The workers' tasks; they end only by failing, by `stop` or by `end`."""
        return self._workers

    def start(self) -> None:
        """Start as many workers as the concurrency says."""
        self._workers = [
            asyncio.create_task(self._work(), name=f"understudy-lane-{number}")
            for number in range(self._concurrency)
        ]

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
        running = {
            delivery
            for item in self._running
            for delivery in (item.members if isinstance(item, HeldBatch) else (item,))
        }
        self._keep(running)
        return running

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

    def end(self) -> None:
        """End the workers wherever they are; what is held stays in the ledger."""
        for deadline in self._deadlines:
            deadline.end()

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(task, self._hang_timeout_seconds)
        self._deadlines.append(deadline)
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
            if self._ready and self._ready[0] is self._failed_trial:
                # It may be what the service can't take, so that another goes before it.
                self._ready.rotate(-1)
        if self._shut_gates:
            return self._take_past_gates()
        return self._ready.popleft() if self._ready else None

    async def _run_batch(self, batch: HeldBatch, deadline: Deadline) -> None:
        assert self._batches is not None
        assert self._batch_handler is not None
        self._batches.close(batch)
        outcome = await self._batch_handler.handle(batch, deadline)
        self._running.discard(batch)
        if not isinstance(outcome, Settled) and any(member.is_lost for member in batch.members):
            each = [outcome] * len(batch.members) if isinstance(outcome, Held) else outcome
            outcome = [self._without_lost(*pair) for pair in zip(batch.members, each, strict=True)]
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
                if self._without_lost(member, its) is not SETTLED:
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

    def _without_lost(self, delivery: HeldDelivery, outcome: Outcome | Back) -> Outcome | Back:
        """Return an outcome, and have done with a delivery that would stay though it is lost."""
        if outcome is SETTLED or not delivery.is_lost:
            return outcome
        self._drop(delivery)
        return SETTLED

    def _finish(self, delivery: HeldDelivery, outcome: Outcome) -> None:
        if delivery.is_lost and outcome is not SETTLED:
            self._drop(delivery)
            outcome = SETTLED
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
