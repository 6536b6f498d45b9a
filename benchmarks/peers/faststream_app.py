"""FastStream at its best: no logger, no middleware, an async decoder, the same struct, on uvloop.

Pulled messages are validated by FastStream as well, which is its default and calls its handlers typed; pushed
ones and batches aren't, its fastest way, since the decoder returns the type that the handler takes.

Run as `python -m benchmarks.peers.faststream_app pull|push|batch URL STREAM DURABLE SUBJECT`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop
from fast_depends.msgspec import MsgSpecSerializer
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from benchmarks.batches import BATCH
from benchmarks.peers.worker import run_worker
from benchmarks.readings import Reading

_decode = msgspec.msgpack.Decoder(Reading).decode


async def decode(message: NatsMessage) -> Reading:
    """Decode a body."""
    return _decode(message.body)


async def decode_batch(message: Any) -> list[Reading]:
    """Decode the bodies of a batch."""
    return [_decode(body) for body in message.body]


async def start(mode: str, url: str, stream: str, durable: str, subject: str) -> Callable[[], Awaitable[int]]:
    """Subscribe; what is returned ends it and says how many messages were handled, and so acknowledged."""
    broker = NatsBroker(url, logger=None, apply_types=mode == "pull", serializer=MsgSpecSerializer())
    acked = 0

    async def handle(_event: Reading) -> None:
        nonlocal acked
        acked += 1

    async def handle_batch(events: list[Reading]) -> None:
        nonlocal acked
        acked += len(events)

    where: dict[str, Any] = {
        "subject": subject,
        "stream": JStream(stream, declare=False),
        "durable": durable,
    }
    if mode == "pull":
        broker.subscriber(**where, decoder=decode, pull_sub=PullSub(batch_size=BATCH))(handle)
    elif mode == "push":
        broker.subscriber(**where, decoder=decode)(handle)
    else:
        # What arrives at the moment of a timeout isn't handled before `ack_wait` (0.7.8, nats-py 2.16).
        pull = PullSub(batch_size=BATCH, timeout=None, batch=True)
        broker.subscriber(**where, decoder=decode_batch, pull_sub=pull)(handle_batch)
    await broker.start()

    async def stop() -> int:
        await broker.stop()
        return acked

    return stop


if __name__ == "__main__":
    run_worker(start(*sys.argv[1:]), uvloop.new_event_loop)
