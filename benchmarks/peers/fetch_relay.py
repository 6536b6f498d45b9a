"""The first of a pair as most are written with nats-py: fetch a batch; publish what follows, then ack.

Run as `python -m benchmarks.peers.fetch_relay URL STREAM DURABLE SUBJECT`; SUBJECT is what it publishes to.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import msgspec
import nats
import nats.errors
from nats.aio.msg import Msg

from benchmarks.peers.worker import run_worker
from benchmarks.readings import Reading

BATCH = 256

_decode = msgspec.msgpack.Decoder(Reading).decode
_encode = msgspec.msgpack.Encoder().encode


async def handle(event: Reading) -> Reading:
    """Return what follows."""
    return event


def message_id(durable: str, message: Msg) -> str:
    """Return an id that is the same if the message comes again."""
    return f"{durable}-{message.reply.split('.')[5]}"


async def start(url: str, stream: str, durable: str, subject: str) -> Callable[[], Awaitable[int]]:
    """Subscribe and begin to handle messages; what is returned ends that and says how many they were."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    subscription = await jetstream.pull_subscribe_bind(durable, stream)
    acked = 0

    async def work() -> None:
        nonlocal acked
        while True:
            try:
                messages = await subscription.fetch(BATCH)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                body = _encode(await handle(_decode(message.data)))
                await jetstream.publish(subject, body, headers={"Nats-Msg-Id": message_id(durable, message)})
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
    run_worker(start(*sys.argv[1:]), None)
