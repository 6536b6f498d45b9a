"""The streams that messages are moved through, and what the server says of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, StorageType
from nats.js.errors import NotFoundError

from benchmarks.errors import BenchmarkFailed
from benchmarks.feeds import Feed
from benchmarks.harness import Stage
from understudy.runtime.jetstream import api

UNCONFIRMED = 4_096
CONFIRM_SECONDS = 30.0


class ConsumerView(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer as its server sees it at one moment.

    Args:
        pending: messages not delivered yet.
        ack_pending: delivered and not acknowledged.
        delivered: deliveries, repeats included.
        last: the stream sequence of the last one delivered.
        ack_floor: the stream sequence up to which all is acknowledged.
    """

    pending: int
    ack_pending: int
    delivered: int
    last: int
    ack_floor: int

    @classmethod
    async def read(cls, client: Client, stream: str, durable: str) -> Self:
        """Ask the server."""
        info = await api.consumer_info(client, stream, durable)
        if info is None:
            raise BenchmarkFailed(f"consumer {durable} is gone from the server")
        return cls(
            pending=info["num_pending"],
            ack_pending=info["num_ack_pending"],
            delivered=info["delivered"]["consumer_seq"],
            last=info["delivered"]["stream_seq"],
            ack_floor=info["ack_floor"]["stream_seq"],
        )


async def make_stream(client: Client, feed: Feed) -> None:
    """Make a feed's stream, empty, in file storage."""
    await delete_stream(client, feed.stream)
    await client.jetstream().add_stream(name=feed.stream, subjects=[feed.subject], storage=StorageType.FILE)


async def delete_stream(client: Client, stream: str) -> None:
    """Delete a stream if there is one."""
    try:
        await client.jetstream().delete_stream(stream)
    except NotFoundError:
        return


async def delete_streams(client: Client) -> None:
    """Delete every stream that there is."""
    for stream in await client.jetstream().streams_info():
        await delete_stream(client, stream.config.name or "")


async def fill_stream(stage: Stage, feed: Feed, messages: int) -> None:
    """Make a feed's stream and publish that many messages, each confirmed.

    Args:
        stage: where.
        feed: which.
        messages: how many.
    """
    client = stage.client
    await make_stream(client, feed)
    encode = msgspec.msgpack.Encoder().encode
    headers = dict(feed.headers) or None
    confirmed = 0
    moved = asyncio.Event()

    async def on_confirmation(message: Msg) -> None:
        nonlocal confirmed
        if b'"error"' in message.data:
            raise BenchmarkFailed(f"{feed.stream}: a publish was refused: {message.data.decode()}")
        confirmed += 1
        moved.set()

    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=on_confirmation)
    stage.progress.begin(f"filling {feed.stream}: ")
    for number in range(messages):
        await client.publish(feed.subject, encode(feed.event(number)), reply=inbox, headers=headers)
        while number + 1 - confirmed >= UNCONFIRMED:
            await _moves(moved, feed)
            stage.progress.at(f"{confirmed:,} of {messages:,}")
    while confirmed < messages:
        await _moves(moved, feed)
    await subscription.unsubscribe()


async def _moves(moved: asyncio.Event, feed: Feed) -> None:
    moved.clear()
    try:
        async with asyncio.timeout(CONFIRM_SECONDS):
            await moved.wait()
    except TimeoutError as error:
        raise BenchmarkFailed(f"{feed.stream}: no publish was confirmed for {CONFIRM_SECONDS:g} s") from error


async def count_messages(client: Client, stream: str) -> int:
    """Return how many messages a stream holds; none if there is no such stream."""
    info = await api.stream_info(client, stream)
    return 0 if info is None else int(info["state"]["messages"])


async def make_pull_consumer(
    client: Client, feed: Feed, durable: str, *, ack_wait_seconds: float | None = None
) -> None:
    """Make a durable pull consumer; what isn't given is as nats-py and the server have it.

    Args:
        client: a connection.
        feed: what it consumes.
        durable: its name.
        ack_wait_seconds: when the server delivers again what isn't acknowledged.
    """
    await _make_consumer(client, feed, ConsumerConfig(durable_name=durable, ack_wait=ack_wait_seconds))


async def make_push_consumer(client: Client, feed: Feed, durable: str) -> None:
    """Make a durable push consumer as nats-py's defaults have it."""
    config = ConsumerConfig(durable_name=durable, deliver_subject=f"deliver.{durable}")
    await _make_consumer(client, feed, config)


async def _make_consumer(client: Client, feed: Feed, config: ConsumerConfig) -> None:
    config = config.evolve(ack_policy=AckPolicy.EXPLICIT, filter_subject=feed.subject)
    await client.jetstream().add_consumer(feed.stream, config)


async def delete_consumer(client: Client, stream: str, durable: str) -> None:
    """Delete a consumer if there is one."""
    try:
        await client.jetstream().delete_consumer(stream, durable)
    except NotFoundError:
        return


async def pause(client: Client, stream: str, durable: str) -> None:
    """Have the server hold everything back, so that who is measured can start in peace."""
    await _pause_for(client, stream, durable, timedelta(hours=1))


async def resume(client: Client, stream: str, durable: str) -> None:
    """Let the server deliver, in a moment."""
    # Resumed by request, nats-server 2.15.1 doesn't serve who waits already; at the end of a pause it does.
    # One that has ended when the server hears of it, on a busy machine, counts as a request.
    for seconds in (0.05, 0.5, 5.0):
        if await _pause_for(client, stream, durable, timedelta(seconds=seconds)):
            return
        await pause(client, stream, durable)
    raise BenchmarkFailed(f"consumer {durable} can't be resumed: the machine is too busy")


async def _pause_for(client: Client, stream: str, durable: str, duration: timedelta) -> bool:
    until = (datetime.now(UTC) + duration).isoformat().replace("+00:00", "Z")
    return bool((await client.jetstream().pause_consumer(stream, durable, until)).paused)
