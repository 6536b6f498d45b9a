"""Publishing for programs that are no actors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from understudy.actors import codec
from understudy.actors.event import subject_of
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection as connections
from understudy.runtime.jetstream.envelope import event_block
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import TOTAL_TIMEOUT_SECONDS, PublishWindow


class Publisher:
    """Publishes events from programs that are no actors.

    ::

        async with Publisher.connect(["nats://127.0.0.1:4222"]) as publisher:
            await publisher.publish(Departed(carrier="UA", delay_minutes=75))

    Concurrent calls share one window; one that waits for its turn is backpressure. To publish many events,
    `publish_async` each: they are on their way together, and in order.
    """

    def __init__(self, window: PublishWindow, source: str) -> None:
        self._window = window
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
        try:
            await window.open()
            yield cls(window, source)
            await window.settled()
        finally:
            window.close()
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
        body, headers = self._encode(event, message_id)
        return await self._window.publish(subject or subject_of(event), body, headers)

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
        body, headers = self._encode(event, message_id)
        return await self._window.enqueue(subject or subject_of(event), body, headers)

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
        return await self._window.publish(subject, body, {"Nats-Msg-Id": self._make_id(), **(headers or {})})

    def _encode(self, event: object, message_id: str | None) -> tuple[bytes, bytes]:
        message_id = message_id or self._make_id()
        return codec.encode(event), event_block(type(event), message_id, self._source, traceparent=None)

    def _make_id(self) -> str:
        self._count += 1
        return f"{self._id_prefix}.{self._count}"
