"""The most that nats-py's public interface gives to who takes care.

An inbox of its own and a callback instead of `fetch`, pull requests that overlap, acks by a plain publish,
metadata read by hand. What it leaves out, understudy does beside: a bounded mailbox that is taken over after
a death, retries and dead letters, a watch over lost requests, reconnects under a new inbox.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

WINDOW = 1_024
EXPIRES_NANOSECONDS = 30 * 10**9
# So many messages may be handled before the connection's reader and writer have their turn.
BURST = 64

EventT = TypeVar("EventT")


async def connect(url: str) -> Client:
    """Connect, without a check of every subject that is published to."""
    return await nats.connect(url, skip_subject_validation=True)


class PullWindow(Generic[EventT]):
    """Messages of a durable, asked for before the last ones are handled.

    Args:
        client: a connection.
        stream, durable: the consumer.
        event_type: what bodies are decoded into.
        handle: called with each event; its message is acked when it returns.

    Attributes:
        acked: how many messages were acknowledged.
        redelivered: how many deliveries were not a message's first.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        durable: str,
        event_type: type[EventT],
        handle: Callable[[EventT], Awaitable[None]],
    ) -> None:
        self.acked = 0
        self.redelivered = 0
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = client.new_inbox()
        self._handle = handle
        self._decode = msgspec.msgpack.Decoder(event_type).decode
        self._requested = 0
        self._burst = 0

    async def start(self) -> None:
        """Subscribe and ask for the first messages."""
        await self._client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self._refill()
        await self._client.flush()

    async def stop(self) -> int:
        """Write what is unwritten, close the connection, and return how many messages were acknowledged."""
        await self._client.flush()
        await self._client.close()
        return self.acked

    async def _on_message(self, message: Msg) -> None:
        reply = message.reply
        if not reply.startswith("$JS.ACK."):
            await self._on_status(message)
            return
        # Nine tokens, since the server here has no domain; the fifth counts deliveries.
        if reply.split(".")[4] != "1":
            self.redelivered += 1
        await self._handle(self._decode(message.data))
        await self._client.publish(reply)
        if self._count_ack():
            await self._refill()
        if self._ends_burst():
            await asyncio.sleep(0)

    def _ends_burst(self) -> bool:
        self._burst = (self._burst + 1) % BURST
        return self._burst == 0

    def _count_ack(self) -> bool:
        self.acked += 1
        self._requested -= 1
        return self._requested <= WINDOW // 2

    async def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        # Of a request that has ended, what wasn't delivered is to be asked for again.
        self._requested -= int(headers.get("Nats-Pending-Messages", 0))
        await self._refill()

    async def _refill(self) -> None:
        batch = WINDOW - self._requested
        if batch > 0:
            self._requested += batch
            request = json.dumps({"batch": batch, "expires": EXPIRES_NANOSECONDS}).encode()
            await self._client.publish(self._next, request, reply=self._inbox)
