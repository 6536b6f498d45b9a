"""What a cell that isn't the owner any more still runs: it is another's by now, and not tried again here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from support.cells import Bench, bench, until
from support.nats import NatsServer
from support.owners import DURABLE, Noted, Owners, Run
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Retry
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell import epochs
from understudy.runtime.cell.paused import write_paused
from understudy.runtime.stream import Stream

pytestmark = pytest.mark.usefixtures("long_requests")


class Numbers(State):
    seen: list[int] = msgspec.field(default_factory=list)


class Keepers(Owners):
    """Nodes whose actor keeps the numbers of each customer."""

    def __init__(self, made: Bench) -> None:
        super().__init__(made)
        self.held: set[str] = set()
        self.opened = asyncio.Event()
        self.fails = False

    def app(self, node: str) -> App:
        """Return the app as a node runs it."""
        owners = self

        class Recorder(Actor, key="customer", state=Numbers):
            @handles
            async def noted(self, event: Noted, ctx: Context) -> None:
                owners.counts[event.number] += 1
                ctx.state.seen.append(event.number)
                if node in owners.held:
                    await owners.opened.wait()
                    if owners.fails and ctx.delivery.attempt == 1:
                        raise Retry(delay_seconds=0.01)

        return App("notes", streams=[Stream("NOTES", subjects=["notes.>"])], children=[Child(Recorder)])

    async def seen(self, customer: str) -> list[int]:
        """Return what is stored."""
        bucket = await self.bench.client.jetstream().key_value("notes-state")
        body = (await bucket.get(f"{DURABLE}.{customer}")).value or b""
        numbers: list[int] = msgspec.msgpack.decode(body)[-1]["seen"]
        return numbers


@pytest.fixture
async def keepers(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Keepers]:
    """A broker for nodes with state, whose cells soon know that the server has their acks."""
    monkeypatch.setattr(epochs, "EPOCH_SECONDS", 0.05)
    async with bench(nats_server.url, tmp_path) as made:
        yield Keepers(made)


@pytest.mark.parametrize("fails", [False, True], ids=["conflicts", "fails"])
async def test_what_another_has_applied_and_forgotten_is_not_applied_again(
    keepers: Keepers, fails: bool
) -> None:
    """The new owner takes a sequence out of the state when it has acked it: nobody else is to have it."""
    keepers.held, keepers.fails = {"a"}, fails
    await keepers.start("a")
    await keepers.note(range(1))
    await until(lambda: keepers.counts[0] == 1)
    await keepers.start("b")
    await keepers.stood_by("b")
    await keepers.unpin()
    await keepers.note(range(1, 2))
    await keepers.stood_by("a")
    for number in range(2, 6):
        await keepers.note(range(number, number + 1))
        await keepers.settled()
        # Some epochs.
        await asyncio.sleep(0.2)
    assert await keepers.seen("c0") == [0, 1, 2, 3, 4, 5]
    keepers.opened.set()
    await until(lambda: keepers.nodes["a"].status.held == 0)
    assert await keepers.seen("c0") == [0, 1, 2, 3, 4, 5]


@pytest.fixture
async def owners(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Owners]:
    """A broker for nodes whose actor handles two at once."""
    async with bench(nats_server.url, tmp_path) as made:
        yield Owners(made, concurrency=2)


async def test_what_waits_for_the_end_of_a_pause_is_dropped_when_another_has_it(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be handled again when the pause is over, behind everything that came since."""
    node = await owners.kill_in_handlers(10, 2, monkeypatch)
    write_paused(node.directory, ["recorder/0"])
    await owners.start("a", reason="killed by SIGKILL", crashed=True)
    await until(lambda: node.status.pause == "paused" and node.status.held == 10)
    await owners.start("b")
    await owners.stood_by("b")
    await owners.unpin()
    await owners.note(range(10, 12), 10)
    await owners.all_handled(12)
    assert len(owners.by("b")) == 12
    await until(lambda: node.status.held == 0)
    write_paused(node.directory, [])
    assert node.cell is not None
    node.cell.look_at_pause()
    await owners.stood_by("a")
    assert owners.by("a") == []
    assert owners.in_order()


async def test_a_drain_gives_back_what_waits_for_its_turn_behind_a_suspect(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being handled ends first; the next owner has all the rest, in order."""
    node = await owners.kill_in_handlers(10, 2, monkeypatch)
    entered, ends = asyncio.Event(), asyncio.Event()

    async def wait(_: Run) -> None:
        entered.set()
        await ends.wait()

    owners.handler = wait
    await owners.start("a", reason="killed by SIGKILL", crashed=True)
    await entered.wait()
    assert len(owners.runs) == 1, "a suspect is alone"
    stopping = asyncio.create_task(node.stop())
    await until(lambda: node.status.state == "draining")
    ends.set()
    await stopping
    first = owners.by("a")
    assert await owners.pin() == ""
    await owners.start("b")
    await owners.all_handled(10)
    assert sorted(first + owners.by("b")) == list(range(10)), "none is lost, and none handled twice"
    assert owners.in_order()


async def test_who_was_suspected_once_is_alone_after_another_death_too(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else three that kill their process, one after the other, would have innocents given up with them."""
    await owners.kill_in_handlers(10, 2, monkeypatch)
    entered, never = asyncio.Event(), asyncio.Event()

    async def get_stuck(_: Run) -> None:
        entered.set()
        await never.wait()

    owners.handler = get_stuck
    await owners.start("a", reason="killed by SIGKILL", crashed=True)
    await entered.wait()
    await owners.kill("a", monkeypatch)
    assert owners.by("a") == [0]
    running: set[int] = set()
    in_company: set[int] = set()
    met = asyncio.Event()

    async def look(run: Run) -> None:
        running.add(run.number)
        if len(running) > 1:
            in_company.update(running)
            met.set()
        if run.number > 1:
            await met.wait()
        await asyncio.sleep(0)
        running.discard(run.number)

    owners.handler = look
    await owners.start("a", reason="killed by SIGKILL", crashed=True)
    await owners.all_handled(10)
    assert in_company, "the others are not"
    assert in_company.isdisjoint({0, 1})
