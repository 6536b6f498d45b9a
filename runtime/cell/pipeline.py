"""From a delivery to its settlement: decode, run the handler, publish, then ack, or what failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from understudy.actors.actor import Actor, ActorSpec
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.asks import Asks, is_expired, lateness
from understudy.runtime.cell.batch_pipeline import BatchPipeline
from understudy.runtime.cell.calls import Calls
from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.context import CellContext
from understudy.runtime.cell.counts import QUICK
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import ActorFailed, Broker, Failures
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.meter import QUICK_SECONDS, Meter
from understudy.runtime.cell.outcomes import SETTLED, Again, Finishing, Outcome
from understudy.runtime.cell.outputs import BatchOutputs, Cause, Outputs
from understudy.runtime.cell.routing import Routing
from understudy.runtime.cell.state import States
from understudy.runtime.cell.state_pipeline import StatePipeline
from understudy.runtime.cell.status import Status
from understudy.runtime.cell.workbench import Workbench
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.schedules import Timers
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.stores.attempts import AttemptStore
from understudy.runtime.stores.idempotency import KvMarks
from understudy.runtime.telemetry.trace import current_trace

NO_HANDLER_DELAY_SECONDS = 30.0
# A bad deploy must not empty the backlog into the dead letters.
MAX_CONSECUTIVE_UNDECODABLE = 100
_clock = time.monotonic


class Pipeline:
    """Handles one delivery at a time per lane; never raises.

    Args:
        actor: the user's instance.
        spec: its declaration, options overridden.
        identity: whose deliveries these are.
        broker, window, settlement, attempts: the data path.
        mark_store: where the actor's idempotency has its marks, if it has any on the server.
        mailbox, ledger, status: what the cell holds and says.
        breakers: the cell's.
        states: the actor's; None if it has none.
        timers: the actor's.
        asks: asks and answers.
        settled: called when the mailbox has room again.
        marks_away: as of `Marks`.
        undecodable: called when too many deliveries in a row could not be read.
        actor_failed: called when the actor itself has failed.
        stop: has the cell stop itself.

    Attributes:
        prepare: finds out how a delivery is to be handled, as of `Routing`; never raises.
        handle: handles a delivery and settles it, or says why it stays; never raises.
        batches: handles what goes in batches; None if no handler takes any.
        stateful: handles what an actor with state has; None if it has none.
    """

    def __init__(
        self,
        *,
        actor: Actor,
        spec: ActorSpec,
        identity: Identity,
        broker: Broker,
        window: PublishWindow,
        settlement: Settlement,
        attempts: AttemptStore,
        mark_store: KvMarks | None,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        breakers: Breakers,
        states: States | None,
        timers: Timers,
        asks: Asks,
        settled: Callable[[], None],
        marks_away: Callable[[str], None],
        undecodable: Callable[[str], None],
        actor_failed: Callable[[ActorFailed], Awaitable[None]],
        stop: Callable[[], None],
    ) -> None:
        self._stop = stop
        self._broker = broker
        self._window = window
        self._timers = timers
        self._asks = asks
        self._settlement = settlement
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._breakers = breakers
        self._settled = settled
        self._undecodable = undecodable
        self._undecodable_in_a_row = 0
        self._double_ack = spec.options.double_ack
        self._meter = Meter(status)
        self._words = self._meter.words
        self._quick = self._words[QUICK]
        self._id_prefix = f"{identity.durable}.{identity.stream_created}"
        self._source = f"{identity.app}/{identity.actor}"
        self._calls = Calls(actor, spec)
        self._run = self._calls.run
        self._failures = Failures(
            spec=spec,
            identity=identity,
            broker=broker,
            window=window,
            settlement=settlement,
            attempts=attempts,
            mailbox=mailbox,
            status=status,
            breakers=breakers,
            settled=settled,
            handled=lambda: self._meter.handled,
            actor_failed=actor_failed,
            asks=asks,
        )
        self._log = structlog.get_logger("understudy.actor").bind()
        self._warned_subjects: set[str] = set()
        self._marks: Marks | None = None
        if spec.options.idempotency is not None:
            self._marks = Marks(
                policy=spec.options.idempotency,
                store=mark_store,
                identity=identity,
                mailbox=mailbox,
                ledger=ledger,
                status=status,
                acknowledge=self._acknowledge if self._double_ack else None,
                settle=self._let_go_handled,
                skip=self._let_go_duplicate,
                away_changed=marks_away,
            )
        self.handle: Callable[[HeldDelivery, Deadline], Awaitable[Outcome | Finishing]] = (
            self._handle if self._marks is None else self._handle_once
        )
        self._settles_later = self._double_ack or self._marks is not None
        self._routing = Routing(spec, identity.durable, self._marks, has_state=states is not None)
        self._decode = self._routing.decode
        self.prepare: Callable[[HeldDelivery], None] = self._routing.prepare
        bench = Workbench(
            broker=broker,
            window=window,
            settlement=settlement,
            mailbox=mailbox,
            ledger=ledger,
            status=status,
            meter=self._meter,
            calls=self._calls,
            failures=self._failures,
            breakers=breakers,
            marks=self._marks,
            acknowledge=self._acknowledge if self._double_ack else None,
            settled=settled,
            stop=stop,
        )
        self.batches: BatchPipeline | None = None
        if any(handler.batch is not None for handler in spec.handlers):
            self.batches = BatchPipeline(
                bench,
                outputs=lambda members, span: BatchOutputs(window, members, self._outputs, span),
                decode=self._decode,
                readable=self._readable,
            )
        self.stateful: StatePipeline | None = None
        if states is not None:
            self.stateful = StatePipeline(
                bench,
                is_ready=self._is_ready,
                open_=self._open,
                expire=self._expire,
                outputs=self._outputs,
                states=states,
                timers=timers,
                asks=asks,
            )

    @property
    def unconfirmed(self) -> int:
        """How many published messages are not confirmed yet."""
        return len(self._window)

    async def _handle(self, delivery: HeldDelivery, deadline: Deadline) -> Outcome | Finishing:
        """Handle a delivery and settle it, or say why it stays."""
        current_trace.set(delivery)
        outcome = await self._open(delivery)
        if outcome is not None:
            return outcome
        handler = delivery.handler
        assert handler is not None
        outputs = context = None
        if handler.wants_context:
            outputs = self._outputs(delivery)
            context = CellContext(
                delivery,
                self._breakers,
                self._log,
                outputs.send,
                self._stop,
                self._timers.cancel,
                self._asks.ask,
            )
        self._ledger.handling(delivery.slot)
        began = _clock()
        try:
            result = await self._run(handler, delivery.event, context, deadline)
            answer = None
            if handler.reply is not None:
                answer, result = self._asks.answer(delivery, handler.reply, result), None
            if result is not None or context is not None:
                outputs = outputs or self._outputs(delivery)
                await outputs.send_all(() if context is None else context.collected, result)
            if answer is not None:
                await self._asks.send(delivery, answer)
        except asyncio.CancelledError:
            # Ours alone: every other one has been made an error.
            raise
        # A handler may raise anything, and that is what retries are for; one that exits is no better.
        except BaseException as failure:  # noqa: BLE001
            self._meter.ran(_clock() - began)
            self._ledger.held(delivery.slot)
            failed_trial = None if context is None else context.failed_trial
            outcome = await self._failures.failed(delivery, handler, failure, failed_trial)
            await self._failures.judge([failure], failed_trial)
            return outcome
        finally:
            if outputs is not None and outputs.sent:
                self._status.count("published", outputs.sent)
        seconds = _clock() - began
        if self._settles_later:
            self._meter.ran(seconds)
            return await self._settle_later(delivery)
        # Before it leaves the ledger: a death in between has it handled and counted again.
        if seconds <= QUICK_SECONDS:
            # To read it there takes as long as to write it.
            self._quick = quick = self._quick + 1
            self._words[QUICK] = quick
            meter = self._meter
            meter.quick_seconds += seconds
            meter.last = delivery
        else:
            self._meter.ran_and_handled(delivery, seconds)
        self._mailbox.done(delivery)
        # Last, since it may say at once that there is room again.
        self._settlement.ack(delivery.reply)
        return SETTLED

    def _is_ready(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery can be handled as it is: it is decoded, and nothing is known of it."""
        if delivery.event is None or delivery.decode_error is not None:
            return False
        self._undecodable_in_a_row = 0
        if delivery.handler is not None and delivery.handler.reply is not None:
            return False
        return delivery.delivery_count <= 1 and delivery.attempts is None

    async def _open(self, delivery: HeldDelivery) -> Outcome | None:
        """Settle a delivery that has no handler to run, or say why it stays; None if it is to be run."""
        handler = delivery.handler
        if handler is None:
            return await self._no_handler(delivery)
        # What a state has already goes out again first.
        if handler.reply is not None and self.stateful is None and is_expired(delivery):
            return await self._expire(delivery)
        if delivery.delivery_count > 1 or delivery.attempts is not None:
            outcome = await self._failures.look_back(delivery)
            if outcome is not None:
                return outcome
        # An event whose key can't be told is decoded, and unreadable all the same.
        if delivery.event is None and delivery.decode_error is None:
            self._decode(delivery, handler)
        if delivery.decode_error is not None:
            return await self._unreadable(delivery, str(delivery.decode_error))
        self._undecodable_in_a_row = 0
        return None

    async def _handle_once(self, delivery: HeldDelivery, deadline: Deadline) -> Outcome | Finishing:
        """Handle a delivery unless an event of its key was handled before, and settle it."""
        marks = self._marks
        # Without a mark it is unreadable, or nobody's.
        if marks is None or delivery.mark is None:
            return await self._handle(delivery, deadline)
        current_trace.set(delivery)
        if delivery.is_handled:
            return await marks.handled(delivery)
        known = await marks.begin(delivery)
        if known is not None:
            return known
        outcome = await self._handle(delivery, deadline)
        if not delivery.is_handled:
            marks.failed(delivery)
        return outcome

    async def _settle_later(self, delivery: HeldDelivery) -> Outcome | Finishing:
        """Settle a delivery that is handled, when its mark or its ack is confirmed."""
        if self._marks is not None:
            return await self._marks.handled(delivery)
        await self._acknowledge(delivery)
        self._let_go_handled(delivery)
        return SETTLED

    def report(self) -> None:
        """Count what was handled since the last time."""
        self._meter.report()

    def close(self) -> None:
        """Let go of the threads; one that still runs is left to the end of the process."""
        self._calls.close()
        if self._marks is not None:
            self._marks.close()

    async def _acknowledge(self, delivery: HeldDelivery) -> None:
        """Ack, and return when the server has confirmed it, or is away."""
        self._ledger.acking(delivery.slot)
        while not await self._settlement.ack_confirmed(delivery.reply) and self._broker.is_connected:
            self._log.warning("ack not confirmed", sequence=delivery.sequence)

    async def _skip(self, delivery: HeldDelivery) -> Outcome:
        """Settle what isn't ours to handle."""
        if self._double_ack:
            await self._acknowledge(delivery)
        self._status.count("skipped")
        self._let_go(delivery)
        return SETTLED

    async def _expire(self, delivery: HeldDelivery) -> Outcome:
        """Settle what somebody has asked for who waits no longer."""
        if self._double_ack:
            await self._acknowledge(delivery)
        self._status.counts.count("expired")
        self._log.info(
            "request expired", **lateness(delivery), subject=delivery.subject, sequence=delivery.sequence
        )
        if delivery.span is not None:
            delivery.span.note("expired")
        self._let_go(delivery)
        return SETTLED

    def _let_go_handled(self, delivery: HeldDelivery) -> None:
        self._meter.handled_together((delivery,))
        self._let_go(delivery)

    async def _let_go_duplicate(self, delivery: HeldDelivery) -> None:
        await self._asks.refuse(delivery, "repeated", "an event of its idempotency key was handled before")
        self._status.count("duplicates")
        if delivery.span is not None:
            delivery.span.note("duplicate")
        self._let_go(delivery)

    def _let_go(self, delivery: HeldDelivery) -> None:
        """Have done with a delivery, and ack it if that isn't confirmed already."""
        self._mailbox.done(delivery)
        if self._double_ack:
            # The settlement says itself when it has written acks, but not of a confirmed one.
            self._settled()
        else:
            self._settlement.ack(delivery.reply)

    def _outputs(self, cause: Cause) -> Outputs:
        return Outputs(self._window, cause, self._id_prefix, self._source, self._timers)

    def _readable(self) -> None:
        self._undecodable_in_a_row = 0

    async def _no_handler(self, delivery: HeldDelivery) -> Outcome:
        if self._routing.is_for_another(delivery):
            return await self._skip(delivery)
        # Another version of the app may have one, so it isn't counted.
        if delivery.subject not in self._warned_subjects and len(self._warned_subjects) < 1024:
            self._warned_subjects.add(delivery.subject)
            self._log.warning(
                "no handler for this subject", subject=delivery.subject, sequence=delivery.sequence
            )
        return await self._failures.give_back(delivery, NO_HANDLER_DELAY_SECONDS, "given_back")

    async def _unreadable(self, delivery: HeldDelivery, error: str) -> Outcome:
        self._undecodable_in_a_row += 1
        if self._undecodable_in_a_row >= MAX_CONSECUTIVE_UNDECODABLE:
            self._undecodable(error)
            return Again(float("inf"))
        return await self._failures.dead_letter(delivery, "undecodable", error)
