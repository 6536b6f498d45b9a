"""Handles deliveries of an actor with state: run, commit, publish, ack.

What waits of one key is handled together, each on what the one before it has left, and stored by one
compare-and-set: the values, the sequences that are in them, and what the handlers have published. Only then
that is sent, and only then are they acked. So a delivery that comes again either finds itself in the state,
and what it has published is sent again under the same ids; or its handler runs again, as if never before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.admission import Admission
from understudy.runtime.cell.asks import Asks
from understudy.runtime.cell.context import CellContext
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import error_text
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.line import Line
from understudy.runtime.cell.line_work import Failure, LineWork, Run
from understudy.runtime.cell.marking import again_of
from understudy.runtime.cell.outcomes import BACK, SETTLED, Back, Outcome
from understudy.runtime.cell.outputs import Cause, Outputs, enqueue
from understudy.runtime.cell.state import Message, States
from understudy.runtime.cell.workbench import Workbench
from understudy.runtime.jetstream.asked import is_reply
from understudy.runtime.jetstream.schedules import Timers
from understudy.runtime.stores.state import Ack, Conflict
from understudy.runtime.telemetry.trace import current_trace

if TYPE_CHECKING:
    from understudy.runtime.cell.traced import Tracer
    from understudy.runtime.telemetry.open_span import OpenSpan

# A commit is shared by what is handled in so short a time, so that none waits long for those behind it.
SHARE_SECONDS = 0.002
MAX_SHARED = 256


class StatePipeline:
    """Handles one line at a time per lane; never raises.

    Args:
        bench: the cell's.
        is_ready: whether a delivery's handler is to be run, as far as that is known without asking anybody.
        open_: settles a delivery that has no handler to run, or says that it stays; None if it is to be run.
        expire: settles what somebody has asked for who waits no longer.
        outputs: makes the outputs of a delivery.
        states: the actor's.
        timers: the actor's.
        asks: asks and answers.
    """

    def __init__(
        self,
        bench: Workbench,
        *,
        is_ready: Callable[[HeldDelivery], bool],
        open_: Callable[[HeldDelivery], Awaitable[Outcome | None]],
        expire: Callable[[HeldDelivery], Awaitable[Outcome]],
        outputs: Callable[[Cause], Outputs],
        states: States,
        timers: Timers,
        asks: Asks,
    ) -> None:
        self._bench = bench
        self._window = bench.window
        self._ledger = bench.ledger
        self._status = bench.status
        self._failures = bench.failures
        self._marks = bench.marks
        self._acknowledge = bench.acknowledge
        self._admission = Admission(
            is_ready=is_ready,
            open_=open_,
            expire=expire,
            marks=bench.marks,
            states=states,
            failures=bench.failures,
        )
        self._asks = asks
        self._outputs = outputs
        self._states = states
        self._timers = timers
        self._meter = bench.meter
        self._log = structlog.get_logger("understudy.actor").bind()
        self._tasks: set[asyncio.Task[None]] = set()
        # Set where deliveries are traced.
        self.tracer: Tracer | None = None

    async def handle(self, line: Line, deadline: Deadline) -> None:
        """Run the handlers of a line, and see to it that it is settled."""
        work = LineWork(line)
        await self._handle_members(work, deadline)
        if not work.commits:
            self._go_on(work)
            return
        assert work.state is not None
        committing = self._begin_commit(work)
        try:
            answer = self._states.commit(work.state)
        except BrokerError as problem:
            if committing is not None:
                committing.end(problem)
            self._rerun(work, problem)
            return
        if committing is not None:
            answer.add_done_callback(committing.answered)
        answer.add_done_callback(partial(self._committed, work))
        if self._window.is_full:
            # The lane waits, so that what waits to be written stays bounded.
            await self._window.entered()

    def _committed(self, work: LineWork, answer: asyncio.Future[Ack]) -> None:
        state = work.state
        assert state is not None
        try:
            try:
                self._states.committed(state, answer)
            except (Conflict, BrokerError) as problem:
                self._rerun(work, problem)
            else:
                self._status.count("committed")
                work.committed(self._status.counts)
                self._go_on(work)
        except BaseException as error:  # noqa: BLE001
            work.line.fail(error)

    def _go_on(self, work: LineWork) -> None:
        """Do what is left when all is stored."""
        if work.is_quiet and self._acknowledge is None:
            self._ack([run.delivery for run in work.runs])
            self._settle(work)
            return
        task = asyncio.get_running_loop().create_task(self._finish(work), name="understudy-line")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(work.line.ended)

    def _settle(self, work: LineWork) -> None:
        if work.state is not None:
            self._states.give_back(work.state)
        self._end_claims(work)
        if not work.outcomes:
            self._end_spans(work)
            work.line.settle(SETTLED)
            return
        for run in work.runs:
            work.outcomes.setdefault(run.delivery, SETTLED)
        self._end_spans(work)
        work.line.settle(work.all_outcomes())

    def _begin_commit(self, work: LineWork) -> OpenSpan | None:
        """Begin the span of a commit below the first delivery's that is traced, linked to the others'."""
        if self.tracer is None:
            return None
        traced = [run.delivery for run in work.runs if run.delivery.span is not None]
        if not traced or traced[0].span is None:
            return None
        return traced[0].span.committing(self.tracer.links_to(traced[1:]), len(work.runs))

    def _end_spans(self, work: LineWork) -> None:
        if self.tracer is not None:
            for member in work.line.members:
                self.tracer.end(member, work.outcomes.get(member, BACK) if work.outcomes else SETTLED)

    async def _handle_members(self, work: LineWork, deadline: Deadline) -> None:
        """Run the handlers of a line, until one of its members stays or the first has waited long enough."""
        line, admission = work.line, self._admission
        until = time.monotonic() + SHARE_SECONDS
        delivery: HeldDelivery | None = line.members[0]
        while delivery is not None:
            current_trace.set(delivery)
            if self.tracer is not None and self.tracer.samples(delivery):
                self.tracer.begin(delivery)
            outcome: Outcome | Back | None = None
            if delivery.is_handled:
                # Nothing but its mark and its ack is missing.
                work.add(Run(delivery))
            else:
                if not admission.is_admitted(work, delivery):
                    outcome = await admission.admit(work, delivery)
                if outcome is None:
                    await self._run(work, delivery, deadline)
                    if work.failure is not None:
                        return
                else:
                    work.outcomes[delivery] = outcome
                    if outcome is not SETTLED:
                        return
            if time.monotonic() > until or len(line.members) >= MAX_SHARED:
                return
            if (
                work.sends
                and work.state is not None
                and not work.state.has_room(self._bench.broker.max_payload)
            ):
                return
            delivery = line.next()

    async def _run(self, work: LineWork, delivery: HeldDelivery, deadline: Deadline) -> None:
        """Run a handler, and take what it made of the state."""
        state = work.state
        if state is not None and delivery.sequence in state.applied:
            self._log.info("already applied", sequence=delivery.sequence, subject=delivery.subject)
            self._status.count("already_applied")
            messages = state.unsent.get(delivery.sequence, ())
            if delivery.span is not None:
                delivery.span.note("already_applied", published_again=len(messages))
            work.add(Run(delivery, messages, is_repeated=True))
            return
        handler = delivery.handler
        assert handler is not None
        outputs = self._outputs(delivery)
        context = None
        if handler.wants_context:
            value = None if state is None else state.value
            context = CellContext(
                delivery,
                self._bench.breakers,
                self._log,
                outputs.send,
                self._bench.stop,
                self._timers.cancel,
                self._asks.ask,
                value,
            )
        self._ledger.handling(delivery.slot)
        began = time.monotonic()
        try:
            result = await self._bench.calls.run(handler, delivery.event, context, deadline)
            answer = None
            if handler.reply is not None:
                answer, result = self._asks.answer(delivery, handler.reply, result), None
            messages = self._encode(outputs, context, result)
            if answer is not None:
                messages = [*messages, answer]
            if context is not None and context.touched:
                assert state is not None
                state.apply(
                    delivery.sequence,
                    messages,
                    self._bench.broker.max_payload,
                    mark="" if delivery.mark is None else delivery.mark.name,
                )
                work.commit(delivery, context.counter, context.stored)
        except asyncio.CancelledError:
            # Ours alone: every other one has been made an error.
            raise
        # A handler may raise anything, and that is what retries are for; one that exits is no better.
        except BaseException as error:  # noqa: BLE001
            if state is not None:
                state.undo()
            failed_trial = None if context is None else context.failed_trial
            work.failure = Failure(delivery, handler, error, failed_trial)
        else:
            work.add(Run(delivery, messages))
        finally:
            self._meter.ran(time.monotonic() - began)
            # From now on its process doesn't die of it.
            self._ledger.held(delivery.slot)
            if outputs.sent:
                self._status.count("published", outputs.sent)

    def _encode(self, outputs: Outputs, context: CellContext | None, result: object) -> Sequence[Message]:
        collected = () if context is None else context.collected
        if result is None and not collected:
            return ()
        messages = outputs.encode_all(collected, result)
        for message in messages:
            # What can't be sent is better found out before it is stored.
            self._window.check(*message)
        return messages

    def _rerun(self, work: LineWork, problem: BaseException) -> None:
        """Have everything handled again that isn't stored, on what is: the state isn't given back."""
        for member in work.line.members:
            # A handler may have changed it.
            member.event = None
        if isinstance(problem, Conflict):
            self._status.count("conflicts")
            self._log.info("state was changed by another", error=str(problem))
        else:
            first = work.runs[0].delivery
            work.outcomes[first] = self._admission.postpone(first, problem)
        for run in work.runs:
            if run.delivery.span is not None:
                run.delivery.span.note("not_committed", error=error_text(problem))
        self._end_claims(work)
        self._end_spans(work)
        work.line.settle(work.all_outcomes())

    def _end_claims(self, work: LineWork) -> None:
        for member in work.claimed:
            # Of what is handled they have ended.
            if not member.is_handled:
                assert self._marks is not None
                self._marks.failed(member)

    async def _finish(self, work: LineWork) -> None:
        """Send what was published, ack, and settle what has failed."""
        runs, state = work.runs, work.state
        if work.sends:
            await self._send(runs)
        problems = []
        for run in runs:
            if run.problem is not None:
                problems.append(run.problem)
            elif run.messages and state is not None:
                state.unsent.pop(run.delivery.sequence, None)
        done = [run.delivery for run in runs if run.problem is None]
        if self._marks is not None:
            done = await self._mark(self._marks, work, done)
        if self._acknowledge is not None:
            await asyncio.gather(*map(self._acknowledge, done))
        self._ack(done)
        if problems:
            await self._fail_unsent(work, problems)
        if work.failure is not None:
            await self._fail(work, work.failure)
        self._settle(work)

    async def _mark(self, marks: Marks, work: LineWork, done: list[HeldDelivery]) -> list[HeldDelivery]:
        """Mark what is done; return what may be acked."""
        own = [delivery for delivery in done if delivery.is_handled or delivery in work.claimed]
        unmarked = set(own).difference(await marks.mark_all(own))
        for delivery in done:
            if delivery in unmarked:
                work.outcomes[delivery] = again_of(delivery)
            elif work.state is not None:
                work.state.unmarked.pop(delivery.sequence, None)
        return [delivery for delivery in done if delivery not in unmarked]

    async def _fail_unsent(self, work: LineWork, problems: list[BaseException]) -> None:
        for run in work.runs:
            delivery = run.delivery
            if run.problem is not None:
                assert delivery.handler is not None
                current_trace.set(delivery)
                work.outcomes[delivery] = await self._failures.failed(
                    delivery, delivery.handler, run.problem, None
                )
                if delivery.is_given_up and work.state is not None:
                    # As of any letter, there is to be no mark: its event may come again.
                    work.state.unmarked.pop(delivery.sequence, None)
        await self._failures.judge(problems, None, partly=len(problems) < len(work.runs))

    async def _fail(self, work: LineWork, failure: Failure) -> None:
        """Settle what has failed, unless an earlier one of its key stays, which it must not pass."""
        if any(outcome is not SETTLED for outcome in work.outcomes.values()):
            return
        work.outcomes[failure.delivery] = await self._failures.failed(
            failure.delivery, failure.handler, failure.error, failure.failed_trial
        )
        await self._failures.judge([failure.error], failure.failed_trial)

    async def _send(self, runs: list[Run]) -> None:
        confirmed: list[tuple[Run, asyncio.Future[Any]]] = []
        for run in runs:
            try:
                for message in run.messages:
                    if is_reply(message[2]):
                        continue
                    future = await enqueue(self._window, message, run.delivery.span)
                    confirmed.append((run, future))
            except BrokerError as error:
                run.problem = error
        sent = repeated = 0
        answers = await asyncio.gather(*(future for _, future in confirmed), return_exceptions=True)
        for (run, _), answer in zip(confirmed, answers, strict=True):
            if isinstance(answer, BaseException):
                run.problem = run.problem or answer
            else:
                sent += 1
                repeated += run.is_repeated
        for run in runs:
            for message in () if run.problem is not None else run.messages:
                if is_reply(message[2]):
                    await self._asks.send(run.delivery, message)
        self._status.count("published", sent)
        self._status.count("published_again", repeated)

    def _ack(self, deliveries: list[HeldDelivery]) -> None:
        self._meter.handled_together(deliveries)
        for delivery in deliveries:
            self._bench.mailbox.done(delivery)
        # Last, since it says that there is room again.
        if self._acknowledge is not None:
            self._bench.settled()
        else:
            self._bench.settlement.ack_all([delivery.reply for delivery in deliveries])
