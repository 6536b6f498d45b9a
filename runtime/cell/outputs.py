"""What a handler publishes, under ids that a repeated run makes again."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from understudy.actors import codec
from understudy.actors.errors import EncodeError, PublishError
from understudy.actors.event import subject_of
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.sending import Sending, Where
from understudy.runtime.jetstream.envelope import event_block, type_name, with_headers
from understudy.runtime.jetstream.event_id import ORIGINAL_ID
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.schedules import Timers
from understudy.runtime.telemetry.trace import TraceContext, begin_trace

if TYPE_CHECKING:
    from understudy.runtime.telemetry.spans import AskSpan, ProcessSpan

# Events, and how they are to be published.
Collected = Sequence[tuple[object, Where]]


class Cause(Protocol):
    """What a handler publishes for: a delivery, or all those of a batch."""

    @property
    def sequence(self) -> int | str:
        """Names it in the input stream, for ever."""

    @property
    def trace(self) -> TraceContext:
        """The trace to which the outputs belong."""

    @property
    def span(self) -> ProcessSpan | None:
        """Below which they are published, if that is traced."""


class Outputs:
    """Publishes the events of one handler run.

    An event's id is made of durable, input stream's creation time, input sequence (of a batch: all of them),
    event type and the count of that type, so that the duplicate window drops what a rerun publishes again.

    Attributes:
        sent: how many were confirmed.
    """

    __slots__ = ("_cause", "_counts", "_prefix", "_source", "_timers", "_window", "sent")

    def __init__(self, window: PublishWindow, cause: Cause, prefix: str, source: str, timers: Timers) -> None:
        self._timers = timers
        self._window = window
        self._cause = cause
        self._prefix = prefix
        self._source = source
        self._counts: dict[str, int] = {}
        self.sent = 0

    @property
    def span(self) -> ProcessSpan | None:
        """Below which they are published, if that is traced."""
        return self._cause.span

    async def send(self, event: object, where: Where = None) -> None:
        """Publish an event and return when its stream has it.

        Args:
            event: an Event, or what the codec takes where `subject` is given.
            where: overrides the event's own subject, or says more.

        Raises:
            EncodeError: it can't be put on the wire.
            PublishError: it was not confirmed.
        """
        await self._publish(self._encode(event, where))

    async def send_all(self, collected: Iterable[tuple[object, Where]], result: object) -> None:
        """Publish what a handler has collected, then what it has returned: nothing, one event, or several.

        They are written in this order, and then confirmed together.

        Raises:
            EncodeError: one of them can't be put on the wire; then none is.
            PublishError: one of them was not confirmed, the first that wasn't; others may have been.
        """
        messages = self.encode_all(collected, result)
        if len(messages) == 1:
            await self._publish(messages[0])
        elif messages:
            await self._publish_together(messages)

    def encode_all(
        self, collected: Iterable[tuple[object, Where]], result: object
    ) -> list[tuple[str, bytes, bytes]]:
        """Return subject, body and header block of what is to be published, in its order.

        Raises:
            EncodeError: one of them can't be put on the wire.
        """
        events = list(collected)
        if isinstance(result, list | tuple):
            events += [(event, None) for event in result]
        elif result is not None:
            events.append((result, None))
        return [self._encode(event, where) for event, where in events]

    def _encode(self, event: object, where: Where) -> tuple[str, bytes, bytes]:
        name = type_name(type(event))
        number = self._counts[name] = self._counts.get(name, 0) + 1
        message_id = f"{self._prefix}.{self._cause.sequence}.{name}.{number}"
        trace, span = self._cause.trace, self._cause.span
        if span is not None:
            span.publishes(type(event))
        block = event_block(
            type(event), message_id, self._source, traceparent=trace.traceparent, tracestate=trace.state
        )
        if not isinstance(where, Sending):
            return where or subject_of(event), codec.encode(event), block
        subject = where.subject or subject_of(event)
        key = where.idempotency_key
        headers: list[tuple[str, str]] = []
        if where.delay_seconds is not None:
            # The server drops the message id of what it publishes when it is due.
            key = key or message_id
            timer = where.timer or message_id
            subject, headers = self._timers.plan(subject, where.delay_seconds, timer, time.time())
        if key:
            headers.append((ORIGINAL_ID, key))
        return subject, codec.encode(event), with_headers(block, headers)

    async def _publish(self, message: tuple[str, bytes, bytes]) -> None:
        if self._cause.span is None:
            await self._window.publish(*message)
        else:
            await (await enqueue(self._window, message, self._cause.span))
        self.sent += 1

    async def _publish_together(self, messages: list[tuple[str, bytes, bytes]]) -> None:
        confirmed: list[asyncio.Future[PubAck]] = []
        unsent: EncodeError | PublishError | None = None
        for message in messages:
            try:
                confirmed.append(await enqueue(self._window, message, self._cause.span))
            except (EncodeError, PublishError) as error:
                unsent = error
                break
        # All of them, since they are on their way: a rerun finds them in the stream, or not.
        answers = await asyncio.gather(*confirmed, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        self.sent += len(answers) - len(refused)
        for problem in (*refused, unsent):
            if problem is not None:
                raise problem


async def enqueue(
    window: PublishWindow, message: tuple[str, bytes, bytes], span: ProcessSpan | AskSpan | None
) -> asyncio.Future[PubAck]:
    """Publish a message as the window's `enqueue` does, within a span of its own if its cause has one."""
    if span is None:
        return await window.enqueue(*message)
    subject, body, block = message
    publishing, block = span.publishing(subject, block)
    try:
        confirmed = await window.enqueue(subject, body, block)
    except BaseException as error:
        publishing.end(error)
        raise
    confirmed.add_done_callback(publishing.answered)
    return confirmed


class BatchOutputs:
    """Publishes the events of one run of a batch handler: for single members, and for all of them.

    Args:
        window: publishes.
        members: the batch's, in stream order.
        make: returns the outputs of a cause.
        span: the batch's, if it is traced.
    """

    __slots__ = ("_make", "_members", "_outputs", "_window", "span")

    def __init__(
        self,
        window: PublishWindow,
        members: Sequence[HeldDelivery],
        make: Callable[[Cause], Outputs],
        span: ProcessSpan | None = None,
    ) -> None:
        self.span = span
        self._window = window
        self._members = members
        self._make = make
        # By index; None stands for all of them.
        self._outputs: dict[int | None, Outputs] = {}

    async def send(self, index: int | None, event: object, subject: Where) -> None:
        """Publish an event at once, for a member or for all.

        Raises:
            EncodeError, PublishError: as `Outputs.send`.
        """
        await self._of(index).send(event, subject)

    async def send_all(
        self, collected: Mapping[int | None, Collected], result: object
    ) -> tuple[dict[int, BaseException], BaseException | None]:
        """Publish what was collected and, for all members, what was returned; confirm it together.

        Returns:
            Why something could not be confirmed: of single members by index, and of all.
        """
        problems: dict[int | None, BaseException] = {}
        confirmed: list[asyncio.Future[PubAck]] = []
        owners: list[int | None] = []
        for index in [*collected, *((None,) if result is not None and None not in collected else ())]:
            try:
                messages = self._of(index).encode_all(
                    collected.get(index, ()), result if index is None else None
                )
                for message in messages:
                    confirmed.append(await enqueue(self._window, message, self._of(index).span))
                    owners.append(index)
            except asyncio.CancelledError:
                raise
            # Encoding runs the user's code.
            except BaseException as error:  # noqa: BLE001
                problems[index] = error
        answers = await asyncio.gather(*confirmed, return_exceptions=True)
        for index, answer in zip(owners, answers, strict=True):
            if isinstance(answer, BaseException):
                problems.setdefault(index, answer)
            else:
                self._of(index).sent += 1
        of_all = problems.pop(None, None)
        return {index: problem for index, problem in problems.items() if index is not None}, of_all

    def take_sent(self) -> int:
        """Return how many were confirmed since the last time."""
        sent = 0
        for outputs in self._outputs.values():
            sent += outputs.sent
            outputs.sent = 0
        return sent

    def _of(self, index: int | None) -> Outputs:
        outputs = self._outputs.get(index)
        if outputs is None:
            cause = _WholeBatch(self._members, self.span) if index is None else self._members[index]
            outputs = self._outputs[index] = self._make(cause)
        return outputs


class _WholeBatch:
    """All deliveries of a batch as one cause; no other batch has its name, whatever they have in common."""

    __slots__ = ("_members", "sequence", "span")

    def __init__(self, members: Sequence[HeldDelivery], span: ProcessSpan | None) -> None:
        self._members = members
        self.span = span
        sequences = [member.sequence for member in members]
        packed = struct.pack(f"<{len(sequences)}Q", *sequences)
        digest = hashlib.blake2b(packed, digest_size=8).hexdigest()
        self.sequence: int | str = f"{sequences[0]}-{sequences[-1]}-{digest}"

    @property
    def trace(self) -> TraceContext:
        """That of its span, of the only member, or one that begins here."""
        if self.span is not None:
            return self.span.trace
        if len(self._members) == 1:
            return self._members[0].trace
        return begin_trace(self._members[0].stream, self.sequence)
