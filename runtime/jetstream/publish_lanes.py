"""The two ways of a message to the wire and of its answer back: as frames, or by nats-py's public API."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.fast_lane import FastClient

Answered: TypeAlias = Callable[[bytes, bytes, bytes], None]
"""Called with an answer's token, its header block, empty if it has none, and its body."""
Unwritten: TypeAlias = Callable[[bytes, str], None]
"""Called with the token of what was not written and the problem, empty if the connection is away."""

# The server's word that nobody is there to answer.
NO_RESPONDERS = "503"


class Message(msgspec.Struct, eq=False):
    """What is published.

    Args:
        subject: where to.
        wire_subject: the same as bytes.
        body: the message.
        headers: their block, or nothing.
        token: the last part of the reply subject, by which the answer is known.
    """

    subject: str
    wire_subject: bytes
    body: bytes
    headers: bytes
    token: bytes

    @property
    def size(self) -> int:
        """Bytes of body and headers, which the server bounds."""
        return len(self.body) + len(self.headers)


class FastLane:
    """Writes frames, and reads answers as the frames they are.

    Args:
        client: on the fast lane.
        answered: may not raise.
    """

    def __init__(self, client: FastClient, answered: Answered) -> None:
        self._client = client
        self._answered = answered
        self._inbox = b""
        self._frames: list[bytes] = []

    async def open(self) -> None:
        """Subscribe to an inbox for the answers."""
        inbox = self._client.new_inbox()
        self._inbox = f"{inbox}.".encode()
        self._client.receive(await self._client.subscribe(f"{inbox}.*"), self._on_frame)

    def write(self, message: Message) -> None:
        """Have a message written together with others, when the event loop comes round."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._write)
        block, body = message.headers, message.body
        size = len(block)
        self._frames.append(
            b"HPUB %b %b%b %d %d\r\n%b%b\r\n"
            % (message.wire_subject, self._inbox, message.token, size, size + len(body), block, body)
            if block
            else b"PUB %b %b%b %d\r\n%b\r\n"
            % (message.wire_subject, self._inbox, message.token, len(body), body)
        )

    def forget(self) -> None:
        """Drop what waits to be written."""
        self._frames.clear()

    def _write(self) -> None:
        frames, self._frames = self._frames, []
        # Without a connection they are dropped: the window writes them anew, in order, when there is one.
        with suppress(nats.errors.ConnectionClosedError):
            self._client.write_now(b"".join(frames))

    def _on_frame(self, subject: bytes, _reply: bytes, block: bytes, body: bytes) -> None:
        self._answered(subject[len(self._inbox) :], block, body)


class PublicLane:
    """The same by nats-py's public API, where writing is a coroutine: one task writes for all.

    Args:
        client: a connection.
        answered: may not raise.
        unwritten: may not raise.
    """

    def __init__(self, client: Client, answered: Answered, unwritten: Unwritten) -> None:
        self._client = client
        self._answered = answered
        self._unwritten = unwritten
        self._inbox = ""
        self._waiting: deque[Message] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Subscribe to an inbox for the answers."""
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(
            f"{self._inbox}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )

    def write(self, message: Message) -> None:
        """Have a message written after all that waits to be written."""
        self._waiting.append(message)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    def forget(self) -> None:
        """Drop what waits to be written."""
        self._waiting.clear()

    async def _write(self) -> None:
        try:
            while self._waiting:
                message = self._waiting.popleft()
                token = message.token.decode()
                try:
                    await self._client.publish(
                        message.subject,
                        message.body,
                        reply=f"{self._inbox}.{token}",
                        headers=_plain(message.headers),
                    )
                except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
                    self._unwritten(message.token, "")
                except nats.errors.Error as error:
                    self._unwritten(message.token, str(error))
        finally:
            self._writer = None

    async def _on_message(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2].encode()
        found = dict(message.headers or {})
        status = found.pop("Status", "")
        self._answered(token, headers.encode(found, status), message.data)


def _plain(block: bytes) -> dict[str, str] | None:
    # nats-py encodes them anew, and strictly: what isn't UTF-8 becomes question marks.
    text = block.decode(errors="surrogateescape").encode(errors="replace")
    return headers.parse(text) or None
