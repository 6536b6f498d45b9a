"""The stream that messages are moved through, and what the server says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, StorageType
from nats.js.errors import NotFoundError

from benchmarks.errors import BenchmarkFailed
from benchmarks.readings import STREAM, SUBJECT, reading
from understudy.runtime.jetstream import api

PAUSE_HOURS = 1


class ConsumerView(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer as its server sees it at one moment.

    Args:
        pending: messages not delivered yet.
        ack_pending: delivered and not acknowledged.
        delivered: deliveries, repeats included.
        ack_floor: the stream sequence up to which all is acknowledged.
    """

    pending: int
    ack_pending: int
    delivered: int
    ack_floor: int

    @classmethod
    async def read(cls, client: Client, durable: str) -> Self:
        """Ask the server."""
        info = await api.consumer_info(client, STREAM, durable)
        if info is None:
            raise BenchmarkFailed(f"consumer {durable} is gone from the server")
        return cls(
            pending=info["num_pending"],
            ack_pending=info["num_ack_pending"],
            delivered=info["delivered"]["consumer_seq"],
            ack_floor=info["ack_floor"]["stream_seq"],
        )


async def make_stream(client: Client) -> None:
    """Make the stream, empty, in file storage."""
    await delete_stream(client, STREAM)
    await client.jetstream().add_stream(name=STREAM, subjects=[SUBJECT], storage=StorageType.FILE)


async def delete_stream(client: Client, stream: str) -> None:
    """Delete a stream if there is one."""
    try:
        await client.jetstream().delete_stream(stream)
    except NotFoundError:
        return


async def fill_stream(client: Client, messages: int) -> None:
    """Publish that many readings, each confirmed."""
    jetstream = client.jetstream()
    encode = msgspec.msgpack.Encoder().encode
    confirmations = [
        await jetstream.publish_async(SUBJECT, encode(reading(number))) for number in range(messages)
    ]
    await jetstream.publish_async_completed()
    for confirmation in confirmations:
        confirmation.result()


async def count_messages(client: Client, stream: str) -> int:
    """Return how many messages a stream holds; none if there is no such stream."""
    info = await api.stream_info(client, stream)
    return 0 if info is None else int(info["state"]["messages"])


async def make_plain_consumer(client: Client, durable: str) -> None:
    """Make a durable pull consumer as nats-py's defaults have it."""
    config = ConsumerConfig(durable_name=durable, ack_policy=AckPolicy.EXPLICIT, filter_subject=SUBJECT)
    await client.jetstream().add_consumer(STREAM, config)


async def delete_consumer(client: Client, durable: str) -> None:
    """Delete a consumer if there is one."""
    try:
        await client.jetstream().delete_consumer(STREAM, durable)
    except NotFoundError:
        return


async def pause(client: Client, durable: str) -> None:
    """Have the server hold everything back, so that who is measured can start in peace."""
    until = datetime.now(UTC) + timedelta(hours=PAUSE_HOURS)
    await client.jetstream().pause_consumer(STREAM, durable, until.strftime("%Y-%m-%dT%H:%M:%SZ"))


async def resume(client: Client, durable: str) -> None:
    """Let the server deliver."""
    await client.jetstream().resume_consumer(STREAM, durable)
