"""An app whose idempotent actor posts notices to a service that keeps a ledger, and dies at given moments.

NOTICES_URL is the service. RECORD_FILE takes a line for each run that begins, `begun <key>`, and one for each
delivery that is handled with its output confirmed, `handled <key>`. NOTICES_MOMENTS is a directory: who takes
a file `<moment>.<n>` away from it kills its own process. The moments: `handler` (before the notice is
posted), `output` (posted, and the output not yet published), `mark` (handled and noted in the cell file, not
marked), `ack` (marked, and not acked).
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.supervision import Child, Supervisor
from understudy.examples.flights.client import post_notice
from understudy.runtime.app import App
from understudy.runtime.cell import idempotency, pipeline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.marking import Marking
from understudy.runtime.stream import Stream

MOMENTS = ("handler", "output", "mark", "ack")
DIRECTORY = Path(os.environ.get("NOTICES_MOMENTS", "/nonexistent"))
RECORD = Path(os.environ.get("RECORD_FILE", "/nonexistent"))
URL = os.environ.get("NOTICES_URL", "")
# A busy machine doesn't take longer from an event to its repeat; who repeats late waits until it is over.
DUPLICATE_WINDOW_SECONDS = 5.0
# As long may a replacement take to come up, before another cell is given what the dead one held.
ACK_WAIT_SECONDS = 8.0


class Delayed(Event, subject="notices.delayed"):
    """Something to tell the service."""

    number: int


class Told(Event, subject="told.once"):
    """The service was told."""

    number: int


def die_at(moment: str) -> None:
    """Kill this process if it is to die now, for which one file is taken away."""
    for path in DIRECTORY.glob(f"{moment}.*"):
        try:
            path.unlink()
        except FileNotFoundError:
            # Another cell's.
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def note(what: str, key: str) -> None:
    """Write down what has become of a delivery."""
    with RECORD.open("a") as record:
        record.write(f"{what} {key}\n")


class _MarksThatDie(Marks):
    def _note_handled(self, delivery: HeldDelivery) -> None:
        if not delivery.is_handled:
            note("handled", delivery.idempotency_key)
        super()._note_handled(delivery)

    def _confirmed(self, *arguments: Any) -> None:
        die_at("ack")
        super()._confirmed(*arguments)


class _MarkingThatDies(Marking):
    async def make(self, *arguments: Any) -> Any:
        die_at("mark")
        return await super().make(*arguments)


class Notifier(
    Actor,
    concurrency=8,
    mailbox=Mailbox(capacity=64),
    idempotency=Idempotency(window_seconds=3600),
    # One delivery may be what several kills hit.
    retry=RetryPolicy(max_crashes=100),
    ack_wait_seconds=ACK_WAIT_SECONDS,
    hang_timeout_seconds=5,
):
    """Tells the service, under the event's key."""

    @handles
    async def delayed(self, event: Delayed, ctx: Context) -> Told:
        """Post a notice, and say so."""
        note("begun", ctx.delivery.idempotency_key)
        die_at("handler")
        await asyncio.to_thread(post_notice, URL, ctx.delivery.idempotency_key, event)
        die_at("output")
        return Told(number=event.number)


if URL:
    # In the cells of this app alone.
    vars(pipeline)["Marks"] = _MarksThatDie
    vars(idempotency)["Marking"] = _MarkingThatDies

app = App(
    "notices",
    streams=[
        Stream(
            "NOTICES",
            subjects=["notices.>"],
            duplicate_window_seconds=DUPLICATE_WINDOW_SECONDS,
        ),
        Stream("TOLD", subjects=["told.>"]),
    ],
    children=[
        # Killed on purpose more often than anything falls by itself.
        Supervisor("ops", max_restarts=1000, max_seconds=60, children=[Child(Notifier, replicas=2)])
    ],
)
