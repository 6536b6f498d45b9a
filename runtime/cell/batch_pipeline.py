"""From a batch to the settlement of its members: one run of the handler, then publish, ack, or what failed.

A member is settled as a single delivery is. What differs is the order of keys: when one stays, those of its
key that come after it in the batch stay with it, whatever the handler did with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence

import structlog

from understudy.actors.errors import BrokerError, CircuitOpen
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.calls import Calls
from understudy.runtime.cell.context import CellBatchContext
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import Failures, error_text, held_by, is_expected
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.outcomes import BACK, SETTLED, Again, Back, BatchOutcome, Outcome
from understudy.runtime.cell.outputs import BatchOutputs, Collected
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.telemetry.trace import current_trace


class BatchPipeline:
    """Handles one batch at a time per lane; never raises.

    Args:
        calls: runs the handlers.
        failures: settles what has failed.
        outputs: returns what publishes for a batch's members.
        settlement: writes the acks.
        acknowledge: acks and returns when the server has confirmed it, where that is asked for.
        marks: knows what was handled before, where that is asked for.
        mailbox, ledger, status: what the cell holds and says.
        breakers: the cell's.
        settled: called when the mailbox has room again.
        decode: decodes a delivery, or notes that it can't be.
        readable: called when a batch could be read.
        stop: has the cell stop itself.
    """

    def __init__(
        self,
        *,
        calls: Calls,
        failures: Failures,
        outputs: Callable[[Sequence[HeldDelivery]], BatchOutputs],
        settlement: Settlement,
        acknowledge: Callable[[HeldDelivery], Awaitable[None]] | None,
        marks: Marks | None,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        breakers: Breakers,
        settled: Callable[[], None],
        decode: Callable[[HeldDelivery, HandlerSpec], None],
        readable: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self._stop = stop
        self._calls = calls
        self._failures = failures
        self._outputs = outputs
        self._settlement = settlement
        self._acknowledge = acknowledge
        self._marks = marks
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._breakers = breakers
        self._settled = settled
        self._decode = decode
        self._readable = readable
        self._log = structlog.get_logger("understudy.actor")

    def is_alone(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery is to be handled by itself."""
        return self._failures.is_alone(delivery)

    async def handle(self, batch: HeldBatch, deadline: Deadline) -> BatchOutcome:
        """Handle a batch and settle its members, or say which of them stay."""
        if self._marks is None:
            return await self._handle(batch, deadline)
        return await self._marks.handle_batch(batch, lambda chosen: self._handle(chosen, deadline))

    async def _handle(self, batch: HeldBatch, deadline: Deadline) -> BatchOutcome:
        # What is logged here is about many deliveries; the worker's last one isn't among them.
        current_trace.set(None)
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
        outputs = self._outputs(members)
        context = None
        if handler.wants_context:
            context = CellBatchContext(members, self._breakers, self._log, outputs.send, self._stop)
        handling = self._ledger.handling
        for member in members:
            handling(member.slot)
        try:
            result = await self._calls.run(handler, events, context, deadline)
        except asyncio.CancelledError:
            # Ours alone: every other one has been made an error.
            raise
        # A handler may raise anything, and that is what retries are for; one that exits is no better.
        except BaseException as error:  # noqa: BLE001
            return await self._raised(batch, error, None if context is None else context.failed_trial)
        finally:
            self._count_published(outputs)
        if result is None and (context is None or not (context.failures or context.collected)):
            await self._ack(members)
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
        held = held_by(error, failed_trial)
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
        await self._ack(handled)
        errors = [*([] if context is None else context.failures.values()), *problems.values()]
        if of_all is not None:
            errors.append(of_all)
        if errors:
            failed_trial = None if context is None else context.failed_trial
            await self._failures.judge(errors, failed_trial, partly=bool(handled))
        return _of_all(outcomes)

    async def _ack(self, members: Sequence[HeldDelivery]) -> None:
        if self._marks is not None:
            members = await self._marks.mark_all(members)
        if self._acknowledge is not None:
            await asyncio.gather(*map(self._acknowledge, members))
        done = self._mailbox.done
        for member in members:
            done(member)
        self._status.count("handled", len(members))
        self._status.count("acked", len(members))
        # Last, since it says that there is room again.
        if self._acknowledge is not None:
            self._settled()
        else:
            self._settlement.ack_all([member.reply for member in members])

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
