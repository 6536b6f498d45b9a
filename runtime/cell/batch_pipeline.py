"""From a batch to the settlement of its members: one run of the handler, then publish, ack, or what failed.

A member is settled as a single delivery is. What differs is the order of keys: when one stays, those of its
key that come after it in the batch stay with it, whatever the handler did with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from understudy.actors.errors import BrokerError, CircuitOpen
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.batch_marks import BatchMarks
from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.context import CellBatchContext
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import error_text, is_expected
from understudy.runtime.cell.outcomes import BACK, SETTLED, Again, Back, BatchOutcome, Outcome, held_by
from understudy.runtime.cell.outputs import BatchOutputs, Collected
from understudy.runtime.cell.workbench import Workbench
from understudy.runtime.telemetry.entries import current_batch
from understudy.runtime.telemetry.trace import current_trace

if TYPE_CHECKING:
    from understudy.runtime.cell.traced import Tracer
    from understudy.runtime.telemetry.spans import ProcessSpan


class BatchPipeline:
    """Handles one batch at a time per lane; never raises.

    Args:
        bench: the cell's.
        outputs: returns what publishes for a batch's members, below the batch's span.
        decode: decodes a delivery, or notes that it can't be.
        readable: called when a batch could be read.
    """

    def __init__(
        self,
        bench: Workbench,
        *,
        outputs: Callable[[Sequence[HeldDelivery], ProcessSpan | None], BatchOutputs],
        decode: Callable[[HeldDelivery, HandlerSpec], None],
        readable: Callable[[], None],
    ) -> None:
        self._bench = bench
        self._failures = bench.failures
        self._acknowledge = bench.acknowledge
        self._marks = bench.marks
        self._meter = bench.meter
        self._status = bench.status
        self._ledger = bench.ledger
        self._outputs = outputs
        self._decode = decode
        self._readable = readable
        self._log = structlog.get_logger("understudy.actor").bind()
        # Set where batches are traced.
        self.tracer: Tracer | None = None

    def is_alone(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery is to be handled by itself."""
        return self._failures.is_alone(delivery)

    async def handle(self, batch: HeldBatch, deadline: Deadline) -> BatchOutcome:
        """Handle a batch and settle its members, or say which of them stay."""
        handle = self._handle if self.tracer is None else self._handle_traced
        if self._marks is None:
            return await handle(batch, deadline)
        return await BatchMarks(self._marks).handle(batch, lambda chosen: handle(chosen, deadline))

    async def _handle_traced(self, batch: HeldBatch, deadline: Deadline) -> BatchOutcome:
        """Handle a batch within a span if one of its members is traced."""
        assert self.tracer is not None
        span = self.tracer.begin_batch(batch.members)
        outcome: BatchOutcome | None = None
        try:
            outcome = await self._handle(batch, deadline, span)
        finally:
            if span is not None:
                self.tracer.end_batch(span, batch.members, outcome)
        return outcome

    async def _handle(
        self, batch: HeldBatch, deadline: Deadline, span: ProcessSpan | None = None
    ) -> BatchOutcome:
        # What is logged here is about many deliveries; the worker's last one isn't among them.
        current_trace.set(span)
        token = current_batch.set(batch)
        try:
            return await self._handle_members(batch, deadline, span)
        finally:
            current_batch.reset(token)

    async def _handle_members(
        self, batch: HeldBatch, deadline: Deadline, span: ProcessSpan | None
    ) -> BatchOutcome:
        try:
            early = await self._look_back(batch)
        except BrokerError as error:
            return [self._postpone(batch, error)] * len(batch.members)
        if early is not None:
            return early
        handler, members = batch.handler, batch.members
        events = []
        for member in members:
            if member.event is None:
                self._decode(member, handler)
                if member.decode_error is not None:
                    # It is settled by itself, as what can't be read always is.
                    return [BACK] * len(members)
            events.append(member.event)
        self._readable()
        outputs = self._outputs(members, span)
        context = None
        if handler.wants_context:
            context = CellBatchContext(
                members, self._bench.breakers, self._log, outputs.send, self._bench.stop
            )
        handling = self._ledger.handling
        for member in members:
            handling(member.slot)
        began = time.monotonic()
        try:
            result = await self._bench.calls.run(handler, events, context, deadline)
        except asyncio.CancelledError:
            # Ours alone: every other one has been made an error.
            raise
        # A handler may raise anything, and that is what retries are for; one that exits is no better.
        except BaseException as error:  # noqa: BLE001
            if span is not None:
                span.failed(error, traceback=not is_expected(error))
            return await self._raised(batch, error, None if context is None else context.failed_trial)
        finally:
            self._meter.ran(time.monotonic() - began)
            self._count_published(outputs)
        if result is None and (context is None or not (context.failures or context.collected)):
            await self._ack(members, span)
            return SETTLED
        return await self._returned(batch, outputs, context, result)

    async def _look_back(self, batch: HeldBatch) -> BatchOutcome | None:
        """Read what is recorded of members that were delivered before, and look for one that is to be alone.

        Raises:
            BrokerError: the server did not answer.
        """
        members = batch.members
        if len(members) == 1:
            (member,) = members
            if member.delivery_count > 1 or member.attempts is not None:
                outcome = await self._failures.look_back(member)
                return None if outcome is None else [outcome]
            return None
        unknown = [member for member in members if member.delivery_count > 1 and member.attempts is None]
        if unknown:
            await asyncio.gather(*map(self._failures.read_attempts, unknown))
            if any(map(self._failures.is_alone, unknown)):
                return [BACK] * len(members)
        if all(member.attempts is None for member in members):
            return None
        return self._wait_for(members)

    def _wait_for(self, members: Sequence[HeldDelivery]) -> BatchOutcome | None:
        """Keep the members whose pause isn't over, of each key the first; the rest goes on without them."""
        outcomes: list[Outcome | Back] = []
        keys: set[Hashable] = set()
        for member in members:
            is_first = member.key is None or member.key not in keys
            keys.add(member.key)
            left_seconds = self._failures.take_pause(member) if is_first else 0.0
            outcomes.append(Again(left_seconds) if left_seconds else BACK)
        return None if all(outcome is BACK for outcome in outcomes) else outcomes

    async def _raised(
        self, batch: HeldBatch, error: BaseException, failed_trial: CircuitOpen | None
    ) -> BatchOutcome:
        members = batch.members
        for member in members:
            self._stays(member)
        held = held_by(error, failed_trial, self._bench.breakers)
        if held is not None:
            return held
        if self._failures.is_postponed(error):
            return [self._postpone(batch, error)] * len(members)
        self._log.warning(
            "batch failed",
            handler=batch.handler.method,
            error=error_text(error),
            deliveries=len(members),
            exc_info=None if is_expected(error) else error,
        )
        outcomes: list[Outcome | Back | None] = [None] * len(members)
        failures = dict.fromkeys(range(len(members)), error)
        await self._fail(batch, outcomes, failures, failed_trial, raised=True)
        await self._failures.judge([error], failed_trial)
        return _of_all(outcomes)

    async def _returned(
        self, batch: HeldBatch, outputs: BatchOutputs, context: CellBatchContext | None, result: object
    ) -> BatchOutcome:
        # None for those that are to be acked.
        outcomes: list[Outcome | Back | None] = [None] * len(batch.members)
        collected: dict[int | None, Collected] = {}
        if context is not None:
            if context.failures:
                await self._fail(batch, outcomes, context.failures, context.failed_trial)
            # What has failed or is held back publishes nothing; what belongs to all of them goes out.
            collected = {
                index: events
                for index, events in context.collected.items()
                if index is None or outcomes[index] is None
            }
        problems, of_all = await outputs.send_all(collected, result)
        self._count_published(outputs)
        if of_all is not None and self._failures.is_postponed(of_all):
            again = self._postpone(batch, of_all)
            for index, outcome in enumerate(outcomes):
                if outcome is None:
                    self._stays(batch.members[index])
                    outcomes[index] = again
        elif of_all is not None:
            staying = (index for index, outcome in enumerate(outcomes) if outcome is None)
            await self._fail(batch, outcomes, dict.fromkeys(staying, of_all), None, raised=True)
        elif problems:
            await self._fail(batch, outcomes, problems, None)
        handled = [member for member, outcome in zip(batch.members, outcomes, strict=True) if outcome is None]
        await self._ack(handled, outputs.span)
        errors = [*([] if context is None else context.failures.values()), *problems.values()]
        if of_all is not None:
            errors.append(of_all)
        if errors:
            failed_trial = None if context is None else context.failed_trial
            await self._failures.judge(errors, failed_trial, partly=bool(handled))
        return _of_all(outcomes)

    async def _ack(self, members: Sequence[HeldDelivery], span: ProcessSpan | None) -> None:
        if self._marks is not None:
            members = await self._marks.mark_all(members)
        settling = span.settling("ack") if span is not None and members else None
        if self._acknowledge is not None:
            await asyncio.gather(*map(self._acknowledge, members))
        self._meter.handled_together(members)
        done = self._bench.mailbox.done
        for member in members:
            done(member)
        # Last, since it says that there is room again.
        if self._acknowledge is not None:
            self._bench.settled()
        else:
            self._bench.settlement.ack_all([member.reply for member in members])
        if settling is not None:
            settling.set_count(len(members))
            settling.end()

    async def _fail(
        self,
        batch: HeldBatch,
        outcomes: list[Outcome | Back | None],
        failures: Mapping[int, BaseException],
        failed_trial: CircuitOpen | None,
        *,
        raised: bool = False,
    ) -> None:
        """Settle the members that have failed, and hold back what must not pass them.

        Args:
            batch: of which they are.
            outcomes: what is decided of each; written here.
            failures: by index.
            failed_trial: as in `Failures.failed`.
            raised: whether all have failed alike, so that those that are held back have too.
        """
        lines: dict[Hashable, list[int]] = {}
        for index, member in enumerate(batch.members):
            # A key is a tuple, and so no index.
            lines.setdefault(index if member.key is None else member.key, []).append(index)

        async def fail_line(line: list[int]) -> None:
            shut = False
            for index in line:
                member, outcome = batch.members[index], outcomes[index]
                error = failures.get(index)
                if outcome is not None:
                    shut = shut or outcome is not SETTLED
                elif shut:
                    self._stays(member)
                    if raised and error is not None:
                        await self._failures.failed_behind(member, error)
                    outcomes[index] = BACK
                elif error is not None:
                    self._stays(member)
                    current_trace.set(member)
                    outcomes[index] = outcome = await self._failures.failed(
                        member, batch.handler, error, failed_trial, traceback=not raised
                    )
                    shut = outcome is not SETTLED

        failing = [line for line in lines.values() if not failures.keys().isdisjoint(line)]
        # In tasks, which keep the trace ids of what they log apart.
        await asyncio.gather(*map(fail_line, failing))

    def _postpone(self, batch: HeldBatch, error: BaseException) -> Again:
        self._log.warning(
            "batch postponed",
            handler=batch.handler.method,
            error=error_text(error),
            deliveries=len(batch.members),
        )
        return self._failures.when_the_broker_answers()

    def _stays(self, member: HeldDelivery) -> None:
        """Note that a member isn't handled now; its next run decodes it anew."""
        self._ledger.held(member.slot)
        member.event = None

    def _count_published(self, outputs: BatchOutputs) -> None:
        if sent := outputs.take_sent():
            self._status.count("published", sent)


def _of_all(outcomes: Sequence[Outcome | Back | None]) -> BatchOutcome:
    settled = [SETTLED if outcome is None else outcome for outcome in outcomes]
    return SETTLED if all(outcome is SETTLED for outcome in settled) else settled
