"""What a cell opens on its new connection before it takes deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from understudy.actors.errors import BrokerError
from understudy.actors.options import ActorOptions
from understudy.runtime.cell.start import CellStart
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.changes import NANOSECONDS
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.last_messages import LastMessages
from understudy.runtime.jetstream.pinning import misfit
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.topology import marks_bucket, state_bucket
from understudy.runtime.specs import StreamSpec
from understudy.runtime.stores.idempotency import KvMarks
from understudy.runtime.stores.state import StateStore


async def find_consumer(
    client: Connection, start: CellStart, options: ActorOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the server says of the cell's stream and its consumer.

    Raises:
        BrokerError: one of them is gone, or the consumer isn't one that this actor can use.
    """
    spec = start.spec
    stream = await api.stream_info(client, spec.stream)
    consumer = await api.consumer_info(client, spec.stream, spec.durable) if stream is not None else None
    if stream is None or consumer is None:
        missing = f"stream {spec.stream}" if stream is None else f"consumer {spec.durable}"
        raise BrokerError(f"{missing} is gone from the server; start 'understudy run' anew, which makes it")
    if problem := misfit(spec.durable, consumer["config"], owned=options.is_sole_owner):
        raise BrokerError(problem)
    return stream, consumer


def with_max_age(streams: Iterable[StreamSpec], config: Mapping[str, Any]) -> tuple[StreamSpec, ...]:
    """Return the app's streams, one of them with the age that its messages may have on the server.

    Args:
        streams: the app's, as they are declared.
        config: the server's of that one.
    """
    # 0 for any.
    age = config.get("max_age") or None
    seconds = None if age is None else age / NANOSECONDS
    return tuple(
        msgspec.structs.replace(one, max_age_seconds=seconds) if one.name == config["name"] else one
        for one in streams
    )


async def open_state_store(
    client: Connection, window: PublishWindow, start: CellStart, options: ActorOptions
) -> StateStore | None:
    """Open where the actor's state is kept; None if it has none."""
    if options.state is None:
        return None
    return await StateStore.open(client, window, state_bucket(start.run.app), start.spec.durable)


async def open_mark_store(
    client: Connection, window: PublishWindow, start: CellStart, options: ActorOptions
) -> KvMarks | None:
    """Open where the actor's idempotency has its marks; None if it has none on the server."""
    idempotency = options.idempotency
    if idempotency is None or idempotency.store != "kv":
        return None
    bucket = marks_bucket(start.run.app)
    lookups = LastMessages(client, f"KV_{bucket}")
    await lookups.open()
    return await KvMarks.open(
        client,
        lookups,
        window,
        bucket=bucket,
        durable=start.spec.durable,
        window_seconds=idempotency.window_seconds,
    )
