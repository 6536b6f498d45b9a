"""A publisher as it is written with nats-py.

Run as `python -m benchmarks.peers.nats_publish URL MESSAGES each|each-ids|async|async-ids`.
"""

from __future__ import annotations

import asyncio
import sys
import uuid

import msgspec
import nats
from nats.js import JetStreamContext
from nats.js.api import PubAck

from benchmarks.peers.clock import Clock
from benchmarks.readings import SUBJECT, reading

encode = msgspec.msgpack.Encoder().encode


async def publish_each(jetstream: JetStreamContext, messages: int, *, ids: bool) -> list[PubAck]:
    """Publish, wait for the confirmation, publish the next."""
    return [
        await jetstream.publish(SUBJECT, encode(reading(number)), headers=_headers(ids))
        for number in range(messages)
    ]


async def publish_async(jetstream: JetStreamContext, messages: int, *, ids: bool) -> list[PubAck]:
    """Publish within nats-py's own window, then wait for all that is unconfirmed."""
    # Not with `wait_stall`: a bound on the wait for room makes a task per message, and a fifth of the rate.
    futures = [
        await jetstream.publish_async(
            SUBJECT,
            encode(reading(number)),
            headers=_headers(ids),
        )
        for number in range(messages)
    ]
    await jetstream.publish_async_completed()
    return [future.result() for future in futures]


def _headers(ids: bool) -> dict[str, str] | None:
    return {"Nats-Msg-Id": uuid.uuid4().hex} if ids else None


async def main(url: str, messages: int, how: str) -> None:
    """Publish them all and say how long it took."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    publish = publish_each if how.startswith("each") else publish_async
    clock = Clock()
    confirmations = await publish(jetstream, messages, ids=how.endswith("-ids"))
    clock.print_result(sum(not confirmation.duplicate for confirmation in confirmations))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
