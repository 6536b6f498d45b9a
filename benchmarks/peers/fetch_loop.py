"""A consumer as most are written with nats-py: fetch a batch, handle each message, ack it.

Run as `python -m benchmarks.peers.fetch_loop URL STREAM DURABLE asyncio|uvloop`. Prints a line when it is
subscribed; SIGTERM ends it, and then it prints how many messages it acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import msgspec
import nats
import nats.errors
import uvloop

from benchmarks.readings import Reading

BATCH = 256


async def handle(_event: Reading) -> None:
    """Do nothing."""


async def consume(url: str, stream: str, durable: str) -> int:
    """Handle messages until SIGTERM, and return how many."""
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
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    print("ready", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await working
    await client.close()
    return acked


def main(url: str, stream: str, durable: str, loop: str) -> None:
    """Run on the loop that was asked for."""
    factory = uvloop.new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        print(runner.run(consume(url, stream, durable)))


if __name__ == "__main__":
    main(*sys.argv[1:])
