"""State: what an actor keeps of each key, committed with what it publishes before any of that goes out."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, bench, reconnected, until
from support.letters import Letters
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.errors import StateError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.options import ActorOptions
from understudy.actors.outcomes import Retry
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.state import State
from understudy.runtime.app import App
from understudy.runtime.cell import admission, epochs, state, state_pipeline
from understudy.runtime.cell.applied import Applied
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.epochs import Epochs
from understudy.runtime.cell.marking import Marking
from understudy.runtime.cell.state import HeldState, States
from understudy.runtime.cell.state_pipeline import StatePipeline
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stores.state import StateStore
from understudy.runtime.stream import Stream

AGAIN = RetryPolicy(max_attempts=1000, min_delay_seconds=0.02, max_delay_seconds=0.05)
BUCKET = "KV_shop-state"
# How many events two cells fight for; `support.state_fight` has two nodes fight for more.
FOUGHT_FOR = 500


class Paid(Event, subject="payments.paid"):
    customer: str
    amount: int


class Rose(Event, subject="totals.rose"):
    customer: str
    total: int


class Total(State):
    amount: int = 0
    payments: list[int] = msgspec.field(default_factory=list)


class Small(State, max_bytes=40):
    text: str = ""


class Ledger(Actor, key="customer", state=Total, retry=AGAIN):
    """Adds up; what is negative fails until it is in `forgiven`."""

    runs: Counter[int]
    forgiven: set[int]

    @handles
    async def paid(self, event: Paid, ctx: Context) -> Rose:
        self.runs[event.amount] += 1
        ctx.state.amount += event.amount
        ctx.state.payments.append(event.amount)
        if event.amount < 0 and event.amount not in self.forgiven:
            raise Retry(delay_seconds=0.05)
        return Rose(customer=event.customer, total=ctx.state.amount)


@pytest.fixture
async def shop(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker, and what a test needs around it."""
    Ledger.runs, Ledger.forgiven = Counter(), set()
    async with bench(nats_server.url, tmp_path) as made:
        yield made


def app_of(actor: type[Actor]) -> App:
    """Return an app with one actor, and a stream for what it publishes."""
    totals = Stream("TOTALS", subjects=["totals.>"])
    return App("shop", streams=[Stream("PAYMENTS", subjects=["payments.>"]), totals], children=[actor])


async def pay(shop: Bench, customer: str, *amounts: int) -> None:
    """Publish payments, in order."""
    for amount in amounts:
        await shop.publisher.publish(Paid(customer=customer, amount=amount))


async def record_of(client: Client, name: str, actor: str = "ledger") -> Any:
    """Return what is stored under a key, as a program without understudy reads it."""
    bucket = await client.jetstream().key_value("shop-state")
    return msgspec.msgpack.decode((await bucket.get(f"shop-{actor}.{name}")).value or b"")


async def total_of(client: Client, name: str) -> tuple[int, list[int]]:
    """Return the value that is stored under a key."""
    value = (await record_of(client, name))[-1]
    return value["amount"], value["payments"]


async def stored(shop: Bench, stream: str = "TOTALS") -> list[tuple[str, int]]:
    """Return the customers and totals that were published, in order."""
    js = shop.client.jetstream()
    last = (await js.stream_info(stream)).state.last_seq
    bodies = [
        msgspec.msgpack.decode((await js.get_msg(stream, seq=n)).data or b"") for n in range(1, last + 1)
    ]
    return [(body["customer"], body["total"]) for body in bodies]


async def die_and_replace(cell: CellRun) -> None:
    """Wait until the cell has failed, and start the next generation as its supervisor would."""
    assert cell.task is not None
    with pytest.raises(_Death):
        await cell.task
    await cell.vanish()
    await cell.start(reason="died", crashed=True)


class _Death(Exception):
    pass


async def test_each_key_has_a_state_that_outlives_the_cell(shop: Bench) -> None:
    app = app_of(Ledger)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1, 2)
    await pay(shop, "bob", 5)
    await shop.settled(app)
    await cell.stop()
    await cell.start()
    await pay(shop, "ann", 4)
    await shop.settled(app)
    assert await total_of(shop.client, "ann") == (7, [1, 2, 4])
    assert await total_of(shop.client, "bob") == (5, [5])
    assert sorted(await stored(shop)) == [("ann", 1), ("ann", 3), ("ann", 7), ("bob", 5)]


async def test_a_failed_handler_leaves_no_trace(shop: Bench) -> None:
    """Neither in the state nor of what it would have published; and its key waits for it."""
    app = app_of(Ledger)
    await shop.cell(app)
    await pay(shop, "ann", 1, -2, 4)
    await until(lambda: Ledger.runs[-2] >= 3)
    assert await total_of(shop.client, "ann") == (1, [1])
    Ledger.forgiven.add(-2)
    await shop.settled(app)
    assert await total_of(shop.client, "ann") == (3, [1, -2, 4])
    assert await stored(shop) == [("ann", 1), ("ann", -1), ("ann", 3)]


async def test_what_failed_and_comes_back_is_applied_behind_later_ones(shop: Bench) -> None:
    """A delivery is skipped only if the state holds it, never because it holds a later one."""

    class Unordered(Ledger, on_failure="redeliver"):
        pass

    app = app_of(Unordered)
    await shop.cell(app)
    await pay(shop, "ann", 1, -2, 4)
    await until(lambda: Ledger.runs[4] == 1)
    Ledger.forgiven.add(-2)
    await shop.settled(app)
    value = (await record_of(shop.client, "ann", "unordered"))[-1]
    assert value == {"amount": 3, "payments": [1, 4, -2]}


@pytest.mark.parametrize("double_ack", [False, True])
async def test_a_cell_that_dies_when_it_has_committed_runs_no_handler_again(
    shop: Bench, monkeypatch: pytest.MonkeyPatch, double_ack: bool
) -> None:
    """What was published with the commit is sent by its replacement, under the same ids."""

    class Twice(Ledger, double_ack=double_ack):
        pass

    async def die(*_: object) -> None:
        raise _Death

    app = app_of(Twice)
    with monkeypatch.context() as patched:
        patched.setattr(StatePipeline, "_finish", die)
        cell = await shop.cell(app)
        await pay(shop, "ann", 1)
        assert cell.task is not None
        with pytest.raises(_Death):
            await cell.task
    assert await stored(shop) == []
    await cell.vanish()
    await cell.start(reason="died", crashed=True)
    await pay(shop, "ann", 2)
    await shop.settled(app)
    assert await stored(shop) == [("ann", 1), ("ann", 3)]
    assert Ledger.runs == {1: 1, 2: 1}
    counters = cell.status.counters
    assert (counters["already_applied"], counters["published_again"]) == (1, 1)
    record = await record_of(shop.client, "ann", "twice")
    assert record[-1] == {"amount": 3, "payments": [1, 2]}
    assert [sequence for sequence, _ in record[4]] == [2], "the first one's are confirmed"


async def test_a_suspect_goes_behind_earlier_ones_of_its_key_that_were_not_stored(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were handled with it, to be stored together; it alone was running when the process was killed."""
    monkeypatch.setattr(state_pipeline, "SHARE_SECONDS", 60)
    all_held, killed = asyncio.Event(), asyncio.Event()

    class Together(Ledger):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> Rose:
            await all_held.wait()
            rose = await super().paid(event, ctx)
            if event.amount == 3 and not killed.is_set():
                killed.set()
                await asyncio.Event().wait()
            return rose

    app = app_of(Together)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1, 2, 3, 4)
    await until(lambda: cell.status.held == 4)
    all_held.set()
    await killed.wait()
    assert cell.cell is not None
    # What ends a task writes nothing down, as a kill wouldn't.
    monkeypatch.setattr(cell.cell._ledger, "held", lambda _: None)
    await cell.die()
    with capture_logs() as logged:
        await cell.start(reason="killed by SIGKILL", crashed=True)
        await shop.settled(app)
    assert [entry["suspects"] for entry in logged if entry["event"] == "took over"] == [[3]]
    record = await record_of(shop.client, "ann", "together")
    assert record[-1] == {"amount": 10, "payments": [1, 2, 3, 4]}
    assert await stored(shop) == [("ann", 1), ("ann", 3), ("ann", 6), ("ann", 10)]


async def test_a_cell_that_dies_while_it_commits_is_no_suspect(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler had returned. Whether the commit had arrived decides if the handler runs again."""
    commit = StateStore.commit

    def die_after(self: StateStore, name: str, revision: int, body: bytes) -> Any:
        async def confirm_and_die() -> Any:
            await commit(self, name, revision, body)
            raise _Death

        return asyncio.ensure_future(confirm_and_die())

    def die_before(*_: object) -> int:
        raise _Death

    app = app_of(Ledger)
    monkeypatch.setattr(StateStore, "commit", die_before)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1)
    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "commit", die_before)
        assert cell.task is not None
        with pytest.raises(_Death):
            await cell.task
    monkeypatch.setattr(StateStore, "commit", die_after)
    await cell.vanish()
    await cell.start(reason="died", crashed=True)
    with pytest.raises(_Death):
        await cell.task
    monkeypatch.setattr(StateStore, "commit", commit)
    await cell.vanish()
    await cell.start(reason="died", crashed=True)
    await shop.settled(app)
    assert Ledger.runs == {1: 2}
    assert await total_of(shop.client, "ann") == (1, [1])
    assert await stored(shop) == [("ann", 1)]
    attempts = await shop.client.jetstream().key_value("shop-attempts")
    assert (await attempts.status()).values == 0


async def test_events_of_a_key_that_wait_together_share_a_commit(shop: Bench) -> None:
    """Of an actor without key, all of them; and all are applied in stream order."""

    class Whole(Actor, state=Total, mailbox=Mailbox(capacity=2048)):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> None:
            ctx.state.amount += event.amount
            ctx.state.payments.append(event.amount)

    app = app_of(Whole)
    await ensure_topology(shop.client, app.spec(), apply=True)
    await pay(shop, "ann", *range(1000))
    cell = await shop.cell(app)
    await shop.settled(app)
    await until(lambda: cell.status.counters["handled"] == 1000)
    assert (await record_of(shop.client, "=", "whole"))[-1]["payments"] == list(range(1000))
    assert cell.status.counters["committed"] < 500


async def test_what_can_t_be_read_holds_up_no_others_in_its_line(shop: Bench) -> None:
    class Whole(Actor, state=Total, mailbox=Mailbox(capacity=2048)):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> None:
            ctx.state.amount += event.amount
            ctx.state.payments.append(event.amount)

    app = app_of(Whole)
    await ensure_topology(shop.client, app.spec(), apply=True)
    for amount in range(20):
        await pay(shop, "ann", amount)
        await shop.publisher.publish({"customer": "ann"}, subject="payments.paid")
    cell = await shop.cell(app)
    await shop.settled(app)
    await until(lambda: cell.status.counters["handled"] == 20)
    assert (await record_of(shop.client, "=", "whole"))[-1]["payments"] == list(range(20))
    assert len(await shop.dead_letters(app)) == 20


async def test_a_handler_that_does_not_ask_for_the_state_commits_nothing(shop: Bench) -> None:
    class Reader(Actor, key="customer", state=Total):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> Rose:
            if event.amount > 1:
                ctx.state.amount = event.amount
            return Rose(customer=event.customer, total=event.amount)

    app = app_of(Reader)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1)
    await shop.settled(app)
    assert cell.status.counters["committed"] == 0
    await pay(shop, "ann", 2)
    await shop.settled(app)
    await until(lambda: cell.status.counters["committed"] == 1)
    assert await stored(shop) == [("ann", 1), ("ann", 2)]


async def test_two_cells_that_fight_for_a_key_lose_no_update(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinning is switched off by force, so that both are given events of the same keys."""
    monkeypatch.setattr(ActorOptions, "is_sole_owner", False)

    class Fighting(Ledger, mailbox=Mailbox(capacity=16)):
        pass

    app = app_of(Fighting)
    first = await shop.cell(app)
    (shop.directory / "other").mkdir()
    second = CellRun(app, shop.url, shop.directory / "other")
    shop.cells.append(second)
    await second.start()
    amounts = range(1, FOUGHT_FOR + 1)
    confirmed = [await shop.publisher.publish_async(Paid(customer="ann", amount=one)) for one in amounts]
    await asyncio.gather(*confirmed)
    await shop.settled(app)
    record = await record_of(shop.client, "ann", "fighting")
    assert sorted(record[-1]["payments"]) == list(amounts)
    assert record[-1]["amount"] == sum(amounts)
    assert first.status.counters["conflicts"] + second.status.counters["conflicts"] > 0
    assert first.status.counters["handled"] > 0
    assert second.status.counters["handled"] > 0
    totals = [total for _, total in await stored(shop)]
    assert len(totals) == len(set(totals)) == len(amounts), "each event's output is of the state it made"
    assert max(totals) == sum(amounts)


async def test_the_state_knows_what_is_applied_and_not_marked_yet(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cell, which takes itself for the key's owner too, is given the repeat in between."""
    monkeypatch.setattr(ActorOptions, "is_sole_owner", False)
    go_on = asyncio.Event()
    make = Marking.make

    async def wait_and_make(self: Marking, delivery: HeldDelivery) -> Any:
        await go_on.wait()
        return await make(self, delivery)

    monkeypatch.setattr(Marking, "make", wait_and_make)

    class Once(Ledger, idempotency=Idempotency(window_seconds=60, key="amount"), mailbox=Mailbox(capacity=1)):
        pass

    app = app_of(Once)
    first = await shop.cell(app)
    await pay(shop, "ann", 1)
    await until(lambda: first.status.counters["committed"] == 1)
    (shop.directory / "other").mkdir()
    second = CellRun(app, shop.url, shop.directory / "other")
    shop.cells.append(second)
    await second.start()
    await pay(shop, "ann", 1)
    await until(lambda: second.status.counters["received"] == 1 and second.status.held == 0)
    assert second.status.counters["duplicates"] == 1
    go_on.set()
    await shop.settled(app)
    await pay(shop, "ann", 2)
    await shop.settled(app)
    record = await record_of(shop.client, "ann", "once")
    assert record[-1] == {"amount": 3, "payments": [1, 2]}
    assert await stored(shop) == [("ann", 1), ("ann", 3)]


@pytest.mark.parametrize("sent_by", ["a replay", "its publisher"])
async def test_a_letter_s_event_is_applied_though_its_outputs_could_not_be_sent(
    shop: Bench, sent_by: str
) -> None:
    """The state has named its mark, which nobody made: as of any letter, so that it may come again."""

    class Once(
        Ledger,
        idempotency=Idempotency(window_seconds=60, key="amount"),
        retry=RetryPolicy(max_attempts=1),
    ):
        pass

    app = app_of(Once)
    await ensure_topology(shop.client, app.spec(), apply=True)
    js = shop.client.jetstream()
    await js.delete_stream("TOTALS")
    cell = shop.cell_run(app)
    shop.cells.append(cell)
    await cell.start()
    await pay(shop, "ann", 1)
    await until(lambda: cell.status.counters["dead_lettered"] == 1)
    await js.add_stream(name="TOTALS", subjects=["totals.>"])
    if sent_by == "a replay":
        replayed = await Letters(shop.client, shop.url).run("replay", "1")
        assert replayed.status == 0, replayed
    else:
        await pay(shop, "ann", 1)
    await shop.settled(app)
    # The state was changed before its outputs could not be sent.
    assert await stored(shop) == [("ann", 2)]
    await until(lambda: cell.status.held == 0)
    assert cell.status.counters["duplicates"] == 0


async def test_a_state_that_is_too_large_is_an_error_that_says_what_to_do(shop: Bench) -> None:
    class Growing(Actor, key="customer", state=Small, retry=RetryPolicy(max_attempts=1)):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> None:
            ctx.state.text += "x" * event.amount

    app = app_of(Growing)
    await shop.cell(app)
    await pay(shop, "ann", 10, 100, 5)
    await shop.settled(app)
    (letter,) = await shop.dead_letters(app)
    assert letter.headers["Understudy-Error"] == (
        "StateError: Small takes 118 bytes, its max_bytes is 40; keep less in it, spread it over more keys, "
        "or raise max_bytes, within the server's max_payload"
    )
    assert (await record_of(shop.client, "ann", "growing"))[-1] == {"text": "x" * 15}


async def test_an_older_version_is_upgraded_and_a_newer_one_waits(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one is left alone, and its delivery neither counted nor given up."""
    monkeypatch.setattr(admission, "UNREADABLE_SECONDS", 0.05)

    class Cents(State, version=2):
        cents: int = 0

        @classmethod
        def upgrade(cls, version: int, data: dict[str, Any]) -> dict[str, Any]:
            assert version == 1
            return {"cents": 100 * data["amount"]}

    class Newer(Actor, key="customer", state=Cents, durable="shop-ledger"):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> None:
            ctx.state.cents += 100 * event.amount

    app = app_of(Ledger)
    cell = await shop.cell(app)
    await pay(shop, "ann", 3)
    await shop.settled(app)
    await cell.stop()
    newer = await shop.cell(app_of(Newer))
    await pay(shop, "ann", 4)
    await shop.settled(app)
    assert (await record_of(shop.client, "ann"))[-1] == {"cents": 700}
    await newer.stop()
    tries: list[str] = []
    take = States.take

    async def spy(self: States, name: str) -> Any:
        try:
            return await take(self, name)
        except StateError as error:
            tries.append(str(error))
            raise

    monkeypatch.setattr(States, "take", spy)
    await cell.start()
    await pay(shop, "ann", 5)
    await until(lambda: len(tries) >= 3)
    assert tries[0] == (
        "the state of 'ann' can't be read: Total was stored by its version 2, and this one is 1; deploy "
        "version 2 again. Its events wait; to have the key begin anew, delete it: nats kv del shop-state "
        "shop-ledger.ann"
    )
    assert cell.status.counters["failed"] == 0
    await cell.stop()
    await newer.start()
    await shop.settled(app)
    assert (await record_of(shop.client, "ann"))[-1] == {"cents": 1200}


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        pytest.param(
            # Without the marks that aren't made.
            msgspec.msgpack.encode([1, 1, "", [], [], {"amount": 3, "seen": []}]),
            "it is stored in form 1 and this version of understudy reads form 2; run the version that stored "
            "it",
            id="an earlier version's",
        ),
        pytest.param(
            b"3", "it is nothing that understudy stores (Expected `array`, got `int`)", id="somebody's"
        ),
    ],
)
async def test_a_state_of_another_form_is_left_alone_and_its_events_wait(
    shop: Bench, monkeypatch: pytest.MonkeyPatch, stored: bytes, problem: str
) -> None:
    """Nothing is counted or given up; others go on, and when it is deleted its key begins anew."""
    monkeypatch.setattr(admission, "UNREADABLE_SECONDS", 0.05)
    app = app_of(Ledger)
    await ensure_topology(shop.client, app.spec(), apply=True)
    bucket = await shop.client.jetstream().key_value("shop-state")
    await bucket.put("shop-ledger.ann", stored)
    with capture_logs() as logs:
        cell = await shop.cell(app)
        await pay(shop, "ann", 1)
        await pay(shop, "bob", 2)
        await until(lambda: len([1 for entry in logs if entry["event"] == "state can't be read"]) >= 3)
    tries = [entry for entry in logs if entry["event"] == "state can't be read"]
    assert tries[0]["error"] == (
        f"the state of 'ann' can't be read: {problem}. Its events wait; to have the key begin anew, delete "
        f"it: nats kv del shop-state shop-ledger.ann"
    )
    assert (await bucket.get("shop-ledger.ann")).value == stored
    await bucket.delete("shop-ledger.ann")
    await shop.settled(app)
    assert await total_of(shop.client, "ann") == (1, [1])
    assert await total_of(shop.client, "bob") == (2, [2])
    assert cell.status.counters["failed"] == 0
    assert await shop.dead_letters(app) == []


async def test_a_bucket_that_is_gone_postpones(shop: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted, and what waits is handled when there is one again."""
    app = app_of(Ledger)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1)
    await shop.settled(app)
    await shop.client.jetstream().delete_stream(BUCKET)
    await pay(shop, "ann", 2)
    await pay(shop, "bob", 3)
    await until(lambda: Ledger.runs[2] >= 1)
    await until(lambda: len(cell.cell._mailbox) == 2)  # type: ignore[union-attr]
    # So it isn't ready, and says why.
    await until(lambda: cell.status.state == "stalled")
    assert re.match(r"state .+ can't be read: |state not committed: ", cell.status.reason)
    await ensure_topology(shop.client, app.spec(), apply=True)
    await shop.settled(app)
    await until(lambda: cell.status.state == "up")
    assert await total_of(shop.client, "ann") == (2, [2]), "what it held went with it"
    assert await total_of(shop.client, "bob") == (3, [3])
    assert cell.status.counters["failed"] == 0


async def test_a_broker_that_is_away_postpones(shop: Bench, nats_server: NatsServer) -> None:
    app = app_of(Ledger)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1)
    await shop.settled(app)
    nats_server.kill()
    nats_server.start()
    await reconnected(shop.client)
    await pay(shop, "ann", 2)
    await shop.settled(app)
    assert await total_of(shop.client, "ann") == (3, [1, 2])
    assert cell.status.counters["failed"] == 0


async def test_a_recreated_stream_begins_its_sequences_anew(shop: Bench) -> None:
    """Its first event has the sequence that the state holds of the old stream's."""
    app = app_of(Ledger)
    cell = await shop.cell(app)
    await pay(shop, "ann", 1)
    await shop.settled(app)
    await cell.stop()
    await shop.client.jetstream().delete_stream("PAYMENTS")
    await ensure_topology(shop.client, app.spec(), apply=True)
    await cell.start()
    await pay(shop, "ann", 2)
    await shop.settled(app)
    assert await total_of(shop.client, "ann") == (3, [1, 2])


async def test_what_is_evicted_is_read_again(shop: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "CACHE_ENTRIES", 2)
    app = app_of(Ledger)
    cell = await shop.cell(app)
    customers = "abcde"
    for amount in (1, 2):
        for customer in customers:
            await pay(shop, customer, amount)
    await shop.settled(app)
    for customer in customers:
        assert await total_of(shop.client, customer) == (3, [1, 2])
    assert len(cell.cell._states._cache) == 2  # type: ignore[union-attr]


async def test_sequences_are_dropped_when_the_server_has_their_acks(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the ack floor stands still, because of another key's event that is tried again."""
    monkeypatch.setattr(epochs, "EPOCH_SECONDS", 0.05)
    app = app_of(Ledger)
    cell = await shop.cell(app)
    await pay(shop, "bob", -1)
    await until(lambda: Ledger.runs[-1] >= 1)
    await pay(shop, "ann", *range(100))
    assert cell.cell is not None
    assert cell.cell._states is not None
    own = cell.cell._states.epochs
    await until(lambda: Ledger.runs[99] == 1)
    before = own.now
    await until(lambda: own._confirmed > before or not own.is_used)
    for amount in range(100, 104):
        now = own.now
        await pay(shop, "ann", amount)
        await until(lambda: own.now > now)  # noqa: B023
    record = await record_of(shop.client, "ann")
    assert own.floor == 0
    assert len(Applied(record[3])) < 10
    assert record[-1]["payments"] == list(range(104))


async def test_sequences_that_fill_a_commit_make_room_again(
    shop: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails for their number isn't kept from being handled when the server has their acks."""
    monkeypatch.setattr(epochs, "EPOCH_SECONDS", 0.2)

    class Counting(Actor, key="customer", state=Small, on_failure="redeliver", retry=AGAIN):
        @handles
        async def paid(self, event: Paid, ctx: Context) -> None:
            assert ctx.state.text == ""

    app = app_of(Counting)
    await ensure_topology(shop.client, app.spec(), apply=True)
    # Of each second event's sequence there are two bytes to be stored.
    for amount in range(300):
        await pay(shop, "ann", amount)
        await pay(shop, "bob", amount)
    apply, confirmed = HeldState.apply, Epochs.confirmed

    def confirm(own: Epochs, epoch: int, floor: int) -> None:
        if cell.status.counters["failed"]:
            confirmed(own, epoch, floor)
        else:
            # As if the server had not answered; it is asked again.
            own.is_used = True

    monkeypatch.setattr(
        HeldState,
        "apply",
        lambda own, number, messages, _, *, mark: apply(own, number, messages, 800, mark=mark),
    )
    # However slow we are, no room is made before there is none.
    monkeypatch.setattr(Epochs, "confirmed", confirm)
    cell = shop.cell_run(app)
    shop.cells.append(cell)
    await cell.start()
    await until(lambda: cell.status.counters["failed"] > 0)
    await shop.settled(app)
    assert await shop.dead_letters(app) == []


async def test_keys_that_are_equal_and_not_the_same_have_states_of_their_own(shop: Bench) -> None:
    """They wait in one line, and must not be applied to the state of its first."""

    class Odd(Actor, key=lambda event: (event["kind"],), state=Total):
        @handles("payments.odd")
        async def paid(self, event: dict[str, Any], ctx: Context) -> None:
            ctx.state.amount += 1

    app = app_of(Odd)
    await ensure_topology(shop.client, app.spec(), apply=True)
    for _ in range(20):
        for kind in (1, True):
            await shop.publisher.publish({"kind": kind}, subject="payments.odd")
    await shop.cell(app)
    await shop.settled(app)
    bucket = await shop.client.jetstream().key_value("shop-state")
    amounts = [
        msgspec.msgpack.decode((await bucket.get(key)).value or b"")[-1] for key in await bucket.keys()
    ]
    assert [one["amount"] for one in amounts] == [20, 20]


async def test_any_key_is_legal(shop: Bench) -> None:
    class Odd(Actor, key=lambda event: (event["kind"], event["n"]), state=Total):
        @handles("payments.odd")
        async def paid(self, event: dict[str, Any], ctx: Context) -> None:
            ctx.state.amount += 1

    app = app_of(Odd)
    await shop.cell(app)
    kinds: list[Any] = ["a.b c", "*", ">", "", None, 7, 7.5, "é" * 300, True]
    for kind in kinds:
        for _ in range(2):
            await shop.publisher.publish({"kind": kind, "n": 1}, subject="payments.odd")
    await shop.settled(app)
    bucket = await shop.client.jetstream().key_value("shop-state")
    keys = await bucket.keys()
    assert len(keys) == len(kinds)
    for key in keys:
        record = msgspec.msgpack.decode((await bucket.get(key)).value or b"")
        assert record[-1]["amount"] == 2
