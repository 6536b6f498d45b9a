"""Answers requests of core NATS by nats-py alone, with what they hold.

Run as `python -m benchmarks.peers.responder URL SUBJECT`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import msgspec
import uvloop
from nats.aio.msg import Msg

from benchmarks.peers.pull_window import connect
from benchmarks.peers.worker import run_worker
from benchmarks.readings import Reading


async def start(url: str, subject: str) -> Callable[[], Awaitable[int]]:
    """Subscribe; return what ends it."""
    client = await connect(url)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Reading).decode
    answered = 0

    async def answer(message: Msg) -> None:
        nonlocal answered
        await client.publish(message.reply, encode(decode(message.data)))
        answered += 1

    async def stop() -> int:
        await client.flush()
        await client.close()
        return answered

    await client.subscribe(subject, cb=answer)
    await client.flush()
    return stop


if __name__ == "__main__":
    run_worker(start(sys.argv[1], sys.argv[2]), uvloop.new_event_loop)
