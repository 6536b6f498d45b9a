"""Runs sagas: an actor whose state is where each of them is, and whose handlers take each one step on.

What drives a saga is always a delivery: what starts it, a reply, or a signal that it has sent to itself. Each
handler run makes one change at most. It is stored, with the signal that has the next step done, by one
compare-and-set, and that signal goes out only then: so the next step begins when the one before is stored,
and whoever dies leaves a delivery that is taken over, or a record that says what was sent.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import structlog

from understudy.actors.actor import Actor
from understudy.actors.errors import BulkheadFull, StateError
from understudy.actors.event import Event
from understudy.actors.handlers import HandlerSpec
from understudy.actors.outcomes import Reject
from understudy.actors.saga import Saga, SagaContext, SagaRecord, Signal
from understudy.actors.saga_position import (
    Abandoned,
    Done,
    Failed,
    Halted,
    Outcome,
    Phase,
    Position,
    Replied,
    Resumed,
    TimedOut,
    advance,
    begin,
)
from understudy.actors.saga_step import Step
from understudy.actors.state import State
from understudy.runtime.app import ResolvedChild
from understudy.runtime.cell.context import CellContext
from understudy.runtime.cell.failures import error_text
from understudy.runtime.sagas import SIGNAL, signal_subject

_MAX_ERROR_CHARACTERS = 1000
_ENTRIES = {
    Phase.COMPLETED: ("info", "saga completed"),
    Phase.COMPENSATED: ("info", "saga compensated"),
    Phase.ABANDONED: ("warning", "saga abandoned"),
    Phase.STUCK: ("error", "saga is stuck"),
}


class SagaHost(Actor):
    """What a cell runs in a saga's place: the saga's hooks, and a handler for each of its events.

    Args:
        saga: the user's instance.
        child: its declaration.
        app: the app's name.
    """

    def __init__(self, saga: Saga, child: ResolvedChild, app: str) -> None:
        runner = _Runner(saga, child, app)
        handlers: dict[str, Any] = {SIGNAL: runner.signalled}
        for name, handler in runner.spec.handlers.items():
            run = runner.started if name in runner.spec.starts else runner.replied
            handlers[name] = partial(run, handler)
        # By the names of the user's own methods, which is how the cell calls them.
        vars(self).update(handlers)
        self.on_stop = saga.on_stop  # type: ignore[method-assign]


class _Runner:
    """Takes sagas from where they are to where an outcome takes them."""

    def __init__(self, saga: Saga, child: ResolvedChild, app: str) -> None:
        self._saga = saga
        self.spec = type(saga).__saga__
        self._prefix = f"{app}.{child.spec.name}"
        self._max_attempts = child.spec.options.retry.max_attempts
        self._max_crashes = child.spec.options.retry.max_crashes
        self._subject = signal_subject(child.consumer.stream, child.consumer.durable)
        key = child.spec.options.key_function()
        assert key is not None
        self._id_of = key
        self._log = structlog.get_logger("understudy.saga")

    async def started(self, handler: HandlerSpec, event: Any, ctx: CellContext) -> None:
        """Begin a saga, unless there is one of its id, or the user's method wants none."""
        record: SagaRecord = ctx.look()
        saga_id = str(self._id_of(event))
        ctx.log_with(saga=saga_id)
        if record.id:
            self._log.info("saga exists already", phase=record.position.phase)
            return
        state = await getattr(self._saga, handler.method)(event)
        if state is None:
            return
        if not isinstance(state, self.spec.codec.type):
            wanted = self.spec.codec.type.__qualname__
            raise TypeError(
                f"{handler.method} returned {type(state).__qualname__}; return {wanted}, the saga's state, "
                f"or None to start none"
            )
        record = ctx.state
        record.id, record.started_at = saga_id, time.time()
        self._store(ctx, record, begin(self.spec.plan), state)

    async def replied(self, handler: HandlerSpec, event: Any, ctx: CellContext) -> None:
        """Take a reply, if the saga waits for it."""
        record: SagaRecord = ctx.look()
        position = record.position
        step = self.spec.replies[handler.method]
        if not (record.id and position.is_active and position.waiting and position.step == step):
            # One saga's replies may be read by others, which know nothing of it.
            if record.id:
                ctx.log_with(saga=record.id)
                self._log.info("reply dropped", reply=handler.method, phase=position.phase)
            return
        context = self._context(ctx, record, self.spec.steps[step])
        ctx.log_with(saga=record.id, step=step, direction=position.direction)
        outcome: Outcome = Replied(position.turn)
        reply = getattr(self._saga, handler.method)
        try:
            await (reply(event, context) if handler.wants_context else reply(event))
        except Reject as refusal:
            outcome = Failed(position.turn, refusal.reason, did_nothing=True)
        self._take(ctx, record, outcome, context)

    async def signalled(self, signal: Signal, ctx: CellContext) -> None:
        """Do what a signal asks for, unless that is done already."""
        record: SagaRecord = ctx.look()
        position = record.position
        ctx.log_with(saga=signal.saga)
        if not record.id:
            self._log.warning("no such saga", signal=signal.kind)
        elif signal.kind == "go":
            if signal.turn == position.turn and position.is_active and not position.waiting:
                await self._run_step(ctx, record)
        elif signal.kind == "timeout":
            self._take(ctx, record, TimedOut(signal.turn))
        elif signal.kind == "abandon":
            self._take(ctx, record, Abandoned(signal.reason))
        elif signal.kind == "resume":
            if position.is_active:
                # Its signal may be a dead letter, or its timer be gone: what comes twice does no harm.
                self._send_on(ctx, record.id, position)
            else:
                self._take(ctx, record, Resumed())

    async def _run_step(self, ctx: CellContext, record: SagaRecord) -> None:
        position = record.position
        ctx.log_with(saga=record.id, step=position.step, direction=position.direction)
        attempts, turn = ctx.attempts, position.turn
        step = self.spec.steps.get(position.step)
        method = None if step is None else step.action if position.direction == "do" else step.compensation
        if step is None or method is None:
            problem = f"the step {position.step!r} is no longer declared with what undoes it"
            self._take(ctx, record, Halted(turn, problem))
            return
        if attempts.crashes >= self._max_crashes:
            problem = f"{step.name}: its process died {attempts.crashes} times: {attempts.error}"
            self._take(ctx, record, Halted(turn, problem))
            return
        max_attempts = step.max_attempts or self._max_attempts
        if attempts.failed >= max_attempts:
            # It has returned, and then what it has made could not be stored or sent.
            self._take(ctx, record, Failed(turn, attempts.error[:_MAX_ERROR_CHARACTERS]))
            return
        try:
            context = self._context(ctx, record, step)
        except StateError as error:
            # A version that can read it goes on from here.
            self._take(ctx, record, Halted(turn, f"{step.name}: {error}"[:_MAX_ERROR_CHARACTERS]))
            return
        outcome: Outcome = Done(turn)
        event = None
        try:
            async with asyncio.timeout(step.timeout_seconds) as timeout:
                event = await method(self._saga, context)
            self._check_returned(step, position, event)
        except BulkheadFull:
            # Tried again; nothing is counted.
            raise
        except Reject as refusal:
            outcome = Failed(position.turn, refusal.reason, did_nothing=True)
        # A user's code may raise anything, a cancellation of its own too; ours passes.
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            if context.attempt < max_attempts or ctx.is_held_by(error):
                raise
            text = f"took longer than {step.timeout_seconds:g} s" if timeout.expired() else error_text(error)
            outcome = Failed(position.turn, text[:_MAX_ERROR_CHARACTERS])
        if isinstance(outcome, Done) and event is not None:
            ctx.publish(event, idempotency_key=context.idempotency_key)
        self._take(ctx, record, outcome, context)

    def _check_returned(self, step: Step, position: Position, event: Event | None) -> None:
        given: object = event
        if given is not None and not isinstance(given, Event):
            raise TypeError(
                f"step {step.name!r} returned {type(given).__qualname__}; return an Event or None"
            )
        if given is None and step.replies and position.direction == "do":
            raise TypeError(f"step {step.name!r} waits for a reply, but returned no event to be replied to")

    def _context(self, ctx: CellContext, record: SagaRecord, step: Step) -> SagaContext[State]:
        state = self.spec.codec.decode(record.state, record.version)
        key = f"{self._prefix}.{record.id}.{step.name}.{record.position.direction}"
        return SagaContext(ctx, state, saga_id=record.id, step=step.name, key=key)

    def _take(
        self,
        ctx: CellContext,
        record: SagaRecord,
        outcome: Outcome,
        context: SagaContext[State] | None = None,
    ) -> None:
        """Store where an outcome takes a saga, if it takes it anywhere."""
        position = advance(self.spec.plan, record.position, outcome)
        if position is record.position:
            return
        kept = None
        # What a failed run has changed or published is dropped.
        if context is not None and isinstance(outcome, Done | Replied):
            kept = context.state
            for event in context.published:
                ctx.publish(event)
        self._store(ctx, ctx.state, position, kept)

    def _store(self, ctx: CellContext, record: SagaRecord, position: Position, state: State | None) -> None:
        before = record.position
        record.position, record.changed_at = position, time.time()
        if state is not None:
            record.state, _ = self.spec.codec.encode(state)
            record.version = self.spec.codec.version
        if position.is_active:
            self._send_on(ctx, record.id, position)
        if position.phase is not before.phase or not position.turn:
            ctx.counter = f"saga_{position.phase}"
        if position.phase in _ENTRIES:
            level, entry = _ENTRIES[position.phase]
            # Named here, too: what has the same fields counts as a repeat, which is left out.
            fields = {"saga": record.id, "error": position.error, "problem": position.problem}
            ctx.stored = partial(getattr(self._log, level), entry, **fields)
        elif position.phase is Phase.COMPENSATING and before.phase is Phase.RUNNING:
            ctx.stored = partial(self._log.warning, "saga compensates", saga=record.id, error=position.error)

    def _send_on(self, ctx: CellContext, saga_id: str, position: Position) -> None:
        """Have the saga's next step done, or an end put to its waiting."""
        if not position.waiting:
            ctx.publish(Signal(saga=saga_id, kind="go", turn=position.turn), subject=self._subject)
            return
        step = self.spec.steps.get(position.step)
        ctx.publish(
            Signal(saga=saga_id, kind="timeout", turn=position.turn),
            subject=self._subject,
            delay_seconds=0.0 if step is None else step.reply_timeout_seconds,
            # A saga waits for one reply at a time, so that the next timer takes the place of this one.
            timer=f"saga.{self._prefix}.{saga_id}",
        )
