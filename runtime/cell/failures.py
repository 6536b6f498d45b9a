"""What becomes of a delivery that was not handled: tried again, given back, or kept as a dead letter.

What happens when is the table of DESIGN.md §4.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Literal, Protocol

import msgspec
import structlog

from understudy.actors.actor import ActorSpec
from understudy.actors.errors import BrokerError, BulkheadFull, CircuitOpen, PublishError, UnderstudyError
from understudy.actors.handlers import HandlerSpec
from understudy.actors.outcomes import Reject, Retry
from understudy.runtime.cell.asks import Asks
from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.counts import DeadLetterReason
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.outcomes import SETTLED, Again, Outcome, held_by
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream import dead_letters
from understudy.runtime.jetstream.dead_letters import DeadLetter
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.stores.attempts import MAX_ERROR_CHARACTERS, NONE, Attempts, AttemptStore
from understudy.runtime.telemetry.conventions import ATTEMPT
from understudy.runtime.telemetry.logs import without_secrets

BROKER_RETRY_SECONDS = 1.0


class Broker(Protocol):
    """What is to be known of the connection."""

    @property
    def max_payload(self) -> int:
        """The server's bound on a message, in bytes."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands."""


class ActorFailed(Exception):
    """The actor itself has failed, as its options tell; its text says why."""


class Failures:
    """Counts failed attempts, settles what has failed, and sees when the actor itself has.

    Args:
        spec: the actor's declaration, options overridden.
        identity: whose deliveries these are.
        broker, window, settlement, attempts: the data path.
        mailbox, status: what the cell holds and says.
        breakers: the names of those that the cell has.
        settled: called when the mailbox has room again.
        handled: returns how many deliveries were handled so far.
        actor_failed: called when the actor itself has failed.
        asks: tells whoever has asked.
    """

    def __init__(
        self,
        *,
        spec: ActorSpec,
        identity: Identity,
        broker: Broker,
        window: PublishWindow,
        settlement: Settlement,
        attempts: AttemptStore,
        mailbox: Mailbox,
        status: Status,
        breakers: Container[str],
        settled: Callable[[], None],
        handled: Callable[[], int],
        actor_failed: Callable[[ActorFailed], Awaitable[None]],
        asks: Asks,
    ) -> None:
        self._asks = asks
        self._restart_on = spec.options.restart_on
        self._max_in_a_row = spec.options.max_consecutive_failures
        self._handled = handled
        self._actor_failed = actor_failed
        self._in_a_row = self._handled_before = 0
        self._policy = spec.options.retry
        self._blocks = spec.options.on_failure == "block"
        self._identity = identity
        self._broker = broker
        self._window = window
        self._settlement = settlement
        self._attempts = attempts
        self._mailbox = mailbox
        self._status = status
        self._breakers = breakers
        self._settled = settled
        self._log = structlog.get_logger("understudy.actor")

    def is_alone(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery is not to be in a batch with others.

        It may be what killed its process; or it has one attempt left, and nothing is given up because an
        event beside it has failed.
        """
        attempts = delivery.attempts
        if attempts is None:
            return False
        return attempts.crashes > 0 or 0 < attempts.failed >= self._policy.max_attempts - 1

    async def look_back(self, delivery: HeldDelivery) -> Outcome | None:
        """Read what is recorded of earlier runs, and give the delivery up if that says so.

        Returns:
            None if it is to be handled now.
        """
        if delivery.attempts is None:
            try:
                await self.read_attempts(delivery)
            except BrokerError as error:
                return self.postpone(delivery, error)
        assert delivery.attempts is not None
        crashes = delivery.attempts.crashes
        if crashes < self._policy.max_crashes or (delivery.handler and delivery.handler.has_last_word):
            left_seconds = self.take_pause(delivery)
            return Again(left_seconds) if left_seconds else None
        # It was to be given up before, and that could not be written.
        text = f"its process died {crashes} times: {delivery.attempts.error}"
        return await self.dead_letter(delivery, "crashed", text)

    def take_pause(self, delivery: HeldDelivery) -> float:
        """Return how many seconds of the pause after its last failure are left, and forget them.

        An earlier cell has left the delivery in the middle of its pause. That is waited for once, so that no
        clock can make it endless.

        Args:
            delivery: its attempts have been read, if there may be any.
        """
        attempts = delivery.attempts
        if attempts is None or not attempts.delay_seconds:
            return 0.0
        delivery.attempts = msgspec.structs.replace(attempts, retry_at=0.0, delay_seconds=0.0)
        return attempts.wait_seconds(time.time())

    async def read_attempts(self, delivery: HeldDelivery) -> None:
        """Read what is recorded of earlier runs.

        Raises:
            BrokerError: the server did not answer.
        """
        delivery.attempts = await self._attempts.read(delivery.sequence)

    async def failed(
        self,
        delivery: HeldDelivery,
        handler: HandlerSpec,
        error: BaseException,
        failed_trial: CircuitOpen | None,
        *,
        traceback: bool = True,
    ) -> Outcome:
        """Settle a delivery whose handler has failed, or say why it stays.

        Args:
            delivery: what was handled.
            handler: by which.
            error: what it raised.
            failed_trial: the breaker's word if one of its calls was a trial and failed.
            traceback: whether an error that nobody expects is logged with where it came from.
        """
        # The next run decodes anew: a handler may have changed an untyped event.
        delivery.event = None
        shown = error if traceback and not is_expected(error) else None
        span = delivery.span
        if span is not None:
            span.failed(error, traceback=shown is not None)
        if isinstance(error, Reject):
            return await self.dead_letter(delivery, "rejected", error.reason)
        held = held_by(error, failed_trial, self._breakers)
        if held is not None:
            if span is not None:
                span.note("held", breaker=held.breaker, delay_seconds=held.retry_after_seconds)
            await self._asks.refuse_if_late(delivery, held.retry_after_seconds, "held", error_text(error))
            return held
        if self.is_postponed(error):
            if span is not None:
                span.note("postponed", error=error_text(error))
            return self.postpone(delivery, error)
        attempts = self._count(delivery, error)
        if span is not None:
            span.set(ATTEMPT, attempts.failed)
        most = handler.max_attempts or self._policy.max_attempts
        if attempts.failed >= most + handler.has_last_word:
            return await self.dead_letter(delivery, "exhausted", attempts.error, shown)
        explicit = error.delay_seconds if isinstance(error, Retry) else None
        delay = self._policy.delay_seconds(attempts.failed, random.random()) if explicit is None else explicit
        self._log.warning(
            "handler failed",
            handler=handler.method,
            error=attempts.error,
            **{**delivery.log_fields, "attempt": attempts.failed},
            max_attempts=most,
            retry_in_seconds=round(delay, 3),
            exc_info=shown,
        )
        if span is not None:
            span.note(
                "retry",
                attempt=attempts.failed,
                max_attempts=most,
                delay_seconds=delay,
                error=attempts.error,
            )
        if self._blocks:
            # For whoever may have to go on with it; in this cell a timer keeps the time.
            attempts = msgspec.structs.replace(attempts, retry_at=time.time() + delay, delay_seconds=delay)
        await self._record(delivery.sequence, attempts)
        await self._asks.refuse_if_late(delivery, delay, "failed", attempts.error)
        return await self._again(delivery, delay)

    async def failed_behind(self, delivery: HeldDelivery, error: BaseException) -> None:
        """Count the failure of a delivery that stays behind an earlier one of its key."""
        if not isinstance(error, Reject):
            await self._record(delivery.sequence, self._count(delivery, error))

    async def judge(
        self, errors: Iterable[BaseException], failed_trial: CircuitOpen | None, *, partly: bool = False
    ) -> None:
        """See whether a handler run that has failed means that the actor itself has.

        Called once a run, when what it failed is settled or stays.

        Args:
            errors: what it raised, or what it said of the members of its batch.
            failed_trial: as in `failed`.
            partly: whether others of its batch were handled, so that it isn't one of a row of failed runs.
        """
        own = [
            error
            for error in errors
            if not isinstance(error, Retry | Reject)
            and held_by(error, failed_trial, self._breakers) is None
            and not self.is_postponed(error)
        ]
        if not own:
            return
        meant = next((error for error in own if isinstance(error, self._restart_on)), None)
        handled = self._handled()
        if partly or handled != self._handled_before:
            self._in_a_row = 0
        self._handled_before = handled
        self._in_a_row += not partly
        if meant is not None:
            reason = error_text(meant)
        elif self._max_in_a_row is not None and self._in_a_row >= self._max_in_a_row:
            reason = f"{self._in_a_row} handler runs in a row failed, the last with {error_text(own[-1])}"
        else:
            return
        await self._actor_failed(ActorFailed(reason))

    def is_postponed(self, error: BaseException) -> bool:
        """Return whether an error says nothing of the event: the broker is away, or a bulkhead full."""
        if isinstance(error, BulkheadFull):
            return True
        return isinstance(error, PublishError) and not self._broker.is_connected

    def postpone(self, delivery: HeldDelivery, error: BaseException) -> Again:
        """Have a delivery tried again when the broker answers: nothing is counted and nothing is lost."""
        self._log.warning("delivery postponed", error=str(error), sequence=delivery.sequence)
        return self.when_the_broker_answers()

    def when_the_broker_answers(self) -> Again:
        """Return when to try again what the broker wasn't there for."""
        return Again(BROKER_RETRY_SECONDS)

    async def dead_letter(
        self,
        delivery: HeldDelivery,
        reason: DeadLetterReason,
        error: str,
        failure: BaseException | None = None,
    ) -> Outcome:
        """Give a delivery up: store it, confirmed, and only then terminate it.

        Args:
            delivery: what is given up.
            reason: why, in a word.
            error: the last failure's text.
            failure: what is logged with where it came from.
        """
        attempts = delivery.attempts or NONE
        # The last run's number; only a failure that was counted has made that the next one's.
        attempt = attempts.failed if reason == "exhausted" else delivery.attempt
        # All of it, since in a batch with others nothing else names it.
        named = {**delivery.log_fields, "attempt": attempt}
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
            number = await dead_letters.write(self._window, letter, self._broker.max_payload)
        except PublishError as unwritten:
            self._log.error(
                "dead letter can't be written",
                **named,
                reason=reason,
                error=error,
                dead_letter_error=str(unwritten),
            )
            return await self._again(delivery, self._policy.max_delay_seconds)
        self._log.warning("dead letter", id=number, reason=reason, error=error, **named, exc_info=failure)
        if delivery.span is not None:
            delivery.span.note("dead_letter", id=number, reason=reason, error=error, attempt=attempt)
        delivery.is_given_up = True
        self._status.count("dead_lettered")
        self._status.counts.count(f"dead_lettered_{reason}")
        await self._asks.refuse(delivery, reason, error)
        self._mailbox.done(delivery)
        with delivery.settling("term"):
            await self._settlement.term(delivery.reply, reason)
        self._settled()
        return SETTLED

    async def give_back(
        self, delivery: HeldDelivery, delay_seconds: float, outcome: Literal["retried", "given_back"]
    ) -> Outcome:
        """Give a delivery back to the server.

        Args:
            delivery: which.
            delay_seconds: how long the server keeps it before it delivers it again.
            outcome: as what it is counted: whether a run has failed.
        """
        self._status.count("retried")
        self._status.counts.count(outcome)
        self._mailbox.release(delivery)
        with delivery.settling("nak"):
            await self._settlement.nak(delivery.reply, delay_seconds)
        self._settled()
        return SETTLED

    async def _again(self, delivery: HeldDelivery, delay_seconds: float) -> Outcome:
        """Keep the delivery and its key shut, or give it back, as the actor's `on_failure` says."""
        if self._blocks:
            return Again(delay_seconds)
        return await self.give_back(delivery, delay_seconds, "retried")

    def _count(self, delivery: HeldDelivery, error: BaseException) -> Attempts:
        previous = delivery.attempts or NONE
        delivery.attempts = attempts = Attempts(
            failed=previous.failed + 1,
            crashes=previous.crashes,
            error=error_text(error)[:MAX_ERROR_CHARACTERS],
        )
        self._status.count("failed")
        return attempts

    async def _record(self, sequence: int, attempts: Attempts) -> None:
        try:
            await self._attempts.write(sequence, attempts)
        except BrokerError as error:
            # The delivery comes back all the same, with this attempt uncounted.
            self._log.warning("attempt not recorded", sequence=sequence, error=str(error))


def is_expected(error: BaseException) -> bool:
    """Return whether an error is a handler's own word or ours, so that its traceback says nothing."""
    return isinstance(error, Retry | UnderstudyError)


def error_text(error: BaseException) -> str:
    """Return an error's type and text without secrets: probes, dead letters and replies tell it too."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001, a user's __str__ may raise anything
        text = "its text can't be made"
    name = type(error).__name__
    # What is recorded has to be encoded, and lone surrogates can't be.
    return without_secrets((f"{name}: {text}" if text else name).encode(errors="backslashreplace").decode())
