"""From a delivery to its settlement: decode, run the handler, publish, then ack, nak or dead-letter.

What happens when is the table of DESIGN.md §4, one method a row.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec
import structlog

from understudy.actors.actor import Actor, ActorSpec
from understudy.actors.errors import BrokerError, CircuitOpen, DecodeError, PublishError, UnderstudyError
from understudy.actors.handlers import HandlerSpec
from understudy.actors.outcomes import Reject, Retry
from understudy.runtime.breakers import Breakers
from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.context import CellContext
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.lanes import SETTLED, Again, Held, Outcome
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.outputs import Outputs
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream import dead_letters
from understudy.runtime.jetstream.dead_letters import DeadLetter
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.stores.attempts import MAX_ERROR_CHARACTERS, NONE, Attempts, AttemptStore
from understudy.runtime.telemetry.trace import current_trace

NO_HANDLER_DELAY_SECONDS = 30.0
BROKER_RETRY_SECONDS = 1.0
# A bad deploy must not empty the backlog into the dead letters.
MAX_CONSECUTIVE_UNDECODABLE = 100


class Broker(Protocol):
    """What the pipeline needs of the connection."""

    @property
    def max_payload(self) -> int:
        """The server's bound on a message, in bytes."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands."""


class Pipeline:
    """Handles one delivery at a time per lane; never raises.

    Args:
        actor: the user's instance.
        spec: its declaration, options overridden.
        identity: whose deliveries these are.
        broker, window, settlement, attempts: the data path.
        mailbox, ledger, status: what the cell holds and says.
        breakers: the cell's.
        settled: called when the mailbox has room again.
        undecodable: called when too many deliveries in a row could not be read.
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
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        breakers: Breakers,
        settled: Callable[[], None],
        undecodable: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._identity = identity
        self._broker = broker
        self._window = window
        self._settlement = settlement
        self._attempts = attempts
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._breakers = breakers
        self._settled = settled
        self._undecodable = undecodable
        self._undecodable_in_a_row = 0
        self._timeout_seconds = spec.options.handler_timeout_seconds
        self._double_ack = getattr(spec.options, "double_ack", False)
        self._handled = 0
        self._id_prefix = f"{identity.durable}.{identity.stream_created}"
        self._source = f"{identity.app}/{identity.actor}"
        self._key = spec.options.key_function()
        self._routes: dict[str, HandlerSpec | None] = {}
        self._methods: dict[str, Callable[..., Any]] = {
            handler.method: getattr(actor, handler.method) for handler in spec.handlers
        }
        self._threads = ThreadPoolExecutor(spec.options.concurrency, thread_name_prefix="handler")
        self._log = structlog.get_logger("understudy.actor")
        self._warned_subjects: set[str] = set()

    def prepare(self, delivery: HeldDelivery) -> None:
        """Find the delivery's handler and, for an actor that keeps an order, its key; never raises."""
        delivery.handler = self._route(delivery.subject)
        if self._spec.options.ordered:
            delivery.key = ()
        elif self._key is not None and delivery.handler is not None:
            self._decode(delivery, delivery.handler)
            if delivery.decode_error is not None:
                return
            try:
                key = self._key(delivery.event)
                hash(key)
                # None stands for no key, so that a key of None is wrapped.
                delivery.key = (key,)
            except DecodeError as error:
                delivery.decode_error = error
            except Exception as error:  # noqa: BLE001, a user's key function may raise anything
                delivery.decode_error = DecodeError(f"the key can't be computed: {_text(error)}")

    async def handle(self, delivery: HeldDelivery, deadline: Deadline) -> Outcome:
        """Handle a delivery and settle it, or say why it stays."""
        current_trace.set(delivery)
        try:
            return await self._handle(delivery, deadline)
        except BrokerError as error:
            # The store of attempts doesn't answer: nothing is counted and nothing is lost.
            self._log.warning("delivery postponed", error=str(error), sequence=delivery.sequence)
            return Again(BROKER_RETRY_SECONDS)

    async def dead_letter(self, delivery: HeldDelivery, reason: str, error: str) -> Outcome:
        """Give a delivery up: store it, confirmed, and only then terminate it.

        Args:
            delivery: what is given up.
            reason: `undecodable`, `rejected`, `exhausted` or `crashed`.
            error: the last failure's text.
        """
        attempts = delivery.attempts or NONE
        letter = DeadLetter(
            app=self._identity.app,
            actor=self._identity.actor,
            durable=self._identity.durable,
            stream=delivery.stream,
            stream_created=self._identity.stream_created,
            subject=delivery.subject,
            sequence=delivery.sequence,
            body=delivery.body,
            headers=delivery.headers,
            reason=reason,
            error=error,
            attempts=attempts.failed,
            trace_id=delivery.trace_id,
        )
        try:
            await dead_letters.write(self._window, letter, self._broker.max_payload)
        except PublishError as unwritten:
            self._log.error(
                "dead letter can't be written",
                sequence=delivery.sequence,
                reason=reason,
                error=error,
                dead_letter_error=str(unwritten),
            )
            return await self._again(delivery, self._spec.options.retry.max_delay_seconds)
        self._log.warning(
            "dead letter",
            reason=reason,
            error=error,
            subject=delivery.subject,
            sequence=delivery.sequence,
            attempts=attempts.failed,
        )
        self._status.count("dead_lettered")
        self._mailbox.done(delivery)
        await self._settlement.term(delivery.reply, reason)
        self._settled()
        return SETTLED

    def report(self) -> None:
        """Count what was handled since the last time."""
        if self._handled:
            self._status.count("handled", self._handled)
            self._status.count("acked", self._handled)
            self._handled = 0

    def close(self) -> None:
        """Let go of the threads; one that still runs is left to the end of the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _handle(self, delivery: HeldDelivery, deadline: Deadline) -> Outcome:
        handler = delivery.handler
        if handler is None:
            return await self._no_handler(delivery)
        if delivery.delivery_count > 1 or delivery.attempts is not None:
            outcome = await self._look_back(delivery)
            if outcome is not None:
                return outcome
        # An event whose key can't be told is decoded, and unreadable all the same.
        if delivery.event is None and delivery.decode_error is None:
            self._decode(delivery, handler)
        if delivery.decode_error is not None:
            return await self._unreadable(delivery, str(delivery.decode_error))
        self._undecodable_in_a_row = 0
        outputs = context = None
        if handler.wants_context:
            outputs = Outputs(self._window, delivery, self._id_prefix, self._source)
            context = CellContext(delivery, self._breakers, self._log, outputs.send)
        self._ledger.handling(delivery.slot)
        try:
            result = await self._run(handler, delivery.event, context, deadline)
            if result is not None or context is not None:
                outputs = outputs or Outputs(self._window, delivery, self._id_prefix, self._source)
                await outputs.send_all(() if context is None else context.collected, result)
        except asyncio.CancelledError:
            # Ours alone: every other one has been made an error.
            raise
        # A handler may raise anything, and that is what retries are for; one that exits is no better.
        except BaseException as failure:  # noqa: BLE001
            self._ledger.held(delivery.slot)
            return await self._failed(delivery, handler, context, failure)
        finally:
            if outputs is not None and outputs.sent:
                self._status.count("published", outputs.sent)
        await self._acknowledge(delivery) if self._double_ack else self._settlement.ack(delivery.reply)
        self._handled += 1
        self._mailbox.done(delivery)
        return SETTLED

    async def _look_back(self, delivery: HeldDelivery) -> Outcome | None:
        """Read what is recorded of earlier runs, and give the delivery up if that says so."""
        if delivery.attempts is None:
            delivery.attempts = await self._attempts.read(delivery.sequence)
        crashes = delivery.attempts.crashes
        if crashes < self._spec.options.retry.max_crashes:
            return None
        # It was to be given up before, and that could not be written.
        return await self.dead_letter(
            delivery, "crashed", f"its process died {crashes} times: {delivery.attempts.error}"
        )

    async def _acknowledge(self, delivery: HeldDelivery) -> None:
        """Ack, and return when the server has confirmed it, or is away."""
        self._ledger.acking(delivery.slot)
        while not await self._settlement.ack_confirmed(delivery.reply) and self._broker.is_connected:
            self._log.warning("ack not confirmed", sequence=delivery.sequence)

    async def _run(
        self, handler: HandlerSpec, event: Any, context: CellContext | None, deadline: Deadline
    ) -> Any:
        method = self._methods[handler.method]
        deadline.arm(self._timeout_seconds, cancels=handler.is_async, name=handler.method)
        try:
            if not handler.is_async:
                return await self._in_thread(method, (event,) if context is None else (event, context))
            return await (method(event) if context is None else method(event, context))
        except asyncio.CancelledError:
            self._explain_cancellation(handler, deadline)
            raise
        finally:
            deadline.disarm()
            if deadline.expired and handler.is_async:
                # Also when the handler swallowed its cancellation: the next one's is told apart by the count.
                _forget_cancellation()

    def _explain_cancellation(self, handler: HandlerSpec, deadline: Deadline) -> None:
        """Raise what a cancellation stands for, unless it is the lane's own."""
        task = asyncio.current_task()
        assert task is not None
        if not task.cancelling():
            raise RuntimeError(f"{handler.method} let a cancellation of its own escape") from None
        if deadline.expired and handler.is_async:
            raise TimeoutError(
                f"{handler.method} ran longer than handler_timeout_seconds ({self._timeout_seconds:g} s)"
            ) from None

    def _in_thread(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Awaitable[Any]:
        context = contextvars.copy_context()

        def call() -> Any:
            try:
                return context.run(method, *arguments)
            except StopIteration as error:
                # No future takes one: it would never be done, and the lane would wait for it.
                raise RuntimeError("the handler raised StopIteration") from error

        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _route(self, subject: str) -> HandlerSpec | None:
        try:
            return self._routes[subject]
        except KeyError:
            handler = self._spec.route(subject)
            # Subjects may be made from data; only so many are remembered.
            if len(self._routes) >= 1024:
                self._routes.clear()
            self._routes[subject] = handler
            return handler

    def _decode(self, delivery: HeldDelivery, handler: HandlerSpec) -> None:
        try:
            delivery.event = handler.decode(delivery.body, delivery.content_type, delivery.subject)
        except DecodeError as error:
            delivery.decode_error = error

    async def _no_handler(self, delivery: HeldDelivery) -> Outcome:
        # Another version of the app may have one, so it isn't counted.
        if delivery.subject not in self._warned_subjects and len(self._warned_subjects) < 1024:
            self._warned_subjects.add(delivery.subject)
            self._log.warning(
                "no handler for this subject", subject=delivery.subject, sequence=delivery.sequence
            )
        return await self._retry(delivery, NO_HANDLER_DELAY_SECONDS)

    async def _unreadable(self, delivery: HeldDelivery, error: str) -> Outcome:
        self._undecodable_in_a_row += 1
        if self._undecodable_in_a_row >= MAX_CONSECUTIVE_UNDECODABLE:
            self._undecodable(error)
            return Again(float("inf"))
        return await self.dead_letter(delivery, "undecodable", error)

    async def _failed(
        self,
        delivery: HeldDelivery,
        handler: HandlerSpec,
        context: CellContext | None,
        error: BaseException,
    ) -> Outcome:
        # The next run decodes anew: a handler may have changed an untyped event.
        delivery.event = None
        if isinstance(error, Reject):
            return await self.dead_letter(delivery, "rejected", error.reason)
        failed_trial = None if context is None else context.failed_trial
        held = error if isinstance(error, CircuitOpen) else failed_trial
        if held is not None:
            return Held(held.breaker, held.retry_after_seconds)
        if isinstance(error, PublishError) and not self._broker.is_connected:
            raise error
        previous = delivery.attempts or NONE
        delivery.attempts = msgspec.structs.replace(
            previous, failed=previous.failed + 1, error=_text(error)[:MAX_ERROR_CHARACTERS]
        )
        self._status.count("failed")
        policy = self._spec.options.retry
        explicit = error.delay_seconds if isinstance(error, Retry) else None
        if delivery.attempts.failed >= policy.max_attempts:
            return await self.dead_letter(delivery, "exhausted", delivery.attempts.error)
        delay = (
            policy.delay_seconds(delivery.attempts.failed, random.random()) if explicit is None else explicit
        )
        expected = isinstance(error, Retry | UnderstudyError)
        self._log.warning(
            "handler failed",
            handler=handler.method,
            error=delivery.attempts.error,
            subject=delivery.subject,
            sequence=delivery.sequence,
            attempt=delivery.attempts.failed,
            max_attempts=policy.max_attempts,
            retry_in_seconds=round(delay, 3),
            exc_info=None if expected else error,
        )
        await self._record(delivery.sequence, delivery.attempts)
        return await self._again(delivery, delay)

    async def _again(self, delivery: HeldDelivery, delay_seconds: float) -> Outcome:
        """Keep the delivery and its key shut, or give it back, as the actor's `on_failure` says."""
        if self._spec.options.on_failure == "block":
            return Again(delay_seconds)
        return await self._retry(delivery, delay_seconds)

    async def _record(self, sequence: int, attempts: Attempts) -> None:
        try:
            await self._attempts.write(sequence, attempts)
        except BrokerError as error:
            # The delivery comes back all the same, with this attempt uncounted.
            self._log.warning("attempt not recorded", sequence=sequence, error=str(error))

    async def _retry(self, delivery: HeldDelivery, delay_seconds: float) -> Outcome:
        self._status.count("retried")
        self._mailbox.release(delivery)
        await self._settlement.nak(delivery.reply, delay_seconds)
        self._settled()
        return SETTLED


def _forget_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001, a user's __str__ may raise anything
        text = "its text can't be made"
    name = type(error).__name__
    # What is recorded has to be encoded, and lone surrogates can't be.
    return (f"{name}: {text}" if text else name).encode(errors="backslashreplace").decode()
