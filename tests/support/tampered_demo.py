"""`understudy demo`, in which what the run has left is changed before it is read.

It is changed where it is kept, on the server and in the service's file: there the demonstration must read it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from typing import Any

import msgspec

from understudy.examples.flights.events import Delayed
from understudy.runtime.cli import demo_evidence, main
from understudy.runtime.cli.demo_processes import Stage
from understudy.runtime.jetstream.connection import Connection, close, connect
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.stores.state import name_of

BUCKET = "KV_flights-state"
STATES: dict[str, dict[str, int]] = {
    "AA": {"flights": -1},
    "B6": {"flights": 1},
    "DL": {"cancelled": 1},
    "EV": {"delay_minutes": 1},
    "MQ": {"out_of_order": 2},
}
FORGOTTEN = "UA"
LEDGER = (
    "DELETE FROM sent WHERE key = (SELECT min(key) FROM sent)",
    "INSERT INTO sent SELECT key || '-again', notice FROM sent WHERE key = (SELECT max(key) FROM sent)",
    "INSERT INTO sent SELECT 'other', json_replace(notice, '$.flight', -1) FROM sent LIMIT 1",
    "INSERT INTO requests (key, answer) VALUES ('other', 409)",
    # Only complete rebookings have sent a message. The first loses its seat, the last is charged twice.
    "DELETE FROM entries WHERE account = 'seats'"
    " AND booking = (SELECT min(booking) FROM entries WHERE account = 'messages')",
    "INSERT INTO entries (key, account, booking, amount)"
    " SELECT 'again', account, booking, amount FROM entries WHERE account = 'charges'"
    " AND booking = (SELECT max(booking) FROM entries WHERE account = 'messages')",
)


def _subject(carrier: str) -> str:
    return f"$KV.flights-state.flights-statistics.{carrier}"


async def _change(stage: Stage, unfinished: str) -> None:
    """Change states and stream.

    Args:
        stage: of the demonstration.
        unfinished: the booking of a saga that has come to no end.
    """
    client = await connect(stage.connection, name="tampering")
    try:
        for carrier, additions in STATES.items():
            await _add(client, carrier, additions)
        await client.jetstream().purge_stream(BUCKET, subject=_subject(FORGOTTEN))
        await _take_back(client, unfinished)
    finally:
        await close(client)
    late = Delayed(carrier="UA", flight=1, origin="EWR", scheduled="2013-01-01T05:15", delay_minutes=61.0)
    async with Publisher.connect(stage.connection) as publisher:
        await publisher.publish(late)


async def _take_back(client: Connection, booking: str) -> None:
    js = client.jetstream()
    subject = f"$KV.flights-state.flights-rebooking.{name_of(booking)}"
    *rest, value = msgspec.msgpack.decode(
        (await js.get_last_msg(BUCKET, subject)).data or b"", type=list[Any]
    )
    value["position"]["phase"] = "running"
    await js.publish(subject, msgspec.msgpack.encode([*rest, value]))


async def _add(client: Connection, carrier: str, additions: dict[str, int]) -> None:
    js = client.jetstream()
    message = await js.get_last_msg(BUCKET, _subject(carrier))
    *rest, value = msgspec.msgpack.decode(message.data or b"", type=list[Any])
    value |= {name: value[name] + number for name, number in additions.items()}
    await js.publish(_subject(carrier), msgspec.msgpack.encode([*rest, value]))


if __name__ == "__main__":
    gather = demo_evidence.gather

    def gather_after_tampering(stage: Stage) -> demo_evidence.Evidence:
        """Change it, then read it."""
        with closing(sqlite3.connect(stage.ledger)) as ledger, ledger:
            query = "SELECT booking FROM entries WHERE account = 'messages' ORDER BY booking LIMIT 1 OFFSET 1"
            asyncio.run(_change(stage, ledger.execute(query).fetchone()[0]))
            for statement in LEDGER:
                ledger.execute(statement)
        return gather(stage)

    demo_evidence.gather = gather_after_tampering
    sys.exit(main(["demo", *sys.argv[1:]]))
