"""What the store has of sagas, read while they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec
import nats
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from understudy.actors.saga import SagaRecord
from understudy.actors.saga_position import ENDED, Phase
from understudy.runtime.cell.state import stored_value

# Asked for at once.
_PART = 256


async def read_records(url: str, bucket: str) -> dict[str, SagaRecord]:
    """Return all sagas in a bucket, by id."""
    async with _open(url, bucket) as kv:
        # Not by a watcher: each leaves a consumer for five minutes, and a stream has only so many.
        stream = await kv._js.stream_info(f"KV_{bucket}", subjects_filter=f"$KV.{bucket}.>")
        prefix = f"$KV.{bucket}."
        keys = [subject.removeprefix(prefix) for subject in stream.state.subjects or ()]
        found: dict[str, SagaRecord] = {}
        for first in range(0, len(keys), _PART):
            found |= await _read(kv, keys[first : first + _PART])
        return found


def records(url: str, bucket: str) -> dict[str, SagaRecord]:
    """The same for who has no event loop."""
    return asyncio.run(read_records(url, bucket))


def is_over(record: SagaRecord) -> bool:
    """Whether it has ended or is stuck."""
    return record.position.phase in (*ENDED, Phase.STUCK)


def over(found: dict[str, SagaRecord]) -> int:
    """How many have ended or are stuck."""
    return sum(map(is_over, found.values()))


class Progress:
    """How many of many sagas are over, asked again and again: those that are aren't read any more.

    Args:
        url: of the server.
        bucket: of the states.
        durable: whose they are.
        sagas: their ids, in the order in which they were started.
    """

    def __init__(self, url: str, bucket: str, durable: str, sagas: Iterable[str]) -> None:
        self._url = url
        self._bucket = bucket
        self._durable = durable
        self._sagas = dict.fromkeys(sagas)
        self._total = len(self._sagas)

    def over(self) -> int:
        """At least so many have ended or are stuck; all if it is all."""
        return asyncio.run(self._ask())

    async def _ask(self) -> int:
        async with _open(self._url, self._bucket) as kv:
            pending = list(self._sagas)
            for first in range(0, len(pending), _PART):
                part = pending[first : first + _PART]
                found = await _read(kv, [f"{self._durable}.{saga}" for saga in part])
                ended = [saga for saga, record in found.items() if is_over(record)]
                for saga in ended:
                    del self._sagas[saga]
                # They end nearly in the order in which they were started.
                if not ended:
                    break
        return self._total - len(self._sagas)


@asynccontextmanager
async def _open(url: str, bucket: str) -> AsyncIterator[KeyValue]:
    client = await nats.connect(url)
    try:
        yield await client.jetstream().key_value(bucket)
    finally:
        await client.close()


async def _read(kv: KeyValue, keys: list[str]) -> dict[str, SagaRecord]:
    found = {}
    for entry in await asyncio.gather(*(_get(kv, key) for key in keys)):
        if entry is not None:
            record = msgspec.msgpack.decode(stored_value(entry), type=SagaRecord)
            found[record.id] = record
    return found


async def _get(kv: KeyValue, key: str) -> bytes | None:
    try:
        return (await kv.get(key)).value
    except KeyNotFoundError:
        return None
