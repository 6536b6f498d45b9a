"""Flights from New York, worked through by three actors in a tree of two levels.

    flights
    ├─ statistics        counts per carrier, in order
    ├─ delay-monitor     turns a departure more than an hour late into an event of its own
    └─ ops
       └─ notifier       two cells that tell a service about late flights, behind a circuit breaker

`understudy demo` shows all of it at work, with an outage of the service and a cell that is killed. To run it
by hand: `understudy run understudy.examples.flights.app:app --embedded`.
"""

import asyncio
import os
import sqlite3

from understudy import (
    Actor,
    App,
    Child,
    CircuitBreaker,
    Context,
    Event,
    Mailbox,
    StartContext,
    Stream,
    Supervisor,
    handles,
)
from understudy.examples.flights.client import post_notice

DATABASE = os.environ.get("FLIGHTS_DATABASE", "flights.sqlite3")
SERVICE_URL = os.environ.get("FLIGHTS_SERVICE_URL", "http://127.0.0.1:8470")

LATE_MINUTES = 60


class Departed(Event, subject="flights.departed"):
    """A flight has left, or was cancelled: then it has no delay."""

    carrier: str
    flight: int
    origin: str
    dest: str
    scheduled: str
    delay_minutes: float | None


class Delayed(Event, subject="flights.delayed"):
    """A flight has left more than an hour late."""

    carrier: str
    flight: int
    origin: str
    scheduled: str
    delay_minutes: float


class Statistics(Actor, key="carrier"):
    """Counts flights, cancellations and delays of each carrier.

    With `key` the deliveries of one carrier come one at a time, in the order of the stream. One can come
    again, if a cell died after it had counted it and before it had acknowledged it. So the actor writes down
    which sequences it has counted, in the transaction that counts them. What it holds in memory dies with its
    cell; the database is a file, and outlives it.
    """

    def __init__(self, database: str) -> None:
        self.path = database

    async def on_start(self, ctx: StartContext) -> None:  # noqa: ARG002
        """Open the database: not in `__init__`, so that a test can make the actor without a file."""
        # Without a sync per commit the file survives the death of the process, though not of the machine.
        self.database = sqlite3.connect(self.path)
        self.database.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = OFF;
            CREATE TABLE IF NOT EXISTS applied (sequence INTEGER PRIMARY KEY);
            CREATE TABLE IF NOT EXISTS carriers (
                carrier TEXT PRIMARY KEY, flights INTEGER, cancelled INTEGER, delay_minutes REAL,
                last_sequence INTEGER, out_of_order INTEGER
            ) WITHOUT ROWID;
            """
        )

    async def on_stop(self) -> None:
        """Close the database."""
        self.database.close()

    # The transaction takes some 30 µs, less than a thread would cost: the cell's loop may well wait for it.
    @handles
    async def departed(self, event: Departed, ctx: Context) -> None:
        """Count a departure, once."""
        sequence = ctx.delivery.sequence
        with self.database:
            new = self.database.execute("INSERT OR IGNORE INTO applied VALUES (?)", (sequence,)).rowcount
            if new:
                self.database.execute(
                    """
                    INSERT INTO carriers VALUES (?, 1, ?, ?, ?, 0)
                    ON CONFLICT (carrier) DO UPDATE SET
                        flights = flights + 1,
                        cancelled = cancelled + excluded.cancelled,
                        delay_minutes = delay_minutes + excluded.delay_minutes,
                        out_of_order = out_of_order + (excluded.last_sequence < last_sequence),
                        last_sequence = max(last_sequence, excluded.last_sequence)
                    """,
                    (event.carrier, event.delay_minutes is None, event.delay_minutes or 0.0, sequence),
                )


class DelayMonitor(Actor, key="carrier"):
    """Announces late departures. What a handler returns is published before its delivery is acknowledged."""

    @handles
    async def departed(self, event: Departed) -> Delayed | None:
        """Return an event of its own for a departure more than an hour late."""
        if event.delay_minutes is None or event.delay_minutes <= LATE_MINUTES:
            return None
        return Delayed(
            carrier=event.carrier,
            flight=event.flight,
            origin=event.origin,
            scheduled=event.scheduled,
            delay_minutes=event.delay_minutes,
        )


NOTICES = CircuitBreaker("notices", fail_max=3, reset_timeout_seconds=0.5)


class Notifier(Actor, replicas=2, mailbox=Mailbox(capacity=16), breakers=(NOTICES,)):
    """Tells the service about late flights.

    While the service is down the breaker is open: a cell holds what is in its small mailbox, pulls nothing
    more, and the rest waits in the stream. The order of notices doesn't matter, so two cells share the work.
    """

    def __init__(self, service_url: str) -> None:
        self.service_url = service_url

    @handles
    async def delayed(self, event: Delayed, ctx: Context) -> None:
        """Post a notice under a key that is the same however often the event is handled."""
        key = f"{ctx.delivery.stream}-{ctx.delivery.sequence}"
        async with ctx.breaker(NOTICES.name):
            await asyncio.to_thread(post_notice, self.service_url, key, event)


app = App(
    "flights",
    streams=[Stream("FLIGHTS", subjects=["flights.>"])],
    children=[
        Child(Statistics, args={"database": DATABASE}),
        DelayMonitor,
        Supervisor("ops", children=[Child(Notifier, args={"service_url": SERVICE_URL})]),
    ],
)
