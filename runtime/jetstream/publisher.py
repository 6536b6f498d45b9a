"""Publishing that a stream confirms: a bounded window of messages in flight over one reply inbox."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from understudy.actors import codec
from understudy.actors.errors import PublishError
from understudy.actors.event import subject_of
from understudy.actors.subjects import check_literal
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection as connections
from understudy.runtime.jetstream.envelope import event_headers, header_bytes

WINDOW = 1024
ACK_TIMEOUT_SECONDS = 2.0
TOTAL_TIMEOUT_SECONDS = 10.0
# The server counts them in 16 bits (10097).
MAX_HEADER_BYTES = 64 * 1024 - 1


class PubAck(msgspec.Struct, frozen=True):
    """A stream's word that it has a message.

    Args:
        stream: its name.
        seq: the message's sequence in it.
        duplicate: whether it had a message of this id already, so that nothing was stored.
    """

    stream: str
    seq: int
    duplicate: bool = False


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class PublishWindow:
    """Publishes with acknowledgement over a connection that is somebody else's.

    Args:
        client: a connection.
        size: how many messages may be unconfirmed at once; a further one waits.
        timeout_seconds: how long one message is tried, under one id, before it counts as not published.
    """

    def __init__(
        self, client: Client, *, size: int = WINDOW, timeout_seconds: float = TOTAL_TIMEOUT_SECONDS
    ) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._window = asyncio.Semaphore(size)
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._number = 0
        self._inbox = ""

    async def open(self) -> None:
        """Subscribe to the inbox on which streams confirm."""
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(
            f"{self._inbox}.*", cb=self._on_answer, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> PubAck:
        """Publish one message and wait until its stream has it.

        Args:
            subject: a literal subject.
            body: at most the server's `max_payload`, headers included.
            headers: should hold `Nats-Msg-Id`, so that a retry after a lost answer isn't stored twice.

        Returns:
            Which stream has it, and where.

        Raises:
            EncodeError: nothing can be published to such a subject; a line break in one would be a command.
            PublishError: it is too large, no stream takes the subject, the stream refused it, or nothing was
                confirmed in time. Only in the last case may it be stored all the same.
        """
        check_literal(subject)
        header_size = header_bytes(headers)
        size = len(body) + header_size
        if size > self._client.max_payload:
            raise PublishError(
                f"{subject}: body and headers are {size} bytes, the server takes {self._client.max_payload}; "
                "publish less, or raise the server's max_payload",
                subject=subject,
            )
        if header_size > MAX_HEADER_BYTES:
            raise PublishError(
                f"{subject}: headers are over {MAX_HEADER_BYTES} bytes; shorten them", subject=subject
            )
        async with self._window:
            deadline = time.monotonic() + self._timeout_seconds
            attempt_seconds = ACK_TIMEOUT_SECONDS
            while True:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise PublishError(
                        f"{subject}: no stream confirmed the event within {self._timeout_seconds:g} s",
                        subject=subject,
                    )
                answer = await self._attempt(subject, body, headers, min(attempt_seconds, remaining))
                if answer is not None:
                    return answer

    async def _attempt(
        self, subject: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float
    ) -> PubAck | None:
        self._number += 1
        name = str(self._number)
        answered: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[name] = answered
        try:
            await self._client.publish(
                subject, body, reply=f"{self._inbox}.{name}", headers=dict(headers) or None
            )
            # Not wait_for: Python 3.11's swallows a cancellation that comes together with the answer.
            async with asyncio.timeout(timeout_seconds):
                message = await answered
        except TimeoutError:
            return None
        except nats.errors.OutboundBufferLimitError:
            # Disconnected with a full buffer: wait for the connection, within the deadline.
            await asyncio.sleep(min(timeout_seconds, 0.1))
            return None
        except nats.errors.Error as error:
            raise PublishError(f"{subject}: {error}", subject=subject) from error
        finally:
            self._waiting.pop(name, None)
        return _read(subject, message)

    async def _on_answer(self, message: Msg) -> None:
        future = self._waiting.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(message)


def _read(subject: str, message: Msg) -> PubAck:
    if message.headers and message.headers.get("Status") == "503":
        raise PublishError(
            f"{subject}: no stream takes this subject; declare a Stream with it, or correct the subject",
            subject=subject,
        )
    try:
        answer = _decode_answer(message.data)
    except msgspec.MsgspecError as error:
        raise PublishError(f"{subject}: the answer can't be read: {error}", subject=subject) from error
    if answer.error is not None:
        raise PublishError(
            f"{subject}: the stream refused it: {answer.error.description}",
            subject=subject,
            code=answer.error.err_code,
        )
    return PubAck(answer.stream, answer.seq, answer.duplicate)


class Publisher:
    """Publishes events from programs that are no actors.

    ::

        async with Publisher.connect(["nats://127.0.0.1:4222"]) as publisher:
            await publisher.publish(Departed(carrier="UA", delay_minutes=75))

    Concurrent calls share one window; one that waits for its turn is backpressure.
    """

    def __init__(self, client: Client, window: PublishWindow, source: str) -> None:
        self._client = client
        self._window = window
        self._source = source

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, servers: ConnectionSpec | str | list[str], *, source: str = "understudy"
    ) -> AsyncIterator[Publisher]:
        """Connect for the length of a `with` block.

        Args:
            servers: NATS URLs, or a whole connection.
            source: says in the events' `ce-source` who published them.

        Raises:
            BrokerUnreachable: no server answers.
            BrokerRefused: a server turned us away.
        """
        if isinstance(servers, str):
            servers = [servers]
        spec = servers if isinstance(servers, ConnectionSpec) else ConnectionSpec(servers=tuple(servers))
        client = await connections.connect(spec, name=source)
        try:
            window = PublishWindow(client)
            await window.open()
            yield cls(client, window, source)
        finally:
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
        body = codec.encode(event)
        headers = event_headers(type(event), message_id or uuid.uuid4().hex, self._source, traceparent=None)
        return await self._window.publish(subject or subject_of(event), body, headers)

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
            PublishError: it was not confirmed.
        """
        return await self._window.publish(subject, body, {"Nats-Msg-Id": uuid.uuid4().hex, **(headers or {})})
