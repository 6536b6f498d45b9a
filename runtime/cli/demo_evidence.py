"""What a demonstration leaves: read when the actors are gone, from the broker and the service's own file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from understudy.examples.flights.app import CarrierStatistics
from understudy.examples.flights.bookings import Bookings, Entry
from understudy.examples.flights.ledger import Ledger
from understudy.examples.flights.settlement import Rebooked
from understudy.examples.flights.trouble import Fate
from understudy.runtime.cli.demo_processes import STOP_TIMEOUT_SECONDS, Stage, stop_process
from understudy.runtime.cli.demo_scenario import APP, DURABLES, REBOOKING, STATISTICS, STREAM
from understudy.runtime.cli.demo_states import States, count_by_subject
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import close, connect
from understudy.runtime.jetstream.topology import dead_letter_stream


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found.

    Attributes:
        states: the statistics actor's, by carrier.
        announced: how many late flights the stream holds.
        ledger: the service's report.
        rebookings: the sagas, by booking.
        entries: the service's account of what they have ordered and cancelled.
        fates: what became of how many requests for that.
        redelivered: by consumer, how many of the server's deliveries were not the first of their message.
        unsettled: by consumer, what was pending or unacknowledged.
        dead_letters: how many there are.
    """

    states: Mapping[str, CarrierStatistics]
    announced: int
    ledger: Mapping[str, Any]
    rebookings: Mapping[str, Rebooked]
    entries: Sequence[Entry]
    fates: Mapping[Fate, int]
    redelivered: Mapping[str, int]
    unsettled: Mapping[str, int]
    dead_letters: int


def gather(stage: Stage) -> Evidence:
    """Read everything; the actors have stopped, and the service is stopped now."""
    stop_process(stage.service, STOP_TIMEOUT_SECONDS)
    path = str(stage.ledger)
    with closing(Ledger(path)) as ledger, closing(Bookings(path)) as bookings:
        report, entries, fates = ledger.report(), bookings.entries(), bookings.fates()
    return asyncio.run(_ask_broker(stage, report, entries, fates))


async def _ask_broker(
    stage: Stage, ledger: Mapping[str, Any], entries: Sequence[Entry], fates: Mapping[Fate, int]
) -> Evidence:
    client = await connect(stage.connection, name="understudy demo")
    try:
        there = await count_by_subject(client, STREAM)
        redelivered, unsettled = {}, {}
        for durable in DURABLES:
            info = await api.consumer_info(client, STREAM, durable) or {}
            config = info["config"]
            subjects = config.get("filter_subjects") or [config["filter_subject"]]
            messages = sum(there.get(subject, 0) for subject in subjects)
            # Each delivery has a consumer sequence of its own; what is taken over isn't delivered again.
            redelivered[durable] = max(0, info["delivered"]["consumer_seq"] - messages)
            unsettled[durable] = info["num_pending"] + info["num_ack_pending"]
        letters = await api.stream_info(client, dead_letter_stream(APP)) or {}
        states = States(client, APP)
        await states.open()
        return Evidence(
            states=await states.statistics(STATISTICS),
            announced=there.get("flights.delayed", 0),
            ledger=ledger,
            rebookings=await states.rebookings(REBOOKING),
            entries=entries,
            fates=fates,
            redelivered=redelivered,
            unsettled=unsettled,
            dead_letters=letters["state"]["messages"],
        )
    finally:
        await close(client)
