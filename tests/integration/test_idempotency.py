"""An idempotent actor against a real broker: what was handled is skipped, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Unpack

import msgspec
import pytest
import structlog

from support.cells import Bench, CellRun, in_both_lanes, reconnected, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.options import OptionKeywords
from understudy.actors.outcomes import Reject
from understudy.actors.policies import Batch, Mailbox, RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.cell.failures import ActorFailed
from understudy.runtime.jetstream.api import stream_info
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stores.idempotency import Mark, mark_name
from understudy.runtime.stream import Stream

FAST = RetryPolicy(max_attempts=3, min_delay_seconds=0.01, max_delay_seconds=0.05)
HOUR = Idempotency(window_seconds=3600)
MEMORY = Idempotency(window_seconds=3600, store="memory")
ORIGINAL_ID = "Understudy-Original-Id"
BUCKET = "KV_shop-idempotency"


class Placed(Event, subject="orders.placed"):
    number: int
    reference: str = ""


class Billed(Event, subject="orders.billed"):
    number: int


class Book:
    """What the handlers of a test were given, and what they are to do.

    Attributes:
        numbers, keys: of the events, as their handling began.
        failing: what the next runs raise, the last first.
        go_on: they wait for it.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.keys: list[str] = []
        self.failing: list[Exception] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    def billing(self, **options: Unpack[OptionKeywords]) -> App:
        """Return an app whose actor is an idempotent one that uses this book."""
        book = self
        options = {"idempotency": HOUR, "retry": FAST, **options}

        class Billing(Actor, **options):
            @handles
            async def placed(self, event: Placed, ctx: Context) -> Billed:
                book.numbers.append(event.number)
                book.keys.append(ctx.delivery.idempotency_key)
                await book.go_on.wait()
                if book.failing:
                    raise book.failing.pop()
                return Billed(number=event.number)

        return App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[Billing])


async def place(orders: Bench, number: int, headers: Mapping[str, str] = {}, **fields: Any) -> None:
    """Publish an order without the id that would keep the stream from storing it twice."""
    body = msgspec.msgpack.encode(Placed(number=number, **fields))
    headers = {"Content-Type": "application/msgpack", **headers}
    await orders.client.jetstream().publish("orders.placed", body, headers=headers)


def counts(cell: CellRun) -> tuple[int, int, int]:
    """Return how many deliveries the cell has handled, skipped, and handled beside another cell."""
    counters = cell.status.counters
    return counters["handled"], counters["duplicates"], counters["mark_conflicts"]


async def marks(orders: Bench) -> dict[str, int]:
    """Return how many messages each mark has, by its name."""
    info = await orders.client.jetstream().stream_info(BUCKET, subjects_filter=">")
    return {subject.rpartition(".")[2]: count for subject, count in (info.state.subjects or {}).items()}


async def test_what_a_small_memory_forgets_the_bucket_knows_at_once(orders: Bench) -> None:
    """All was looked up in one go, before the first mark was made."""
    book = Book()
    app = book.billing(idempotency=Idempotency(window_seconds=3600, capacity=1))
    await ensure_topology(orders.client, app.spec(), apply=True)
    for number in range(30):
        await place(orders, number, {ORIGINAL_ID: str(number % 10)})
    await orders.cell(app)
    await orders.settled(app)
    assert book.numbers == list(range(10))


@in_both_lanes
async def test_an_event_that_was_handled_is_skipped(orders: Bench) -> None:
    """It is acked without a run, and counted; others are handled, and each has its mark."""
    book = Book()
    app = book.billing()
    cell = await orders.cell(app)
    for number, key in enumerate(["a", "b", "a", "c", "b", "a"]):
        await place(orders, number, {ORIGINAL_ID: key})
    await orders.settled(app)
    await until(lambda: cell.status.held == 0)
    assert (book.numbers, book.keys) == ([0, 1, 3], ["a", "b", "c"])
    assert counts(cell) == (3, 3, 0)
    assert await marks(orders) == {"a": 1, "b": 1, "c": 1}
    assert cell.status.counters["acked"] == 3


async def test_another_cell_skips_it_too(orders: Bench) -> None:
    """The marks are on the server."""
    book = Book()
    app = book.billing()
    first = await orders.cell(app)
    await place(orders, 1, {ORIGINAL_ID: "a"})
    await orders.settled(app)
    await first.stop()
    second = await orders.cell(app)
    await place(orders, 2, {ORIGINAL_ID: "a"})
    await place(orders, 3, {ORIGINAL_ID: "b"})
    await orders.settled(app)
    await until(lambda: counts(second) == (1, 1, 0))
    assert book.numbers == [1, 3]


@in_both_lanes
async def test_many_at_a_time(orders: Bench) -> None:
    """Repeats that were looked up with the first, before it had its mark, and repeats that come later."""
    book = Book()
    app = book.billing()
    await ensure_topology(orders.client, app.spec(), apply=True)
    await asyncio.gather(
        *(place(orders, number, {ORIGINAL_ID: f"k{number // 2 % 500}"}) for number in range(2000))
    )
    cell = await orders.cell(app)
    await orders.settled(app)
    await until(lambda: counts(cell) == (500, 1500, 0))
    assert sorted(book.keys) == sorted(f"k{number}" for number in range(500))
    info = await orders.client.jetstream().stream_info("ORDERS", subjects_filter="orders.billed")
    assert info.state.subjects == {"orders.billed": 500}


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({ORIGINAL_ID: "o", "Nats-Msg-Id": "m", "ce-id": "c"}, "o"),
        ({"Nats-Msg-Id": "m", "ce-id": "c", "ce-source": "s"}, "m"),
        ({"ce-id": "c", "ce-source": "/shop"}, "/shop c"),
        ({"ce-id": "c"}, "c"),
        ({}, "ORDERS.{created}.1"),
    ],
)
async def test_by_default_the_key_is_the_event_s_id(orders: Bench, headers: dict[str, str], key: str) -> None:
    """Or its place in the stream, which a stream that is made anew doesn't have again."""
    book = Book()
    app = book.billing()
    await orders.cell(app)
    info = await stream_info(orders.client, "ORDERS")
    assert info is not None
    await place(orders, 1, headers)
    await orders.settled(app)
    assert book.keys == [key.format(created=info["created"])]
    assert await marks(orders) == {mark_name(book.keys[0]): 1}


def by_reference_and_tenant(event: Placed, headers: Mapping[str, str]) -> str:
    """Return a key of both."""
    return f"{headers['Tenant']}/{event.reference}"


async def test_a_key_may_be_made_of_the_event_and_its_headers(orders: Bench) -> None:
    book = Book()
    app = book.billing(idempotency=Idempotency(window_seconds=60, key=by_reference_and_tenant))
    cell = await orders.cell(app)
    for number, (tenant, reference) in enumerate([("x", "1"), ("y", "1"), ("x", "1"), ("x", "2")]):
        await place(orders, number, {"Tenant": tenant}, reference=reference)
    await until(lambda: counts(cell) == (3, 1, 0))
    assert book.keys == ["x/1", "y/1", "x/2"]


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (by_reference_and_tenant, "the idempotency key can't be computed: KeyError: 'Tenant'"),
        ("reference", "the idempotency key is ''; give a str that isn't empty, an int or a UUID"),
    ],
)
async def test_an_event_without_a_key_is_a_dead_letter(orders: Bench, key: Any, error: str) -> None:
    """No later attempt would find one."""
    book = Book()
    app = book.billing(idempotency=Idempotency(window_seconds=60, key=key))
    await orders.cell(app)
    await place(orders, 1)
    await until_letters(orders, app, 1)
    (letter,) = await orders.dead_letters(app)
    assert (letter.headers["Understudy-Reason"], letter.headers["Understudy-Error"]) == ("undecodable", error)
    assert book.numbers == []


async def until_letters(orders: Bench, app: App, number: int) -> None:
    """Return when there are so many dead letters."""

    async def are_there() -> bool:
        return len(await orders.dead_letters(app)) == number

    await until(are_there)


async def test_a_failed_attempt_leaves_no_mark(orders: Bench) -> None:
    """Neither one that is tried again nor one that is given up."""
    book = Book()
    book.failing = [Reject("no"), ValueError("once")]
    app = book.billing()
    cell = await orders.cell(app)
    await place(orders, 1, {ORIGINAL_ID: "a"})
    await until_letters(orders, app, 1)
    assert await marks(orders) == {}
    await place(orders, 2, {ORIGINAL_ID: "a"})
    await orders.settled(app)
    assert book.numbers == [1, 1, 2]
    assert counts(cell) == (1, 0, 0)
    assert await marks(orders) == {"a": 1}


async def test_a_failure_that_blocks_its_key_is_handled_in_place_and_marked(orders: Bench) -> None:
    """A repeat of the same key of the actor waits behind it, and is skipped."""
    book = Book()
    book.failing = [ValueError("once")]
    app = book.billing(key="reference")
    cell = await orders.cell(app)
    for number in (1, 2):
        await place(orders, number, {ORIGINAL_ID: "a"}, reference="x")
    await until(lambda: counts(cell) == (1, 1, 0))
    assert book.numbers == [1, 1]


async def test_a_repeat_waits_for_the_first_one_s_outcome(orders: Bench) -> None:
    """Beside it runs what has another key; when it fails the repeat runs, and it is skipped in turn."""
    book = Book()
    book.go_on.clear()
    app = book.billing(concurrency=4)
    cell = await orders.cell(app)
    for number, key in enumerate(["a", "a", "b"]):
        await place(orders, number, {ORIGINAL_ID: key})
    await until(lambda: book.numbers == [0, 2])
    book.failing = [ValueError("the last"), ValueError("and the first")]
    book.go_on.set()
    await until(lambda: counts(cell) == (2, 1, 0))
    assert len(book.numbers) == 4
    assert book.keys.count("b") == 2


async def test_after_the_window_an_event_is_handled_again(orders: Bench) -> None:
    """The server forgets the mark, and the cell does."""
    book = Book()
    app = book.billing(idempotency=Idempotency(window_seconds=1))
    cell = await orders.cell(app)
    await place(orders, 1, {ORIGINAL_ID: "a"})
    await orders.settled(app)
    # The mark itself may be gone by now.
    assert (await orders.client.jetstream().stream_info(BUCKET)).state.last_seq >= 1

    async def is_forgotten() -> bool:
        return not await marks(orders)

    await until(is_forgotten)
    await place(orders, 2, {ORIGINAL_ID: "a"})
    await until(lambda: counts(cell) == (2, 0, 0))
    assert book.numbers == [1, 2]


async def test_of_two_cells_that_handle_one_event_the_later_one_knows(orders: Bench) -> None:
    """It is one message: the server gave it to the second while the first had it."""
    book = Book()
    book.go_on.clear()
    app = book.billing()
    first = await orders.cell(app)
    await place(orders, 1, {ORIGINAL_ID: "a"})
    await until(lambda: book.numbers == [1])
    assert first.cell is not None
    held = first.cell._mailbox.get(1)
    assert held is not None
    # The first one asks for nothing meanwhile.
    first.cell.quiesce()
    await until(first.cell._subscription.is_unasked)
    second_run = orders.cell_run(app)
    # As on another node: record locks keep nothing apart in one process.
    second_run.directory = orders.directory / "second"
    second_run.directory.mkdir()
    second_run.generation = first.generation
    orders.cells.append(second_run)
    await second_run.start()
    with structlog.testing.capture_logs() as logged:
        await orders.client.publish(held.reply.decode(), b"-NAK")
        await until(lambda: book.numbers == [1, 1])
        book.go_on.set()
        await until(lambda: counts(first)[0] == counts(second_run)[0] == 1)
    assert counts(first)[2] + counts(second_run)[2] == 1
    assert await marks(orders) == {"a": 1}
    (told,) = [entry for entry in logged if entry["log_level"] == "warning"]
    assert told["event"] == "handled twice: its key was marked while it was handled"
    assert (told["key"], told["sequence"], told["marked_sequence"]) == ("a", 1, 1)
    assert told["marked_by"].startswith(f"billing/0 {orders.directory.name} ")


async def test_while_the_bucket_is_gone_deliveries_are_held(orders: Bench) -> None:
    """Nothing is handled without its look-up, nothing counted, and what was handled is not handled again."""
    book = Book()
    book.go_on.clear()
    app = book.billing(mailbox=Mailbox(capacity=16))
    cell = await orders.cell(app)
    await place(orders, 0, {ORIGINAL_ID: "k0"})
    await until(lambda: book.numbers == [0])
    js = orders.client.jetstream()
    await js.delete_stream(BUCKET)
    book.go_on.set()
    for number in range(1, 50):
        await place(orders, number, {ORIGINAL_ID: f"k{number % 40}"})
    await until(lambda: cell.status.state == "paused")
    assert cell.status.reason.startswith("the idempotency marks are away: ")
    assert book.numbers == [0]
    await ensure_topology(orders.client, app.spec(), apply=True)
    await orders.settled(app)
    await until(lambda: counts(cell) == (40, 10, 0))
    # Of two that have one key, either may be the first whose marks are looked up.
    assert sorted(number % 40 for number in book.numbers) == list(range(40))
    assert cell.status.counters["failed"] == 0
    await until(lambda: cell.status.state == "up")
    assert len(await marks(orders)) == 40


@in_both_lanes
async def test_a_broker_that_restarts_in_the_middle(orders: Bench, nats_server: NatsServer) -> None:
    """Each key is handled once, and nothing fails."""
    book = Book()
    # What was acked as the broker went comes again after `ack_wait`.
    app = book.billing(ack_wait_seconds=2, hang_timeout_seconds=1)
    cell = await orders.cell(app)
    for number in range(300):
        await place(orders, number, {ORIGINAL_ID: f"k{number}"})
    await until(lambda: len(book.numbers) > 20)
    nats_server.stop()
    await until(lambda: not cell.status.connected)
    nats_server.start()
    await reconnected(orders.client)
    for number in range(300, 600):
        await place(orders, number, {ORIGINAL_ID: f"k{number - 200}"})
    await orders.settled(app)
    await until(lambda: cell.status.held == 0)
    assert len(set(book.keys)) == len(book.keys) == 400
    assert cell.status.counters["failed"] == 0


class Batches:
    """What the batch handlers of a test were given, and what they are to fail.

    Attributes:
        batches: the keys of each.
        failing: keys, which are failed once.
    """

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.failing: set[str] = set()

    @property
    def keys(self) -> list[str]:
        """Those of all batches."""
        return [key for batch in self.batches for key in batch]

    def loading(self, size: int, timeout_seconds: float = 0.05, **options: Unpack[OptionKeywords]) -> App:
        """Return an app whose actor takes batches, and writes them down here."""
        book = self
        options = {"idempotency": HOUR, "retry": FAST, **options}

        class Loading(Actor, **options):
            @handles(batch=Batch(size=size, timeout_seconds=timeout_seconds))
            async def placed(self, events: list[Placed], ctx: BatchContext) -> None:
                keys = [delivery.idempotency_key for delivery in ctx.deliveries]
                book.batches.append(keys)
                for index, key in enumerate(keys):
                    if key in book.failing:
                        book.failing.discard(key)
                        ctx.fail(index, ValueError("once"))

        return App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[Loading])


async def place_all(orders: Bench, app: App, keys: str) -> CellRun:
    """Publish an order for each key, a letter, and start the cell when all are there."""
    await ensure_topology(orders.client, app.spec(), apply=True)
    for number, key in enumerate(keys):
        await place(orders, number, {ORIGINAL_ID: key}, reference=key)
    return await orders.cell(app)


@in_both_lanes
async def test_a_batch_has_none_that_was_handled_before(orders: Bench) -> None:
    """Neither in an earlier batch, nor in itself."""
    book = Batches()
    # All three are full.
    app = book.loading(4, timeout_seconds=60)
    cell = await place_all(orders, app, "abacbddeadfe")
    await orders.settled(app)
    await until(lambda: counts(cell) == (6, 6, 0))
    assert sorted(book.keys) == list("abcdef")
    assert book.batches[0] == ["a", "b", "c"]
    assert set(await marks(orders)) == set("abcdef")


@pytest.mark.parametrize("options", [{}, {"key": "reference"}, {"concurrency": 4}])
async def test_a_batch_s_repeats_follow_the_fate_of_the_first(orders: Bench, options: OptionKeywords) -> None:
    """What failed isn't marked, its repeat is tried in turn, and only one of them is handled."""
    book = Batches()
    book.failing = {"b", "d"}
    app = book.loading(6, **options)
    cell = await place_all(orders, app, "abbcddab")
    await orders.settled(app)
    await until(lambda: counts(cell) == (4, 4, 0))
    assert {key: book.keys.count(key) for key in "abcd"} == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert set(await marks(orders)) == set("abcd")


async def test_a_batch_that_can_t_be_marked_waits_for_the_bucket(orders: Bench) -> None:
    """It isn't handled again, and neither are its repeats."""
    book = Batches()
    app = book.loading(4)
    cell = await orders.cell(app)
    await orders.client.jetstream().delete_stream(BUCKET)
    for number, key in enumerate("abcdabcd"):
        await place(orders, number, {ORIGINAL_ID: key})
    await until(lambda: cell.status.state == "paused")
    await ensure_topology(orders.client, app.spec(), apply=True)
    await orders.settled(app)
    await until(lambda: counts(cell) == (4, 4, 0))
    assert sorted(book.keys) == list("abcd")


async def test_the_memory_knows_what_this_cell_has_handled(orders: Bench) -> None:
    """And no bucket is made; the next generation knows nothing."""
    book = Book()
    app = book.billing(idempotency=MEMORY)
    cell = await orders.cell(app)
    for number, key in enumerate("abca"):
        await place(orders, number, {ORIGINAL_ID: key})
    await until(lambda: counts(cell) == (3, 1, 0))
    assert await stream_info(orders.client, BUCKET) is None
    await cell.stop()
    await cell.start()
    await place(orders, 4, {ORIGINAL_ID: "a"})
    await until(lambda: counts(cell) == (1, 0, 0))
    assert book.numbers == [0, 1, 2, 4]


async def test_a_cell_remembers_no_more_than_its_capacity(orders: Bench) -> None:
    """What it has forgotten it handles again, where its memory is all there is."""
    book = Book()
    app = book.billing(idempotency=Idempotency(window_seconds=3600, store="memory", capacity=2))
    cell = await orders.cell(app)
    for number, key in enumerate("abbcca"):
        await place(orders, number, {ORIGINAL_ID: key})
    await until(lambda: counts(cell) == (4, 2, 0))
    assert "".join(book.keys) == "abca"


async def test_with_double_ack_it_is_marked_before_the_ack_is_confirmed(orders: Bench) -> None:
    book = Book()
    app = book.billing(double_ack=True)
    cell = await orders.cell(app)
    for number, key in enumerate("aab"):
        await place(orders, number, {ORIGINAL_ID: key})
    await until(lambda: counts(cell) == (2, 1, 0))
    await orders.settled(app)
    assert await marks(orders) == {"a": 1, "b": 1}


async def test_what_died_between_its_handler_and_its_mark_is_not_handled_again(orders: Bench) -> None:
    """The cell file says that it is handled: the replacement marks it, and acks it."""
    book = Book()
    book.go_on.clear()
    app = book.billing(concurrency=2)
    cell = await orders.cell(app)
    for number, key in enumerate("ab"):
        await place(orders, number, {ORIGINAL_ID: key})
    await until(lambda: book.keys == ["a", "b"])
    await orders.client.jetstream().delete_stream(BUCKET)
    book.go_on.set()
    # Both are handled, and can't be marked.
    await until(lambda: cell.status.state == "paused")
    assert cell.cell is not None
    cell.cell._fail(ActorFailed("on purpose"))
    assert cell.task is not None
    with pytest.raises(ActorFailed):
        await cell.task
    await cell.vanish()
    await ensure_topology(orders.client, app.spec(), apply=True)
    await cell.start(reason="killed by SIGKILL", crashed=True)
    await orders.settled(app)
    await until(lambda: cell.status.held == 0)
    assert book.keys == ["a", "b"]
    assert counts(cell) == (2, 0, 0)
    assert await marks(orders) == {"a": 1, "b": 1}


async def test_what_died_between_its_mark_and_its_ack_is_not_handled_again(orders: Bench) -> None:
    """Nor does the replacement take the mark of the dead cell for another's."""
    book = Book()
    app = book.billing()
    cell = await orders.cell(app)
    assert cell.cell is not None
    cell.cell._settlement.ack = lambda reply: None  # type: ignore[method-assign]
    cell.cell._mailbox.done = lambda delivery: None  # type: ignore[method-assign]
    await place(orders, 1, {ORIGINAL_ID: "a"})

    async def is_marked() -> bool:
        return await marks(orders) == {"a": 1}

    await until(is_marked)
    cell.cell._fail(ActorFailed("on purpose"))
    assert cell.task is not None
    with pytest.raises(ActorFailed):
        await cell.task
    await cell.vanish()
    with structlog.testing.capture_logs() as logged:
        await cell.start(reason="killed by SIGKILL", crashed=True)
        await orders.settled(app)
    assert book.numbers == [1]
    assert counts(cell) == (1, 0, 0)
    assert [entry["event"] for entry in logged if entry["log_level"] == "warning"] == []


async def test_a_drain_leaves_what_is_handled_to_the_next_start(orders: Bench) -> None:
    """Given back, it would be handled again by whoever gets it."""
    book = Book()
    book.go_on.clear()
    app = book.billing()
    cell = await orders.cell(app)
    await place(orders, 0, {ORIGINAL_ID: "a"})
    await until(lambda: book.numbers == [0])
    await orders.client.jetstream().delete_stream(BUCKET)
    book.go_on.set()
    await until(lambda: cell.status.state == "paused")
    await cell.stop()
    assert (await orders.backlog(app)).ack_pending == 1
    await ensure_topology(orders.client, app.spec(), apply=True)
    await cell.start()
    await orders.settled(app)
    assert book.numbers == [0]
    assert await marks(orders) == {"a": 1}


async def test_a_deleted_mark_lets_the_event_be_handled_again(orders: Bench) -> None:
    """As an operator may want it; the deletion leaves a marker, which is no mark."""
    book = Book()
    app = book.billing(idempotency=Idempotency(window_seconds=3600, capacity=1))
    cell = await orders.cell(app)
    for number, key in enumerate("ab"):
        await place(orders, number, {ORIGINAL_ID: key})
    await orders.settled(app)
    bucket = await orders.client.jetstream().key_value("shop-idempotency")
    await bucket.delete("shop-billing.a")
    for number in (2, 3):
        await place(orders, number, {ORIGINAL_ID: "a"})
    await until(lambda: counts(cell) == (3, 1, 0))
    assert book.numbers == [0, 1, 2]
    entry = await bucket.get("shop-billing.a")
    assert entry.value


async def test_the_mark_of_a_hashed_key_says_the_key(orders: Bench) -> None:
    book = Book()
    app = book.billing()
    await orders.cell(app)
    key = "a key with spaces, " * 20
    await place(orders, 1, {ORIGINAL_ID: key})
    await orders.settled(app)
    bucket = await orders.client.jetstream().key_value("shop-idempotency")
    entry = await bucket.get(f"shop-billing.{mark_name(key.strip())}")
    assert entry.value is not None
    mark = msgspec.json.decode(entry.value, type=Mark)
    assert mark == Mark(f"billing/0 {orders.directory.name} 1", 1, key[:200])
