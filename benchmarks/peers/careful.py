"""The most that nats-py's public interface gives to who takes care.

An inbox of its own and a callback instead of `fetch`, pull requests that overlap, acks by a plain publish,
metadata read by hand. What it leaves out, understudy does beside: a bounded mailbox that is taken over after
a death, retries and dead letters, a watch over lost requests, reconnects under a new inbox.

Run as `python -m benchmarks.peers.careful URL STREAM DURABLE SUBJECT`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import msgspec
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.peers.worker import run_worker
from benchmarks.readings import Reading

WINDOW = 1_024
# A consumer that is resumed serves only requests that come after (nats-server 2.15.1).
EXPIRES_NANOSECONDS = 2 * 10**9
# So many messages may be handled before the connection's reader and writer have their turn.
BURST = 64


async def handle(_event: Reading) -> None:
    """Do nothing."""


class PullWindow:
    """Messages of a durable, asked for before the last ones are handled.

    Args:
        client: a connection.
        stream, durable: the consumer.
        handle: called with each event; its message is acked when it returns.
    """

    def __init__(
        self, client: Client, stream: str, durable: str, handle: Callable[[Reading], Awaitable[None]]
    ) -> None:
        self.acked = 0
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = client.new_inbox()
        self._handle = handle
        self._decode = msgspec.msgpack.Decoder(Reading).decode
        self._requested = 0
        self._burst = 0
        self._redelivered = 0

    async def start(self) -> None:
        """Subscribe and ask for the first messages."""
        await self._client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self._refill()
        await self._client.flush()

    async def _on_message(self, message: Msg) -> None:
        reply = message.reply
        if not reply.startswith("$JS.ACK."):
            await self._on_status(message)
            return
        tokens = reply.split(".")
        if tokens[-5] != "1":
            self._redelivered += 1
        await self._handle(self._decode(message.data))
        await self._client.publish(reply)
        self.acked += 1
        self._requested -= 1
        if self._requested <= WINDOW // 2:
            await self._refill()
        self._burst += 1
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)

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


async def start(url: str, stream: str, durable: str, _subject: str) -> Callable[[], Awaitable[int]]:
    """Subscribe; what is returned ends it and says how many messages were acknowledged."""
    client = await nats.connect(url, skip_subject_validation=True)
    window = PullWindow(client, stream, durable, handle)
    await window.start()

    async def stop() -> int:
        await client.flush()
        await client.close()
        return window.acked

    return stop


if __name__ == "__main__":
    run_worker(start(*sys.argv[1:]), uvloop.new_event_loop)
