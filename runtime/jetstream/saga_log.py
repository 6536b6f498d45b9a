"""The sagas of an app as the server has them: who runs them, where each is, and what they are told."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from understudy.actors.errors import BrokerError
from understudy.actors.saga import Signal
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.consumers import read_marks
from understudy.runtime.jetstream.topology import state_bucket
from understudy.runtime.sagas import signal_subject

# So long a consumer outlives whoever has read by it.
WATCHER_GONE_SECONDS = 1.0
_encode = msgspec.msgpack.Encoder().encode


class SagaConsumer(msgspec.Struct, frozen=True, kw_only=True):
    """The durable consumer of a saga.

    Args:
        app, saga: whose it is.
        stream, durable: where it is.
    """

    app: str
    saga: str
    stream: str
    durable: str


async def find_sagas(client: Client, app: str | None = None, saga: str = "") -> list[SagaConsumer]:
    """Return the consumers of sagas, by their names; an app makes them when it first runs.

    Args:
        client: a connection.
        app: whose; None for those of all apps.
        saga: only those of this name; empty for any.

    Raises:
        BrokerError: the server did not answer.
    """
    found = []
    for stream in await _streams_with_timers(client):
        for listed in await api.list_consumers(client, stream):
            marks, durable = read_marks(listed), str(listed["name"])
            config = listed["config"]
            filters = config.get("filter_subjects") or [config.get("filter_subject")]
            if marks is not None and signal_subject(stream, durable) in filters:
                found.append(SagaConsumer(app=marks.app, saga=marks.actor, stream=stream, durable=durable))
    chosen = [one for one in found if one.app == (app or one.app) and one.saga == (saga or one.saga)]
    return sorted(chosen, key=lambda one: (one.app, one.saga))


async def read_states(client: Client, consumer: SagaConsumer) -> dict[str, bytes]:
    """Return what is stored of all sagas of a consumer, by their keys in the bucket.

    Raises:
        BrokerError: the server did not answer, or the bucket is gone.
    """
    bodies = {}
    try:
        kv = await client.jetstream().key_value(state_bucket(consumer.app))
        # The watcher's consumer is nobody's to delete: the server does it, five minutes later unless told.
        watcher = await kv.watch(
            f"{consumer.durable}.>", ignore_deletes=True, inactive_threshold=WATCHER_GONE_SECONDS
        )
        try:
            async for entry in watcher:
                # After what there is.
                if entry is None:
                    break
                if entry.value:
                    bodies[entry.key] = bytes(entry.value)
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        raise BrokerError(
            f"the sagas of {consumer.durable} can't be read: {str(error) or type(error).__name__}"
        ) from error
    return bodies


async def read_state(client: Client, consumer: SagaConsumer, name: str) -> bytes | None:
    """Return what is stored of one saga, None if there is none.

    Args:
        client: a connection.
        consumer: its.
        name: of its state.

    Raises:
        BrokerError: the server did not answer, or the bucket is gone.
    """
    try:
        kv = await client.jetstream().key_value(state_bucket(consumer.app))
        entry = await kv.get(f"{consumer.durable}.{name}")
    except nats.js.errors.KeyNotFoundError:
        return None
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        raise BrokerError(
            f"the sagas of {consumer.durable} can't be read: {str(error) or type(error).__name__}"
        ) from error
    return entry.value


async def tell(client: Client, consumer: SagaConsumer, signal: Signal) -> None:
    """Have a saga told something: now, or when its app runs.

    Raises:
        BrokerError: it was not confirmed.
    """
    headers = {"Nats-Msg-Id": uuid.uuid4().hex, "Content-Type": "application/msgpack"}
    subject = signal_subject(consumer.stream, consumer.durable)
    try:
        await client.jetstream().publish(subject, _encode(signal), headers=headers)
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        raise BrokerError(
            f"saga {signal.saga} was not told to {signal.kind}: {str(error) or type(error).__name__}"
        ) from error


async def _streams_with_timers(client: Client) -> list[str]:
    names: list[str] = []
    while True:
        body: dict[str, Any] = {"subject": "timers.>", "offset": len(names)}
        answer = await api.request(client, "STREAM.NAMES", body)
        more = answer.get("streams") or []
        names += more
        if not more or len(names) >= answer.get("total", 0):
            return names
