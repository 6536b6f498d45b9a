"""What the actors of a demonstration have stored, read from their bucket."""

from __future__ import annotations

import asyncio

import msgspec

from understudy.actors.saga import SagaRecord
from understudy.examples.flights.app import CarrierStatistics
from understudy.examples.flights.rebooking import Trip
from understudy.examples.flights.settlement import Rebooked
from understudy.runtime.cell.state import stored_value
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.last_messages import LastMessages
from understudy.runtime.jetstream.topology import state_bucket

_decode_statistics = msgspec.msgpack.Decoder(CarrierStatistics).decode
_decode_saga = msgspec.msgpack.Decoder(SagaRecord).decode
_decode_trip = msgspec.msgpack.Decoder(Trip).decode


class States:
    """Reads what the actors of an app have stored, over somebody else's connection.

    Args:
        client: the connection.
        app: the app's name.
    """

    def __init__(self, client: Connection, app: str) -> None:
        self._client = client
        self._bucket = state_bucket(app)
        self._last = LastMessages(client, f"KV_{self._bucket}")

    async def open(self) -> None:
        """Subscribe to the inbox for the answers; before anything is read."""
        await self._last.open()

    async def statistics(self, durable: str) -> dict[str, CarrierStatistics]:
        """Return what an actor has committed, by carrier."""
        return {carrier: _decode_statistics(value) for carrier, value in (await self._read(durable)).items()}

    async def rebookings(self, durable: str) -> dict[str, Rebooked]:
        """Return where the sagas are, by booking."""
        records = map(_decode_saga, (await self._read(durable)).values())
        return {
            record.id: Rebooked(
                phase=record.position.phase,
                why="; ".join(filter(None, (record.position.problem, record.position.error))),
                trip=_decode_trip(record.state),
            )
            for record in records
            if record.id
        }

    async def _read(self, durable: str) -> dict[str, bytes]:
        """Return the encoded states of an actor by their names."""
        prefix = f"$KV.{self._bucket}.{durable}."
        there = await count_by_subject(self._client, f"KV_{self._bucket}")
        subjects = [subject for subject in there if subject.startswith(prefix)]
        bodies = await asyncio.gather(*map(self._last.get, subjects))
        return {
            subject.removeprefix(prefix): stored_value(body)
            for subject, body in zip(subjects, bodies, strict=True)
        }


async def count_by_subject(client: Connection, stream: str) -> dict[str, int]:
    """Return how many messages a stream holds of each subject."""
    info = await api.request(client, f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
    return info["state"].get("subjects") or {}
