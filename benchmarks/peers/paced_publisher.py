"""Publishes events at a steady rate, each confirmed, and each with the time at which it was published.

Run as `python -m benchmarks.peers.paced_publisher URL SUBJECT MESSAGES RATE`; with a rate of 0 it publishes
as fast as it can.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.peers.clock import Clock
from benchmarks.peers.pull_window import connect
from benchmarks.readings import ping

UNCONFIRMED = 4_096


class Publishing:
    """A stream of publishes, whose confirmations come to an inbox of its own.

    Args:
        client: a connection.
        subject: where to.
        messages: how many.
    """

    def __init__(self, client: Client, subject: str, messages: int) -> None:
        self.confirmed = 0
        self._client = client
        self._subject = subject
        self._messages = messages
        self._inbox = client.new_inbox()
        self._encode = msgspec.msgpack.Encoder().encode
        self._moved = asyncio.Event()

    async def run(self, rate: float) -> None:
        """Publish everything, and return when it is confirmed.

        Args:
            rate: messages per second; 0 is as fast as it goes.
        """
        await self._client.subscribe(self._inbox, cb=self._on_confirmation)
        began = time.monotonic()
        for number in range(self._messages):
            if rate:
                await _sleep_until(began + number / rate)
            elif number - self.confirmed >= UNCONFIRMED:
                await self._wait()
            event = ping(time.monotonic_ns())
            await self._client.publish(self._subject, self._encode(event), reply=self._inbox)
        while self.confirmed < self._messages:
            await self._wait()

    async def _on_confirmation(self, message: Msg) -> None:
        if b'"error"' in message.data:
            print(message.data.decode(), file=sys.stderr)
            sys.exit(1)
        self.confirmed += 1
        self._moved.set()

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()


async def _sleep_until(moment: float) -> None:
    # A timer may be early by less than a millisecond.
    if (early := moment - time.monotonic()) > 0:
        await asyncio.sleep(early)


async def main(url: str, subject: str, messages: int, rate: float) -> None:
    """Publish them all and say how long it took."""
    client = await connect(url)
    publishing = Publishing(client, subject, messages)
    clock = Clock()
    await publishing.run(rate)
    clock.print_result(publishing.confirmed)
    await client.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
