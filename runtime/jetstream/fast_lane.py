"""The fast lane: a nats-py client whose parser hands chosen subscriptions' frames over as they are.

nats-py makes an object of each message, parses its headers, and passes it through a queue and a task; for a
pull consumer that is three quarters of what a delivery costs. Here complete frames go straight from the read
buffer to a receiver. All other frames, and all that is split over two reads, are nats-py's own parser's.

This is the one module that touches what nats-py keeps to itself, so nats-py is capped at the minor version
that it was tested with, and `self_check` proves on the living connection that it works as expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

SELF_CHECK_SECONDS = 2.0
_MSG, _HMSG = ord("M"), ord("H")

Receiver: TypeAlias = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with a frame's subject, reply subject, header block and body, each empty if there is none.

It runs within the connection's reader: it may not block, and an exception would end the connection.
"""


class FastParser(Parser):
    """nats-py's parser, but for complete frames of subscriptions that have a receiver."""

    def __init__(self, client: FastClient) -> None:
        super().__init__(client)
        self.receivers: dict[bytes, Receiver] = {}
        self._resets = 0

    def reset(self) -> None:
        """Forget what was half read: the connection is new."""
        super().reset()
        self._resets = getattr(self, "_resets", 0) + 1

    async def parse(self, data: bytes = b"") -> None:
        """Handle what was read."""
        if self.state != AWAITING_CONTROL_LINE:
            # The rest of a frame that was split: nats-py's parser gets so much of it and no more.
            missing = self.needed + 2 - len(self.buf)
            await super().parse(data[:missing])
            data = data[missing:]
        elif self.buf:
            data = bytes(self.buf) + data
            self.buf.clear()
        resets = self._resets
        try:
            position = self._hand_over(data)
            while position < len(data):
                end = _frame_end(data, position)
                await super().parse(data[position:end])
                if self._resets != resets:
                    # That ended the connection: the rest of what it said counts no more.
                    return
                position = self._hand_over(data, end)
        except (ValueError, IndexError) as error:
            # Only this one has nats-py connect anew; it would stop reading for ever after any other.
            raise nats.errors.ProtocolError(f"malformed frame: {error}") from error

    def _hand_over(self, data: bytes, position: int = 0) -> int:
        """Hand over complete frames, and return where the first one begins that isn't ours."""
        find, receivers, length = data.find, self.receivers, len(data)
        while position < length:
            kind = data[position]
            if kind != _MSG and kind != _HMSG:
                return position
            line_end = find(b"\r\n", position)
            if line_end < 0:
                return position
            # MSG subject sid [reply] bytes, HMSG subject sid [reply] header-bytes bytes
            words = data[position:line_end].split(b" ")
            receiver = receivers.get(words[2])
            if receiver is None:
                return position
            start = line_end + 2
            end = start + int(words[-1])
            if end + 2 > length:
                return position
            if kind == _MSG:
                receiver(words[1], words[3] if len(words) == 5 else b"", b"", data[start:end])
            else:
                body = start + int(words[-2])
                receiver(words[1], words[3] if len(words) == 6 else b"", data[start:body], data[body:end])
            position = end + 2
        return position


class FastClient(Client):
    """A client of which some subscriptions are received raw, and that writes frames as they are."""

    def __init__(self) -> None:
        super().__init__()
        self._ps: FastParser = FastParser(self)

    def receive(self, subscription: Subscription, receiver: Receiver) -> None:
        """Have a subscription's frames handed to a receiver instead of its callback.

        Args:
            subscription: one of this client's.
            receiver: may not block or raise.
        """
        self._ps.receivers[b"%d" % subscription._id] = receiver

    def forget(self, subscription: Subscription) -> None:
        """Hand over nothing more; to be called when the subscription ends."""
        self._ps.receivers.pop(b"%d" % subscription._id, None)

    def write(self, frames: bytes) -> None:
        """Have protocol frames written after all that was written before.

        Without a connection they wait for the next one, as what nats-py publishes does.

        Args:
            frames: complete `PUB` or `HPUB` frames.

        Raises:
            ConnectionClosedError: the connection has ended for good.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        self._pending.append(frames)
        self._pending_data_size += len(frames)
        queue = self._flush_queue
        if queue is not None and queue.empty() and self.is_connected:
            queue.put_nowait(asyncio.get_running_loop().create_future())

    async def send(self, frames: bytes) -> None:
        """Write as `write` does, but wait while more is unwritten than may be.

        Args:
            frames: complete `PUB` or `HPUB` frames.

        Raises:
            ConnectionClosedError: the connection has ended for good.
            OutboundBufferLimitError: it is away, and as much waits for the next one as may.
        """
        is_full = self._pending_data_size + len(frames) > self._max_pending_size
        if is_full and not self.is_connected:
            raise nats.errors.OutboundBufferLimitError
        self.write(frames)
        if is_full:
            await self._flush_pending(force_flush=True)

    def write_now(self, frames: bytes) -> None:
        """Write protocol frames, and before them what waits to be written.

        What the connection takes with it when it breaks is never written to the next one, unlike `write`'s:
        whoever repeats it can keep the order. It isn't slowed down by a server that doesn't read, so that
        the caller has to bound what is unanswered.

        Args:
            frames: complete `PUB` or `HPUB` frames.

        Raises:
            ConnectionClosedError: there is no connection now.
        """
        if not self.is_connected or self._transport is None:
            raise nats.errors.ConnectionClosedError
        try:
            self._transport.write(b"".join([*self._pending, frames]))
        except (OSError, RuntimeError) as error:
            # uvloop's word for a socket that was closed a moment ago.
            raise nats.errors.ConnectionClosedError from error
        self._pending = []
        self._pending_data_size = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # What nats-py's parser put together from several reads.
        receiver = self._ps.receivers.get(b"%d" % sid)
        if receiver is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            receiver(subject, reply, headers or b"", data)


async def self_check(client: FastClient) -> str:
    """Send frames of every kind to ourselves, and look at what comes back.

    Args:
        client: connected.

    Returns:
        What is wrong; empty if the fast lane works.
    """
    inbox = client.new_inbox()
    block = b"NATS/1.0\r\nA: b\r\n\r\n"
    large = (bytes(range(256)) * 512)[: client.max_payload]
    sent = [(b"", b""), (b"", b"body"), (block, b""), (block, b"body"), (b"", large), (b"", b"last")]
    received: list[tuple[bytes, bytes, bytes, bytes]] = []
    complete = asyncio.Event()

    def receiver(subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        received.append((subject, reply, headers, body))
        if len(received) == len(sent):
            complete.set()

    try:
        subscription = await client.subscribe(inbox)
        client.receive(subscription, receiver)
        for headers, body in sent:
            size = len(headers) + len(body)
            start = (
                b"HPUB %b to %d %d\r\n" % (inbox.encode(), len(headers), size)
                if headers
                else b"PUB %b to %d\r\n" % (inbox.encode(), size)
            )
            # Both ways to write, the second of which has what waits go first.
            write = client.write_now if body == b"last" else client.write
            write(start + headers + body + b"\r\n")
        async with asyncio.timeout(SELF_CHECK_SECONDS):
            await complete.wait()
        client.forget(subscription)
        await subscription.unsubscribe()
    except (nats.errors.Error, TimeoutError, AttributeError, TypeError, ValueError) as error:
        return (
            f"{type(error).__name__} {error}".strip() + f", with {len(received)} of {len(sent)} frames back"
        )
    expected = [(inbox.encode(), b"to", headers, body) for headers, body in sent]
    return "" if received == expected else "what came is not what was sent"


def _frame_end(data: bytes, position: int) -> int:
    """Return where a frame that isn't handed over ends, or the end of the data if it isn't complete."""
    line_end = data.find(b"\r\n", position)
    if line_end < 0:
        return len(data)
    if data[position] not in (_MSG, _HMSG):
        return line_end + 2
    return min(len(data), line_end + 2 + int(data[position:line_end].rpartition(b" ")[2]) + 2)
