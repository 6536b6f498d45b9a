"""Requests and replies: answers, typed errors, deadlines that travel, late replies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, app_of, bench, both_lanes, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.errors import (
    AskError,
    AskFailed,
    AskRejected,
    AskTimeout,
    DeclarationError,
    DecodeError,
    EncodeError,
    PublishError,
)
from understudy.actors.event import Event, subject_of
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import Batch, CircuitBreaker, RetryPolicy
from understudy.actors.saga import Saga, SagaContext, starts
from understudy.actors.saga_step import NO_COMPENSATION, Step
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.config.connection import ConnectionSpec
from understudy.runtime.app import App
from understudy.runtime.cell.counts import counts_path, read_counts
from understudy.runtime.jetstream import asked, asking
from understudy.runtime.jetstream.envelope import header_block
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.stream import Stream

AT_ONCE = RetryPolicy(max_attempts=2, min_delay_seconds=0, max_delay_seconds=0)
# What a test that waits for an answer bears on a busy machine.
LONG = 30.0
# For asks that are to get no answer in time, one after the other: a machine that stands still may let the
# first deadlines pass before anybody was asked.
SHORT = (0.25, 4.0, LONG)


class PriceOf(Event, subject="orders.price"):
    """Asks for a price; `deed` tells the desk what to do first."""

    item: str = "apple"
    deed: str = ""


PRICES = CircuitBreaker("prices", fail_max=1, reset_timeout_seconds=3600)


class Price(Event):
    """The answer."""

    cents: int
    attempt: int = 1


class Priced(Event, subject="orders.priced"):
    item: str


class TotalOf(Event, subject="orders.total"):
    items: list[str]
    timeout_seconds: float = LONG
    deed: str = ""


class Total(msgspec.Struct):
    cents: int


class Nobody(Event, subject="orders.nobody"):
    """What nobody answers."""


class Desk:
    """What a test's actors share with it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.runs: list[str] = []
        self.deadlines: list[float | None] = []

    async def price(self, event: PriceOf, ctx: Context) -> Any:
        """Do the deed, and answer."""
        self.runs.append(event.item)
        deadline = ctx.delivery.deadline
        self.deadlines.append(None if deadline is None else deadline.timestamp())
        attempt = ctx.delivery.attempt
        self.begun.set()
        match event.deed:
            case "reject":
                raise Reject("no such item")
            case "fail":
                raise ValueError("the list is lost")
            case "retry" if attempt == 1:
                raise Retry(delay_seconds=0)
            case "much later":
                raise Retry(delay_seconds=3600)
            case "wait":
                await self.go.wait()
            case "open":
                async with ctx.breaker("prices"):
                    raise ConnectionError("down")
            case "wait and only answer":
                await self.go.wait()
                return Price(cents=5)
            case "wrong":
                return 5
            case "too large":
                return Large(text="x" * 2_000_000)
        ctx.publish(Priced(item=event.item))
        return Price(cents=5, attempt=attempt)

    def seller(self, **options: Any) -> type[Actor]:
        """Return the actor that knows prices."""
        desk = self

        class Seller(Actor, **{"retry": AT_ONCE, "concurrency": 4, "breakers": [PRICES], **options}):
            @handles(reply=Event)
            async def price(self, event: PriceOf, ctx: Context) -> Any:
                return await desk.price(event, ctx)

        return Seller


class Large(Event):
    text: str


def ask(orders: Bench, event: PriceOf, timeout_seconds: float = LONG) -> Awaitable[Price]:
    """Ask from outside."""
    return orders.publisher.ask(event, expects=Price, timeout_seconds=timeout_seconds)


async def ask_in_vain(orders: Bench, event: Event) -> None:
    """Ask what nobody answers, until the stream has such a request in time."""
    for seconds in SHORT:
        with pytest.raises(AskTimeout) as caught:
            await orders.publisher.ask(event, expects=Price, timeout_seconds=seconds)
        if "no stream has confirmed" not in str(caught.value):
            break
    assert str(caught.value) == f"{subject_of(event)}: no answer within {seconds:g} s"


def counted(run: CellRun, counter: str, cell: str = "seller/0") -> int:
    """Return what a cell has counted."""
    return read_counts(counts_path(Path(run.directory), cell)).counters[counter]


async def subjects(orders: Bench) -> dict[str, int]:
    """Return how many messages of each subject are in the stream."""
    info = await orders.client.jetstream().stream_info("ORDERS", subjects_filter=">")
    return dict(info.state.subjects or {})


class Sold(State):
    items: int = 0


def stateful(desk: Desk) -> type[Actor]:
    """Return a seller that stores how many it was asked."""

    class Seller(Actor, state=Sold, key="item", retry=AT_ONCE, on_failure="redeliver", breakers=[PRICES]):
        @handles(reply=Event)
        async def price(self, event: PriceOf, ctx: Context) -> Any:
            ctx.state.items += 1
            answer = await desk.price(event, ctx)
            return Price(cents=ctx.state.items) if isinstance(answer, Price) else answer

    return Seller


KINDS: list[Callable[[Desk], type[Actor]]] = [
    lambda desk: desk.seller(),
    stateful,
    lambda desk: desk.seller(idempotency=Idempotency(window_seconds=60)),
    lambda desk: desk.seller(double_ack=True),
]
all_kinds = pytest.mark.parametrize("kind", KINDS, ids=["plain", "state", "idempotent", "double ack"])
ERRORS = [
    ("reject", AskRejected, "", "no such item"),
    ("fail", AskFailed, "exhausted", "orders.price: exhausted: ValueError: the list is lost"),
    ("much later", AskFailed, "failed", "orders.price: failed: Retry"),
    (
        "wrong",
        AskFailed,
        "exhausted",
        "orders.price: exhausted: TypeError: the handler declares reply=Event, but returned int",
    ),
    ("too large", AskFailed, "exhausted", "orders.price: exhausted: PublishError: _INBOX."),
    # Last: nothing more is handled until its breaker lets a trial through.
    ("open", AskFailed, "held", "orders.price: held: CircuitOpen: circuit breaker 'prices' is open"),
]


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the orders app, on the fast lane."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


@both_lanes
async def either(
    nats_server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """The same on each lane: requests, answers and inboxes go by other ways there."""
    async with bench(nats_server.url, tmp_path, fast_lane=request.param) as made:
        yield made


@all_kinds
async def test_the_asker_gets_the_answer_or_why_there_is_none(
    orders: Bench, kind: Callable[[Desk], type[Actor]]
) -> None:
    """After all that was published with it; and a retry keeps the asker waiting."""
    desk = Desk()
    await orders.cell(app_of(kind(desk)))
    before = time.time()
    assert (await ask(orders, PriceOf())).cents in (1, 5)
    # The reply itself is in no stream, and what was published is there before it.
    assert await subjects(orders) == {"orders.price": 1, "orders.priced": 1}
    assert desk.deadlines[0] is not None
    assert before < desk.deadlines[0] <= time.time() + LONG
    await ask(orders, PriceOf(item="pear", deed="retry"))
    assert desk.runs[-2:] == ["pear", "pear"]
    for deed, kind_of_error, reason, text in ERRORS:
        with pytest.raises(AskError) as caught:
            await ask(orders, PriceOf(item=deed, deed=deed))
        assert type(caught.value) is kind_of_error
        assert str(caught.value).startswith(text)
        assert caught.value.subject == "orders.price"
        assert getattr(caught.value, "reason", "") == reason
    assert orders.publisher.late_replies == 0


@all_kinds
async def test_nobody_waits_for_a_late_reply_and_nothing_is_done_after_the_deadline(
    orders: Bench, kind: Callable[[Desk], type[Actor]]
) -> None:
    """The one is dropped and counted, the other settled without a run, counted and logged."""
    desk = Desk()
    app = app_of(kind(desk))
    run = await orders.cell(app)
    waiting = asyncio.ensure_future(ask(orders, PriceOf(deed="wait")))
    await desk.begun.wait()
    # A cancelled ask forgets, as one whose deadline has passed.
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    desk.go.set()
    await until(lambda: orders.publisher.late_replies == 1)
    await run.stop()
    await ask_in_vain(orders, PriceOf(item="pear"))
    pears = (await subjects(orders))["orders.price"] - 1
    with capture_logs() as entries:
        await run.start()
        assert (await ask(orders, PriceOf(item="plum"))).attempt == 1
        # What is beside each other isn't settled in turn.
        await until(lambda: counted(run, "expired") == pears)
    assert desk.runs == ["apple", "plum"]
    expired = [entry for entry in entries if entry["event"] == "request expired"]
    assert [(entry["subject"], entry["sequence"]) for entry in expired] == [
        ("orders.price", 3 + number) for number in range(pears)
    ]
    entry = expired[-1]
    assert 0 < entry["late_seconds"] <= entry["stored_seconds_ago"]
    assert await orders.dead_letters(app) == []


async def test_the_deadline_travels_and_the_asked_may_ask(either: Bench) -> None:
    """Two hops: nobody waits longer than who has asked first, and each counts what comes too late."""
    desk = Desk()
    seen: list[float] = []
    failures: list[str] = []

    class Clerk(Actor, concurrency=2):
        @handles(reply=Total)
        async def total(self, event: TotalOf, ctx: Context) -> Total:
            assert ctx.delivery.deadline is not None
            seen.append(ctx.delivery.deadline.timestamp())
            try:
                prices = [
                    await ctx.ask(PriceOf(item=item, deed=event.deed), expects=Price, timeout_seconds=LONG)
                    for item in event.items
                ]
            except AskTimeout as error:
                failures.append(str(error))
                raise
            return Total(cents=sum(price.cents for price in prices))

    run = await either.cell(app_of(Clerk))
    await either.cell(
        App("prices", streams=[Stream.existing("ORDERS")], children=[desk.seller(stream="ORDERS")])
    )
    total = await either.publisher.ask(TotalOf(items=["a", "b"]), expects=Total, timeout_seconds=LONG / 2)
    assert total == Total(cents=10)
    assert desk.deadlines == [seen[0]] * 2
    for seconds in SHORT:
        before, waiting = len(failures), len(desk.deadlines)
        with pytest.raises(AskTimeout):
            await either.publisher.ask(
                TotalOf(items=["c"], deed="wait"), expects=Total, timeout_seconds=seconds
            )
        if len(desk.deadlines) > waiting:
            await until(lambda: len(failures) > before)  # noqa: B023
            if "no answer" in failures[-1]:
                break
    assert failures[-1] == "orders.price: no answer within the deadline of what it is asked for"
    assert desk.deadlines[-1] == seen[-1]
    desk.go.set()
    late = len(desk.deadlines) - 2
    await until(lambda: counted(run, "late_replies", "clerk/0") == late)
    names = ("asks", "asks_answered", "asks_timeout", "asks_failed")
    asks = (await subjects(either))["orders.price"]
    assert [counted(run, name, "clerk/0") for name in names] == [asks, 2, len(failures), 0]


async def test_a_repeat_isnt_answered_by_an_idempotent_actor(orders: Bench) -> None:
    desk = Desk()
    await orders.cell(app_of(desk.seller(idempotency=Idempotency(window_seconds=60))))
    publisher = orders.publisher
    await publisher.ask(PriceOf(), expects=Price, timeout_seconds=LONG, idempotency_key="one")
    with pytest.raises(AskFailed) as caught:
        await publisher.ask(PriceOf(), expects=Price, timeout_seconds=LONG, idempotency_key="one")
    assert caught.value.reason == "repeated"
    assert desk.runs == ["apple"]


async def test_what_was_asked_may_be_replayed_when_nobody_waits(orders: Bench) -> None:
    desk = Desk()
    app = app_of(desk.seller())
    await orders.cell(app)
    with pytest.raises(AskRejected):
        await ask(orders, PriceOf(deed="reject"), timeout_seconds=LONG)
    letter = (await orders.dead_letters(app))[0]
    lines = {
        "Understudy-Replay-For": "shop-seller",
        asked.DEADLINE: "1",
        asked.REPLY_TO: str(letter.headers.get("Understudy-Original-" + asked.REPLY_TO, "_INBOX.x")),
    }
    # As a replay has them: first the durable that it is for.
    await orders.client.jetstream().publish("orders.price", b'{"item": "again"}', headers=lines)
    await until(lambda: "again" in desk.runs)
    assert desk.deadlines[-1] is None


async def test_a_program_without_understudy_asks_by_headers_and_is_answered_in_its_encoding(
    orders: Bench,
) -> None:
    """In MessagePack where that is neither: only a handler of bytes takes it."""

    class Seller(Actor, retry=AT_ONCE):
        @handles(reply=Price)
        async def price(self, event: PriceOf) -> Price:
            return Price(cents=5)

        @handles("orders.scan", reply=Price)
        async def scan(self, body: bytes) -> Price:
            return Price(cents=len(body))

    await orders.cell(app_of(Seller))
    client = await orders.connect()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=answers.put)
    await client.flush()
    lines = {asked.REPLY_TO: inbox, asked.CORRELATION_ID: "mine"}
    await client.jetstream().publish("orders.price", b'{"item": "pear"}', headers=lines)
    answer = await asyncio.wait_for(answers.get(), LONG)
    assert json.loads(answer.data) == {"cents": 5, "attempt": 1}
    assert answer.headers == {
        "Understudy-Reply": "answered",
        "Content-Type": "application/json",
        "ce-type": "Price",
        "Understudy-Correlation-Id": "mine",
    }
    await client.jetstream().publish("orders.price", b"not an order", headers=lines)
    refusal = await asyncio.wait_for(answers.get(), LONG)
    assert (refusal.headers or {})["Understudy-Reply"] == "undecodable"
    lines["Content-Type"] = "image/png"
    await client.jetstream().publish("orders.scan", b"\x89PNG", headers=lines)
    answer = await asyncio.wait_for(answers.get(), LONG)
    assert msgspec.msgpack.decode(answer.data)["cents"] == 4
    assert (answer.headers or {})["Content-Type"] == "application/msgpack"


@pytest.mark.parametrize(
    "reply_to", ["orders.priced", "$JS.API.STREAM.DELETE.ORDERS", "_INBOX.>", "_INBOX.a b", "_INBOX..a", ""]
)
def test_an_answer_goes_nowhere_but_to_an_inbox(reply_to: str) -> None:
    """Else whoever may publish requests had the actor publish with its own permissions."""
    block = header_block({asked.REPLY_TO: "_INBOX.a.b"})
    assert asked.encode_answer(block, Price(cents=5), as_json=True) is not None
    assert asked.encode_refusal(block, "rejected", "no") is not None
    block = header_block({asked.REPLY_TO: reply_to})
    assert asked.encode_answer(block, Price(cents=5), as_json=True) is None
    assert asked.encode_refusal(block, "rejected", "no") is None


async def test_an_ask_survives_the_death_of_the_broker(either: Bench, nats_server: NatsServer) -> None:
    """One that waits for its answer, and one that begins while nobody is there to take it."""
    desk = Desk()
    run = await either.cell(app_of(desk.seller()))
    spec = ConnectionSpec(servers=(either.url,), fast_lane=either.fast_lane)
    async with Publisher.connect(spec) as fresh:
        waiting = asyncio.ensure_future(ask(either, PriceOf(deed="wait")))
        await desk.begun.wait()
        nats_server.kill()
        await until(lambda: not run.status.connected)
        beginning = asyncio.ensure_future(fresh.ask(PriceOf(), expects=Price, timeout_seconds=LONG))
        nats_server.start()
        await until(lambda: run.status.connected)
        # The publisher's own connection is back too when it has something confirmed.
        await either.publisher.publish(Nobody())
        desk.go.set()
        assert (await waiting).cents == (await beginning).cents == 5
        desk.go.clear()
        waiting = asyncio.ensure_future(ask(either, PriceOf(deed="wait and only answer")))
        await until(lambda: len(desk.runs) == 3)
        nats_server.kill()
        await until(lambda: not run.status.connected)
        # The answer is there before anybody is connected, whoever will be first.
        desk.go.set()
        nats_server.start()
        assert (await waiting).cents == 5


async def test_a_reply_that_nobody_takes_is_written_again(either: Bench) -> None:
    """The asker's connection may be away for a moment."""
    desk = Desk()
    await either.cell(app_of(desk.seller()))
    client = await either.connect()
    inbox = client.new_inbox()
    lines = {asked.REPLY_TO: inbox, asked.DEADLINE: str(int((time.time() + LONG) * 1000))}
    with capture_logs() as entries:
        await either.publisher.publish_raw("orders.price", b'{"item": "pear"}', lines)
        await until(lambda: any(entry["event"] == "nobody took the reply" for entry in entries))
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    await client.subscribe(inbox, cb=answers.put)
    answer = await asyncio.wait_for(answers.get(), LONG)
    assert json.loads(answer.data) == {"cents": 5, "attempt": 1}
    assert desk.runs == ["pear"]


def test_a_repeated_reply_says_so_once_and_if_there_is_room() -> None:
    """One that is too large by its mark would end the connection."""
    reply = asked.encode_answer(header_block({asked.REPLY_TO: "_INBOX.a"}), Price(cents=5), as_json=True)
    assert reply is not None
    inbox, body, block = reply
    marked = asked.repeated(reply, 1000)
    assert marked == (inbox, body, block[:-2] + b"Understudy-Repeated: 1\r\n\r\n")
    assert asked.repeated(marked, 1000) == marked
    assert asked.repeated(reply, len(body) + len(marked[2])) == marked
    assert asked.repeated(reply, len(body) + len(marked[2]) - 1) == reply


async def test_a_repeated_reply_that_was_taken_is_not_counted_as_late(either: Bench) -> None:
    """After a reconnect the answerer can't know what was taken."""
    await either.cell(app_of(Desk().seller()))
    await ask(either, PriceOf())
    inbox = either.publisher._asking._inbox
    await either.client.publish(inbox, headers={asked.CORRELATION_ID: "mine", asked.REPEATED: "1"})
    await either.client.publish(inbox, headers={asked.CORRELATION_ID: "mine"})
    await until(lambda: either.publisher.late_replies > 0)
    assert either.publisher.late_replies == 1


async def test_a_request_that_no_stream_takes_is_an_error_at_once(orders: Bench) -> None:
    await orders.cell(app_of(Desk().seller()))
    with pytest.raises(PublishError):
        await orders.publisher.ask(PriceOf(), expects=Price, subject="nowhere.at.all", timeout_seconds=LONG)
    with pytest.raises(DecodeError):
        await orders.publisher.ask(PriceOf(), expects=Priced, timeout_seconds=LONG)
    with pytest.raises(EncodeError):
        await orders.publisher.ask(
            PriceOf(), expects=Price, timeout_seconds=LONG, idempotency_key="a\r\nNats-Schedule: @at now"
        )
    with pytest.raises(DeclarationError, match="timeout_seconds is 0"):
        await orders.publisher.ask(PriceOf(), expects=Price, timeout_seconds=0)
    await ask_in_vain(orders, Nobody())
    with pytest.raises(AskTimeout, match=r"^nowhere: no stream has confirmed the request within 0\.2 s$"):
        await orders.publisher.ask(Nobody(), expects=Price, subject="nowhere", timeout_seconds=0.2)


async def test_an_ask_ends_with_its_publisher(orders: Bench) -> None:
    """It doesn't wait for an answer that can't come; another one isn't begun."""
    async with Publisher.connect(orders.url) as publisher:
        await orders.cell(app_of(Desk().seller()))
        waiting = asyncio.ensure_future(publisher.ask(Nobody(), expects=Price, timeout_seconds=600))
        await publisher.publish(Nobody())
    with pytest.raises(AskTimeout, match=r"^orders\.nobody: no answer before the connection was closed$"):
        await waiting
    with pytest.raises(PublishError, match="the connection is closed"):
        await publisher.ask(Nobody(), expects=Price)


async def test_so_many_wait_and_one_more_waits_for_its_turn(
    orders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MAX_OUTSTANDING", 2)
    desk = Desk()
    await orders.cell(app_of(desk.seller()))
    asks = asking.Asking(orders.client)
    monkeypatch.setattr(orders.publisher, "_asking", asks)
    waiting = [asyncio.ensure_future(ask(orders, PriceOf(item=f"{n}", deed="wait"))) for n in range(3)]
    await until(lambda: len(desk.runs) == 2)
    with pytest.raises(AskTimeout, match=r"not asked within 0\.2 s, since 2 others wait for their answers"):
        await ask(orders, PriceOf(item="4"), timeout_seconds=0.2)
    assert desk.runs == ["0", "1"]
    desk.go.set()
    assert len(await asyncio.gather(*waiting)) == 3


@pytest.mark.parametrize(
    "options", [{"concurrency": 1}, {"ordered": True, "concurrency": 1}, {"key": "item"}]
)
async def test_an_actor_that_would_wait_for_itself_is_told(orders: Bench, options: dict[str, Any]) -> None:
    class Selfish(Actor, **{"retry": RetryPolicy(max_attempts=1), "on_failure": "redeliver", **options}):
        @handles(reply=Price)
        async def price(self, event: PriceOf, ctx: Context) -> Price:
            if event.deed:
                return Price(cents=1)
            return await ctx.ask(PriceOf(item=event.item, deed="answer"), expects=Price)

    await orders.cell(app_of(Selfish))
    with pytest.raises(AskFailed, match=r"answered by 'selfish' itself, which handles one event"):
        await ask(orders, PriceOf())


async def test_actors_that_wait_for_each_other_are_named_when_time_is_up(orders: Bench) -> None:
    """Whose app is another's can't be known before; the error says where to look."""
    begun: list[TotalOf] = []
    failures: list[str] = []

    class Front(Actor, retry=RetryPolicy(max_attempts=1)):
        @handles(reply=Price)
        async def price(self, event: PriceOf, ctx: Context) -> Price:
            total = await ctx.ask(TotalOf(items=[]), expects=Total)
            return Price(cents=total.cents)

    class Back(Actor):
        @handles(reply=Total)
        async def total(self, event: TotalOf, ctx: Context) -> Total:
            begun.append(event)
            try:
                price = await ctx.ask(PriceOf(), expects=Price)
            except AskTimeout as error:
                failures.append(str(error))
                raise
            return Total(cents=price.cents)

    await orders.cell(app_of(Front))
    await orders.cell(
        App("other", streams=[Stream.existing("ORDERS")], children=[Child(Back, stream="ORDERS")])
    )
    for seconds in SHORT:
        before = len(begun)
        with pytest.raises(AskTimeout):
            await ask(orders, PriceOf(), timeout_seconds=seconds)
        if len(begun) > before:
            await until(lambda: len(failures) == len(begun))
            if "no answer" in failures[-1]:
                break
    assert failures[-1] == (
        "orders.price: no answer within the deadline of what it is asked for; shop/front answers it, one "
        "event at a time, and waits for the answer to this one: a cycle"
    )


async def test_an_actor_asks_itself_of_another_key(orders: Bench) -> None:
    class Related(Actor, key="item"):
        @handles(reply=Price)
        async def price(self, event: PriceOf, ctx: Context) -> Price:
            if event.deed:
                return Price(cents=7)
            return await ctx.ask(PriceOf(item="other", deed="answer"), expects=Price)

    await orders.cell(app_of(Related))
    assert (await ask(orders, PriceOf())).cents == 7


def test_what_cant_answer_is_refused_where_it_is_declared() -> None:
    with pytest.raises(DeclarationError, match="a handler of batches can't answer"):
        handles("orders.>", batch=Batch(size=2), reply=Price)
    with pytest.raises(DeclarationError, match="reply is 5; give the class of the answers"):
        handles(reply=5)  # type: ignore[call-overload]

    class Booked(Event, subject="orders.booked"):
        item: str

    class Booking(State):
        item: str = ""

    with pytest.raises(DeclarationError, match="a saga answers nobody"):

        class Trip(Saga, key="item", state=Booking):
            async def book(self, ctx: SagaContext[Booking]) -> None: ...

            steps = (Step(book, compensation=NO_COMPENSATION),)

            @starts
            async def booked(self, event: Booked) -> Booking:
                return Booking(item=event.item)

            @handles(reply=Price)
            async def price(self, event: PriceOf) -> Price:
                return Price(cents=1)
