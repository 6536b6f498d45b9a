"""The first of a pair with the most care that nats-py's public interface allows.

What follows is published to an inbox of its own, without waiting, and a message is acked when its publish is
confirmed. A publish that is never confirmed leaves its message unacked, and so to redelivery.

Run as `python -m benchmarks.peers.careful_relay URL STREAM DURABLE SUBJECT`; SUBJECT is what it publishes to.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import msgspec
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.peers.pull_window import PullWindow, connect
from benchmarks.peers.worker import run_worker
from benchmarks.readings import Reading


class RelayWindow(PullWindow[Reading]):
    """A pull window whose messages are acked when what follows from them is confirmed.

    Args:
        client: a connection.
        stream: the consumer's stream.
        durable: the consumer.
        subject: what it publishes to.
    """

    def __init__(self, client: Client, stream: str, durable: str, subject: str) -> None:
        super().__init__(client, stream, durable, Reading, _pass)
        self._durable = durable
        self._subject = subject
        self._confirmations = client.new_inbox()
        self._encode = msgspec.msgpack.Encoder().encode
        self._unconfirmed: dict[str, str] = {}

    async def start(self) -> None:
        """Subscribe to confirmations first."""
        await self._client.subscribe(
            f"{self._confirmations}.*", cb=self._on_confirmation, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await super().start()

    async def _on_message(self, message: Msg) -> None:
        if not message.reply.startswith("$JS.ACK."):
            await self._on_status(message)
            return
        event = self._decode(message.data)
        await self._handle(event)
        sequence = message.reply.split(".")[5]
        self._unconfirmed[sequence] = message.reply
        await self._client.publish(
            self._subject,
            self._encode(event),
            reply=f"{self._confirmations}.{sequence}",
            headers={"Nats-Msg-Id": f"{self._durable}-{sequence}"},
        )
        if self._ends_burst():
            await asyncio.sleep(0)

    async def _on_confirmation(self, message: Msg) -> None:
        if b'"error"' in message.data:
            print(message.data.decode(), file=sys.stderr)
            return
        await self._client.publish(self._unconfirmed.pop(message.subject.rpartition(".")[2]))
        if self._count_ack():
            await self._refill()
        if self._ends_burst():
            await asyncio.sleep(0)


async def _pass(_event: Reading) -> None:
    """What a handler does before the same event goes on."""


async def start(url: str, stream: str, durable: str, subject: str) -> Callable[[], Awaitable[int]]:
    """Subscribe; what is returned ends it and says how many messages were acknowledged."""
    window = RelayWindow(await connect(url), stream, durable, subject)
    await window.start()
    return window.stop


if __name__ == "__main__":
    run_worker(start(*sys.argv[1:]), uvloop.new_event_loop)
