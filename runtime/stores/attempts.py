"""How often a delivery failed or took its process with it, in a NATS KV bucket.

The server's own delivery count is no measure, since drains raise it. A record is written on failure,
before the nak, and read only when a delivery was delivered before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js.kv import KeyValue

from understudy.actors.errors import BrokerError
from understudy.runtime.stores.buckets import open_bucket


class Attempts(msgspec.Struct, frozen=True):
    """What is known of one delivery.

    Args:
        failed: handler runs that failed.
        crashes: times its process died while handling it.
        error: the last failure's text.
        retry_at: not before then it is to be tried again, in seconds since 1970 by the clock of who recorded
            it; 0 if the server keeps that time, as of what is given back to it.
        delay_seconds: how long that was after the failure.
    """

    failed: int = 0
    crashes: int = 0
    error: str = ""
    retry_at: float = 0.0
    delay_seconds: float = 0.0

    def wait_seconds(self, now: float) -> float:
        """Return how much of the pause before the next run is left, by whatever clock no more than all of it.

        Args:
            now: seconds since 1970.
        """
        return max(0.0, min(self.retry_at - now, self.delay_seconds))


NONE = Attempts()
MAX_ERROR_CHARACTERS = 1000
# How many records are read or written side by side.
IN_FLIGHT = 128
TIMEOUT_SECONDS = 2.0
# The server's words for the end of what it has found, and for nothing.
END, NONE_FOUND = "204", "404"
_decode = msgspec.msgpack.Decoder(Attempts).decode
_log = structlog.get_logger("understudy.attempts")
_encode = msgspec.msgpack.Encoder().encode


class AttemptStore:
    """The records of one durable's deliveries.

    Args:
        client: a connection.
        bucket: the app's bucket, see `AttemptStore.open`.
        name: the bucket's.
        prefix: names durable and incarnation of the stream, so that a recreated stream starts anew.
    """

    def __init__(self, client: Client, bucket: KeyValue, name: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._name = name
        self._prefix = prefix

    @classmethod
    async def open(cls, client: Client, bucket: str, durable: str, stream_created: str) -> AttemptStore:
        """Bind to the bucket, which exists.

        Args:
            client: a connection.
            bucket: the bucket's name.
            durable: the consumer.
            stream_created: the stream's creation time as the server says it.

        Raises:
            BrokerError: there is no such bucket, or the server did not answer.
        """
        incarnation = "".join(character for character in stream_created if character.isalnum())
        return cls(client, await open_bucket(client, bucket), bucket, f"{durable}.{incarnation}")

    async def read(self, sequence: int) -> Attempts:
        """Return what is known of a delivery.

        Args:
            sequence: its stream sequence.

        Raises:
            BrokerError: the server did not answer.
        """
        try:
            entry = await self._bucket.get(f"{self._prefix}.{sequence}")
        except nats.js.errors.KeyNotFoundError:
            return NONE
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise BrokerError(f"the attempts of sequence {sequence} can't be read: {error}") from error
        return _read(sequence, entry.value)

    async def read_all(self, sequences: Sequence[int]) -> list[Attempts]:
        """Return what is known of each of some deliveries.

        Args:
            sequences: their stream sequences.

        Raises:
            BrokerError: the server did not answer.
        """
        records: list[Attempts] = []
        for start in range(0, len(sequences), IN_FLIGHT):
            part = sequences[start : start + IN_FLIGHT]
            stored = await self._read_last(part)
            if stored is None:
                records += await asyncio.gather(*map(self.read, part))
            else:
                records += [_read(sequence, stored.get(sequence)) for sequence in part]
        return records

    async def _read_last(self, sequences: Sequence[int]) -> dict[int, bytes] | None:
        """Return the records that there are, by one request (ADR-31), or None if the bucket has that off."""
        start = f"$KV.{self._name}.{self._prefix}."
        request = json.dumps({"multi_last": [f"{start}{sequence}" for sequence in sequences]})
        inbox = self._client.new_inbox()
        found: dict[int, bytes] = {}
        try:
            subscription = await self._client.subscribe(inbox)
            try:
                await self._client.publish(
                    f"$JS.API.DIRECT.GET.KV_{self._name}", request.encode(), reply=inbox
                )
                while True:
                    answer = await subscription.next_msg(timeout=TIMEOUT_SECONDS)
                    about = answer.headers or {}
                    if "Nats-Subject" in about and "Nats-Sequence" in about:
                        found[int(about["Nats-Subject"].rpartition(".")[2])] = answer.data
                    elif about.get("Status") in (END, NONE_FOUND):
                        return found
                    else:
                        return None
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerError(f"the attempts can't be read: {error}") from error

    async def write(self, sequence: int, attempts: Attempts) -> None:
        """Record a failure; the record's age starts anew.

        Args:
            sequence: the delivery's stream sequence.
            attempts: the new record.

        Raises:
            BrokerError: the server did not confirm it.
        """
        try:
            await self._bucket.put(f"{self._prefix}.{sequence}", _encode(attempts))
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise BrokerError(f"the attempts of sequence {sequence} can't be written: {error}") from error

    async def write_all(self, records: Mapping[int, Attempts]) -> None:
        """Record several failures.

        Args:
            records: by the deliveries' stream sequences.

        Raises:
            BrokerError: the server did not confirm them all.
        """
        items = list(records.items())
        for start in range(0, len(items), IN_FLIGHT):
            await asyncio.gather(*(self.write(*item) for item in items[start : start + IN_FLIGHT]))


def _read(sequence: int, record: bytes | None) -> Attempts:
    try:
        return _decode(record) if record else NONE
    except msgspec.MsgspecError as error:
        # Of a later version, perhaps: better tried once too often than never.
        _log.warning("the record of attempts can't be read", sequence=sequence, error=str(error))
        return NONE
