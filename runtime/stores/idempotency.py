"""Which events an actor has handled: their marks, in a NATS KV bucket and in a bounded memory.

A mark is made once: of two cells that handle one event the later one finds the other's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
from typing import Any, Protocol

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js.kv import KeyValue

from understudy.actors.errors import BrokerError
from understudy.runtime.stores.buckets import open_bucket

# The server's word that there is a mark already, which it says in two ways.
WRONG_LAST_SEQUENCE = (10071, 10164)
# No key has this mark.
NOBODYS = "="
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = structlog.get_logger("understudy.idempotency")


class Lookups(Protocol):
    """Reads many last messages at a time."""

    def get(self, subject: str) -> asyncio.Future[bytes]:
        """Ask for the body of a subject's last message; it is empty if there is none, or BrokerError."""
        ...


class Window(Protocol):
    """Publishes many messages at a time."""

    async def enqueue(self, subject: str, body: bytes, headers: bytes) -> asyncio.Future[Any]:
        """Publish a message and return when it has its place; what is returned tells of its confirmation."""
        ...


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Who has handled an event.

    Args:
        by: the cell, its run and generation.
        sequence: of the delivery.
        key: the beginning of the event's key, for people to read.
    """

    by: str
    sequence: int
    key: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Mark).decode


def mark_name(key: str) -> str:
    """Return the name of a key's mark: itself, or its hash if it is long or wouldn't be legal in a bucket."""
    if _PLAIN.fullmatch(key):
        return key
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest()
    # No plain key has an equals sign.
    return base64.urlsafe_b64encode(digest).decode()


class MarkMemory:
    """Remembers names for some time: as many as its capacity says, the latest.

    Args:
        capacity: a name takes at most some 200 bytes.
        window_seconds: for how long.
    """

    def __init__(self, capacity: int, window_seconds: float) -> None:
        self._capacity = capacity
        self._window_seconds = window_seconds
        # By the time when they are forgotten, since all are remembered for as long.
        self._until: dict[str, float] = {}
        self._forgotten_until = -math.inf

    def __len__(self) -> int:
        """Return how many it remembers."""
        return len(self._until)

    def add(self, name: str, now: float) -> None:
        """Remember a name from now on, in seconds of any clock that only goes forward."""
        until = self._until
        until.pop(name, None)
        while until:
            oldest = next(iter(until))
            if until[oldest] > now:
                if len(until) < self._capacity:
                    break
                self._forgotten_until = until[oldest] - self._window_seconds
            del until[oldest]
        until[name] = now + self._window_seconds

    @property
    def forgotten_until(self) -> float:
        """When the latest was added that the capacity had no room for any more; before time, if none."""
        return self._forgotten_until

    def has(self, name: str, now: float) -> bool:
        """Return whether a name is remembered."""
        until = self._until.get(name)
        return until is not None and until > now


class KvMarks:
    """The marks of one durable in the app's bucket, see `KvMarks.open`.

    Args:
        bucket: the bucket.
        prefix: subject of the durable's marks, with a dot.
        key_prefix: the same within the bucket.
        lookups: reads them.
        window: writes them.
        window_seconds: for how long the server keeps each.
    """

    def __init__(
        self,
        bucket: KeyValue,
        prefix: str,
        key_prefix: str,
        lookups: Lookups,
        window: Window,
        window_seconds: float,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._key_prefix = key_prefix
        self._lookups = lookups
        self._window = window
        self._ttl = math.ceil(window_seconds)
        self._block = (
            f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\nNats-TTL: {self._ttl}s\r\n\r\n".encode()
        )

    @classmethod
    async def open(
        cls,
        client: Client,
        lookups: Lookups,
        window: Window,
        *,
        bucket: str,
        durable: str,
        window_seconds: float,
    ) -> KvMarks:
        """Bind to the bucket, which exists.

        Args:
            client: a connection.
            lookups: from the bucket's stream.
            window: publishes.
            bucket: the bucket's name.
            durable: the consumer.
            window_seconds: for how long an event is known.

        Raises:
            BrokerError: there is no such bucket, or the server did not answer.
        """
        opened = await open_bucket(client, bucket)
        return cls(opened, f"$KV.{bucket}.{durable}.", f"{durable}.", lookups, window, window_seconds)

    def look_up(self, name: str) -> asyncio.Future[bytes]:
        """Ask for a mark; the answer is empty if there is none, or BrokerError."""
        return self._lookups.get(self._prefix + name)

    async def make(self, name: str, mark: Mark) -> asyncio.Future[Any]:
        """Make a mark that isn't there, and return when it has a place in the publisher's window.

        Returns:
            When it is confirmed; or PublishError, with a code of `WRONG_LAST_SEQUENCE` if there is one.

        Raises:
            PublishError: it can't be written at all.
        """
        return await self._window.enqueue(self._prefix + name, _encode(mark), self._block)

    async def contest(self, name: str, mark: Mark) -> Mark | None:
        """Make a mark where there seemed to be one.

        Returns:
            The mark that is there; None if it is ours now, since the other was deleted.

        Raises:
            BrokerError: the server did not answer.
        """
        key = self._key_prefix + name
        try:
            try:
                await self._bucket.create(key, _encode(mark), msg_ttl=self._ttl)
            except nats.js.errors.KeyWrongLastSequenceError:
                entry = await self._bucket.get(key)
            else:
                return None
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise BrokerError(f"the mark {key} can't be made: {error}") from error
        try:
            return _decode(entry.value or b"")
        except msgspec.MsgspecError:
            _log.warning("a mark can't be read", key=key)
            return Mark("somebody who left no name", 0)
