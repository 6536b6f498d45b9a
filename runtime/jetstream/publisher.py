"""Publishing for programs that are no actors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from understudy.actors import codec
from understudy.actors.context import ASK_TIMEOUT_SECONDS
from understudy.actors.errors import EncodeError
from understudy.actors.event import subject_of
from understudy.actors.names import check_seconds
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection as connections
from understudy.runtime.jetstream.asking import Asking, decoder_of
from understudy.runtime.jetstream.envelope import event_block, template_of, with_headers
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import TOTAL_TIMEOUT_SECONDS, PublishWindow
from understudy.runtime.telemetry.publishing import begin_ask, begin_publish

if TYPE_CHECKING:
    from understudy.runtime.telemetry.open_span import OpenSpan

_Reply = TypeVar("_Reply")
_Message: TypeAlias = tuple[str, bytes, bytes | dict[str, str]]


class Publisher:
    """Publishes events from programs that are no actors.

    ::

        async with Publisher.connect(["nats://127.0.0.1:4222"]) as publisher:
            await publisher.publish(Departed(carrier="UA", delay_minutes=75))

    Concurrent calls share one window; one that waits for its turn is backpressure. To publish many events,
    `publish_async` each: they are on their way together, and in order.

    In a program that has loaded OpenTelemetry each event carries the current trace on, with a span of its own
    if that is sampled.
    """

    def __init__(self, window: PublishWindow, source: str, asking: Asking) -> None:
        self._window = window
        self._asking = asking
        self._source = source
        # What is made of a random prefix and a count is as unique as a UUID, and costs a twentieth.
        self._id_prefix = secrets.token_urlsafe(12)
        self._count = 0

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        servers: ConnectionSpec | str | list[str],
        *,
        source: str = "understudy",
        timeout_seconds: float = TOTAL_TIMEOUT_SECONDS,
    ) -> AsyncIterator[Publisher]:
        """Connect for the length of a `with` block.

        The block ends when all that was published is confirmed or given up; one that ends with an exception
        gives it up at once.

        Args:
            servers: NATS URLs, or a whole connection.
            source: says in the events' `ce-source` who published them.
            timeout_seconds: how long an event is tried before it counts as not published.

        Raises:
            BrokerUnreachable: no server answers.
            BrokerRefused: a server turned us away.
        """
        if isinstance(servers, str):
            servers = [servers]
        spec = servers if isinstance(servers, ConnectionSpec) else ConnectionSpec(servers=tuple(servers))
        client = await connections.connect(spec, name=source)
        window = PublishWindow(client, timeout_seconds=timeout_seconds)
        asking = Asking(client)
        try:
            await window.open()
            yield cls(window, source, asking)
            await window.settled()
        finally:
            window.close()
            asking.close()
            await connections.close(client)

    async def publish(
        self, event: object, *, subject: str | None = None, message_id: str | None = None
    ) -> PubAck:
        """Publish an event and wait until its stream has it.

        Args:
            event: an Event, or any value that the codec takes where `subject` is given.
            subject: overrides the event's own.
            message_id: by which the stream drops repeats within its duplicate window; made if absent.

        Raises:
            EncodeError: the event can't be put on the wire.
            PublishError: it was not confirmed.
        """
        return await self._publish(*self._encode(event, subject, message_id))

    async def publish_async(
        self, event: object, *, subject: str | None = None, message_id: str | None = None
    ) -> asyncio.Future[PubAck]:
        """Publish an event without waiting for its stream; waits only while too many are unconfirmed.

        Events that one task publishes are written in its order, and stored in it, unless a stream was away
        for a moment and took a later one first.

        Args:
            event: as of `publish`.
            subject: overrides the event's own.
            message_id: made if absent.

        Returns:
            A future of the confirmation; it fails with PublishError if there is none. If it is cancelled,
            the event may be in the stream or not.

        Raises:
            EncodeError: the event can't be put on the wire.
            PublishError: it is too large, or the connection is closed.
        """
        return await self._enqueue(*self._encode(event, subject, message_id))

    async def ask(
        self,
        event: object,
        *,
        expects: type[_Reply],
        subject: str | None = None,
        timeout_seconds: float = ASK_TIMEOUT_SECONDS,
        idempotency_key: str = "",
    ) -> _Reply:
        """Publish an event, and return what the handler of it that declares `reply=` answers.

        Args:
            event: as of `publish`.
            expects: the type that the answer is read as.
            subject: overrides the event's own.
            timeout_seconds: how long to wait at most; what isn't handled by then isn't handled at all.
            idempotency_key: by which its receivers know it; by default, its message id.

        Raises:
            AskTimeout, AskRejected, AskFailed: there is no answer.
            EncodeError, PublishError: it can't be published.
            DecodeError: the answer isn't what is expected.
        """
        check_seconds(timeout_seconds, "ask: timeout_seconds")

        async def publish(message_id: str, lines: Sequence[tuple[str, str]]) -> asyncio.Future[PubAck]:
            return await self._enqueue(*self._encode(event, subject, message_id, lines))

        where = subject or subject_of(event)
        with begin_ask(where, "" if subject else template_of(type(event))):
            answer: _Reply = await self._asking.ask(
                where,
                publish,
                decoder_of(expects),
                timeout_seconds=timeout_seconds,
                idempotency_key=idempotency_key,
            )
        return answer

    async def ask_raw(
        self,
        subject: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float = ASK_TIMEOUT_SECONDS,
        idempotency_key: str = "",
    ) -> bytes:
        """Publish bytes as they are, and return the body of the answer as it is: JSON if the request is.

        Args:
            subject: a literal subject.
            body: the message.
            headers: user headers; JSON says `Content-Type: application/json`.
            timeout_seconds: as of `ask`.
            idempotency_key: as of `ask`.

        Raises:
            AskTimeout, AskRejected, AskFailed: there is no answer.
            EncodeError, PublishError: it can't be published.
        """
        check_seconds(timeout_seconds, "ask: timeout_seconds")

        async def publish(message_id: str, lines: Sequence[tuple[str, str]]) -> asyncio.Future[PubAck]:
            everything = {"Nats-Msg-Id": message_id, **(headers or {}), **dict(lines)}
            return await self._enqueue(*self._traced(subject, body, everything))

        with begin_ask(subject, ""):
            answer: bytes = await self._asking.ask(
                subject, publish, _as_it_is, timeout_seconds=timeout_seconds, idempotency_key=idempotency_key
            )
        return answer

    @property
    def late_replies(self) -> int:
        """How many answers came when nobody waited for them any more, and were dropped."""
        return self._asking.late_replies

    async def publish_raw(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> PubAck:
        """Publish bytes as they are and wait until their stream has them.

        Args:
            subject: a literal subject.
            body: the message.
            headers: user headers; `Nats-Msg-Id` is made if absent.

        Raises:
            EncodeError: nothing can be published to such a subject.
            PublishError: it was not confirmed, or its headers can't be written.
        """
        everything = {"Nats-Msg-Id": self._make_id(), **(headers or {})}
        return await self._publish(*self._traced(subject, body, everything))

    async def _publish(self, message: _Message, span: OpenSpan | None) -> PubAck:
        if span is None:
            return await self._window.publish(*message)
        with span:
            return await self._window.publish(*message)

    async def _enqueue(self, message: _Message, span: OpenSpan | None) -> asyncio.Future[PubAck]:
        if span is None:
            return await self._window.enqueue(*message)
        try:
            confirmed = await self._window.enqueue(*message)
        except BaseException as error:
            span.end(error)
            raise
        confirmed.add_done_callback(span.answered)
        return confirmed

    def _encode(
        self,
        event: object,
        subject: str | None,
        message_id: str | None,
        lines: Sequence[tuple[str, str]] = (),
    ) -> tuple[_Message, OpenSpan | None]:
        """Return subject, body and headers of an event, and the span that ends when it is confirmed."""
        message_id = message_id or self._make_id()
        body, where = codec.encode(event), subject or subject_of(event)
        template = "" if subject else template_of(type(event))
        span, trace = begin_publish(where, template, message_id)
        try:
            block = event_block(
                type(event),
                message_id,
                self._source,
                traceparent=None if trace is None else trace.traceparent,
                tracestate="" if trace is None else trace.state,
            )
            if lines:
                block = with_headers(block, lines)
        except EncodeError as error:
            if span is not None:
                span.end(error)
            raise
        return (where, body, block), span

    def _traced(self, subject: str, body: bytes, headers: dict[str, str]) -> tuple[_Message, OpenSpan | None]:
        """Return what is published as it is, in the current trace unless it names one, and its span."""
        if any(name.lower() == "traceparent" for name in headers):
            return (subject, body, headers), None
        span, trace = begin_publish(subject, "", headers["Nats-Msg-Id"])
        if trace is not None:
            headers["traceparent"] = trace.traceparent
            if trace.state:
                headers["tracestate"] = trace.state
        return (subject, body, headers), span

    def _make_id(self) -> str:
        self._count += 1
        return f"{self._id_prefix}.{self._count}"


def _as_it_is(data: codec.Body, content_type: str | None, subject: str = "") -> bytes:  # noqa: ARG001
    return bytes(data)
