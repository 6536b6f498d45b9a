"""A consumer as most are written with nats-py: fetch a batch, handle each message, ack it.

Run as `python -m benchmarks.peers.fetch_loop asyncio|uvloop URL STREAM DURABLE SUBJECT`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import msgspec
import nats
import nats.errors
import uvloop

from benchmarks.peers.worker import run_worker
from benchmarks.readings import Reading

BATCH = 256


async def handle(_event: Reading) -> None:
    """Do nothing."""


async def start(url: str, stream: str, durable: str, _subject: str) -> Callable[[], Awaitable[int]]:
    """Subscribe and begin to handle messages; what is returned ends that and says how many they were."""
    client = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe_bind(durable, stream)
    decode = msgspec.msgpack.Decoder(Reading).decode
    acked = 0

    async def work() -> None:
        nonlocal acked
        while True:
            try:
                messages = await subscription.fetch(BATCH)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                await handle(decode(message.data))
                await message.ack()
                acked += 1

    working = asyncio.create_task(work())

    async def stop() -> int:
        working.cancel()
        await asyncio.wait([working])
        await client.close()
        return acked

    return stop


if __name__ == "__main__":
    loop, *consumer = sys.argv[1:]
    run_worker(start(*consumer), uvloop.new_event_loop if loop == "uvloop" else None)
