"""A takeover that comes when a part of the ledger is older than `ack_wait`, or all of it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, bench, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell.ledger import LEDGER_OFFSET, SLOT_SIZE, SlotState
from understudy.runtime.cell.status import boottime
from understudy.runtime.jetstream.direct import IN_FLIGHT
from understudy.runtime.jetstream.settlement import ack_subject
from understudy.runtime.stream import Stream

COUNT = 20
ACK_WAIT_SECONDS = 15.0


class Seen:
    """What an actor with one key has handled, and what it is to wait for."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.begun: list[int] = []
        self.gate = asyncio.Event()

    def app(self, **options: Any) -> App:
        """Return an app whose actor notes what it handles here."""
        seen = self

        class Keeper(Actor, key=lambda body: "one"):
            @handles("late.in")
            async def keep(self, body: bytes, ctx: Context) -> None:
                seen.begun.append(int(body))
                # Nobody opens the one that the dead cell waits for.
                await seen.gate.wait()
                seen.numbers.append(int(body))

        return App(
            "late",
            streams=[Stream("LATE", subjects=["late.>"])],
            children=[
                Child(
                    Keeper,
                    **{"mailbox": Mailbox(capacity=64), "ack_wait_seconds": ACK_WAIT_SECONDS, **options},
                )
            ],
        )


@pytest.fixture
async def late(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the app late."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


def rewrite(cell: CellRun, sequences: range, state: SlotState | None = None) -> None:
    """Have a dead cell's ledger say that deliveries were last extended longer ago than `ack_wait`."""
    with cell.path.open("r+b") as file:
        data = bytearray(file.read())
        for slot in range(LEDGER_OFFSET, len(data) - SLOT_SIZE + 1, SLOT_SIZE):
            (sequence,) = struct.unpack_from("<Q", data, slot)
            if sequence in sequences:
                struct.pack_into("<d", data, slot + 8, boottime() - ACK_WAIT_SECONDS - 1)
                if state is not None:
                    data[slot + SLOT_SIZE - 1] = state
        file.seek(0)
        file.write(data)


async def dead_cell(late: Bench, seen: Seen, app: App, count: int = COUNT) -> CellRun:
    """Return a cell that died with everything in its hands and the first in its handler's."""
    cell = await late.cell(app)
    for number in range(1, count + 1):
        await late.publisher.publish_raw("late.in", b"%d" % number)
    await until(lambda: cell.status.held == count and seen.begun == [1])
    assert cell.task is not None
    cell.task.cancel()
    await cell.vanish()
    seen.gate = asyncio.Event()
    seen.gate.set()
    return cell


@pytest.mark.parametrize("stale", [range(1, 11), range(1, COUNT + 1), range(11, COUNT + 1), range(1, 2)])
async def test_a_sole_owner_that_is_late_keeps_the_order(late: Bench, stale: range) -> None:
    """Whatever part of what was held is taken for the server's by now, nothing newer goes before it."""
    seen = Seen()
    app = seen.app()
    cell = await dead_cell(late, seen, app)
    rewrite(cell, stale)
    await cell.start(reason="killed by SIGKILL", crashed=True)
    await late.settled(app)
    assert seen.numbers == list(range(1, COUNT + 1))


@pytest.mark.parametrize("stale", [range(0), range(1, 2), range(1, COUNT + 1)])
async def test_a_death_counts_however_late_the_takeover_is(late: Bench, stale: range) -> None:
    """Else a delivery that kills its process would never be given up where restarts take long."""
    seen = Seen()
    app = seen.app(retry=RetryPolicy(max_crashes=1))
    cell = await dead_cell(late, seen, app)
    rewrite(cell, stale)
    await cell.start(reason="killed by SIGSEGV", crashed=True)
    await late.settled(app)
    assert seen.numbers == list(range(2, COUNT + 1))
    assert [letter.headers["Understudy-Reason"] for letter in await late.dead_letters(app)] == ["crashed"]


async def test_what_was_done_is_acked_again_however_late(late: Bench) -> None:
    """It was handled, and its events are confirmed; only its ack was lost."""
    seen = Seen()
    app = seen.app()
    cell = await dead_cell(late, seen, app)
    rewrite(cell, range(1, 6), SlotState.DONE)
    await cell.start(reason="killed by SIGKILL", crashed=True)
    await late.settled(app)
    assert seen.numbers == list(range(6, COUNT + 1))


async def test_what_was_taken_over_is_not_handled_again_when_it_still_comes(late: Bench) -> None:
    """The server may have given up waiting before it is told that a replacement has it: it is acked again."""
    seen = Seen()
    app = seen.app()
    cell = await dead_cell(late, seen, app)
    await cell.start(reason="killed by SIGKILL", crashed=True)
    await late.settled(app)
    assert cell.cell is not None
    for sequence in (1, COUNT):
        reply = ack_subject(
            "LATE", "late-keeper", delivery_count=2, sequence=sequence, consumer_sequence=COUNT + sequence
        )
        cell.cell._intake.deliver(b"late.in", reply, b"", b"%d" % sequence)
    await late.publisher.publish_raw("late.in", b"%d" % (COUNT + 1))
    await late.settled(app)
    assert seen.numbers == list(range(1, COUNT + 2))
    assert cell.status.held == 0
    assert (await late.backlog(app)).ack_pending == 0


async def test_what_is_gone_from_the_stream_leaves_the_rest_in_order(late: Bench) -> None:
    """More is read back than is asked for at once; what is gone is acked and warned of."""
    count = 2 * IN_FLIGHT - 20
    seen = Seen()
    app = seen.app(mailbox=Mailbox(capacity=count))
    cell = await dead_cell(late, seen, app, count)
    await late.client.jetstream().delete_msg("LATE", 50)
    with capture_logs() as logs:
        await cell.start(reason="killed by SIGKILL", crashed=True)
    await late.settled(app)
    assert seen.numbers == [number for number in range(1, count + 1) if number != 50]
    assert [entry["sequence"] for entry in logs if entry["event"].startswith("held message is no")] == [50]
    assert cell.status.counters["taken_over"] == count - 1
    await until(lambda: cell.status.held == 0)
    assert cell.status.counters["redelivered"] == 0


@pytest.mark.parametrize("mailbox", [Mailbox(capacity=64, max_bytes=13), Mailbox(capacity=11)])
async def test_what_a_smaller_mailbox_can_not_hold_is_given_back_in_order(
    late: Bench, mailbox: Mailbox
) -> None:
    """As after a change of the configuration: nine bodies of a byte and two of two fit in either."""
    seen = Seen()
    cell = await dead_cell(late, seen, seen.app())
    cell.app = app = seen.app(mailbox=mailbox)
    await cell.start(reason="killed by SIGKILL", crashed=True)
    assert cell.status.counters["taken_over"] == 11
    await late.settled(app)
    assert seen.numbers == list(range(1, COUNT + 1))
