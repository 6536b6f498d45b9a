"""`understudy dead-letters replay` with the actors that handle what comes of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, DiscardPolicy

from support.cells import Bench, bench, both_lanes, reconnected, until
from support.letters import Letters, ended
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject
from understudy.runtime.app import App
from understudy.runtime.jetstream.api import stream_info
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.letter_stream import LetterStream
from understudy.runtime.jetstream.replay import Replay
from understudy.runtime.jetstream.stored_letters import Selection
from understudy.runtime.stream import Stream

# Each test runs several commands, which are processes of their own.
pytestmark = pytest.mark.timeout(240)


class Placed(Event, subject="orders.placed"):
    number: int


class Shipping(Actor):
    rejects = True
    handled: list[int]
    originals: list[str | None]

    @handles
    async def placed(self, event: Placed, ctx: Context) -> None:
        self.handled.append(event.number)
        self.originals.append(ctx.delivery.headers.get("Understudy-Original-Id"))
        if self.rejects:
            raise Reject("not yet")


class Billing(Shipping): ...


STREAMS = [Stream("ORDERS", subjects=["orders.>"])]
# Each of a pair starts the app's other actor first, which is the cell that the bench starts.
BILLING = App("shop", streams=STREAMS, children=[Billing, Shipping])
SHIPPING = App("shop", streams=STREAMS, children=[Shipping, Billing])


@pytest.fixture(autouse=True)
def _new_actors() -> None:
    for actor in (Billing, Shipping):
        actor.rejects = True
        actor.handled = []
        actor.originals = []


@both_lanes
async def broker(
    nats_server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A broker; cells and the command are on the one lane or the other."""
    async with bench(nats_server.url, tmp_path, fast_lane=request.param) as made:
        yield made


@pytest.fixture
async def letters(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Letters]:
    """A broker with the streams and consumers of the app shop, and no cells."""
    async with bench(nats_server.url, tmp_path) as made:
        found = Letters(made.client, nats_server.url)
        await found.open()
        yield found


def command(broker: Bench) -> Letters:
    """The command, for letters that actors write themselves."""
    return Letters(broker.client, broker.url, fast_lane=isinstance(broker.client, FastClient))


async def replayed(letters: Letters, number: int = 1) -> dict[str, str]:
    """Return the headers of a message that a replay stored."""
    return dict((await letters.js.get_msg("ORDERS", seq=number)).headers or {})


async def test_what_is_replayed_for_one_actor_no_other_handles_again(broker: Bench) -> None:
    """1,000 dead letters of two actors that share a subject, replayed for one of them."""
    cells = {Billing: await broker.cell(BILLING), Shipping: await broker.cell(SHIPPING)}
    for number in range(500):
        await broker.publisher.publish(Placed(number=number))
    letters = command(broker)
    await until(lambda: len(Billing.handled) == len(Shipping.handled) == 500)
    await broker.settled(BILLING)
    await broker.settled(SHIPPING)
    assert await letters.count() == 1000
    for actor in cells:
        actor.rejects = False
        actor.handled.clear()
    result = await letters.run("replay", "--actor", "billing")
    assert (result.status, result.out, result.err) == (0, "500 replayed\n", "")
    await broker.settled(BILLING)
    await broker.settled(SHIPPING)
    assert Billing.handled == list(range(500))
    assert Shipping.handled == []
    await until(lambda: cells[Shipping].status.counters["skipped"] == 500)
    assert cells[Billing].status.counters["skipped"] == 0
    assert [letter["actor"] for letter in (await letters.run("export")).objects()] == ["shipping"] * 500


async def test_a_replay_that_fails_again_is_a_new_letter(broker: Bench) -> None:
    """It can be replayed in turn; the event is known by the same name each time."""
    await broker.cell(BILLING)
    letters = command(broker)
    await broker.publisher.publish(Placed(number=1))
    await broker.settled(BILLING)
    original = (await letters.run("show", "1", "--json")).objects()[0]["headers"]["Nats-Msg-Id"]
    for generation in (1, 2, 3):
        Billing.rejects = generation < 3
        # The letters are replayed in the same moment in which they are written.
        assert (await letters.run("replay", str(generation))).out == "1 replayed\n"
        await broker.settled(BILLING)
        assert await letters.count() == (1 if generation < 3 else 0)
    assert Billing.handled == [1, 1, 1, 1]
    assert Billing.originals == [None, original, original, original]


class NeverRemoved(LetterStream):
    """As if its process died before anything is removed."""

    async def remove(self, number: int) -> bool:
        await asyncio.Event().wait()
        return True


async def given_up(broker: Bench, count: int) -> Letters:
    """Have billing give up so many events, and then be better."""
    await broker.cell(BILLING)
    for number in range(count):
        await broker.publisher.publish(Placed(number=number))
    await broker.settled(BILLING)
    Billing.rejects = False
    Billing.handled.clear()
    letters = command(broker)
    assert await letters.count() == count
    return letters


async def test_what_was_replayed_and_not_removed_is_not_stored_twice(broker: Bench) -> None:
    """However far a replay came that died: the stream drops what it has."""
    letters = await given_up(broker, 300)
    stream = await NeverRemoved.open(broker.client, "shop")
    dying = Replay(stream, keep=False, failed=lambda *_: None)
    await dying.open()
    async for letter in stream.scan(Selection(), bodies=True):
        if letter.id <= 200:
            await dying.put(letter)
    await until(lambda: len(Billing.handled) == 200)
    assert await letters.count() == 300
    result = await letters.run("replay", "--all")
    assert (result.status, result.out) == (0, "100 replayed, 200 had been replayed before\n")
    await broker.settled(BILLING)
    assert Billing.handled == list(range(300))
    assert await letters.count() == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
async def test_an_interrupted_replay_can_be_gone_on_with(broker: Bench, how: signal.Signals) -> None:
    """One that may still say something says how far it came; nothing is handled twice, nothing is lost."""
    letters = await given_up(broker, 200)
    # So slowly that it is far from its end, however late the signal is.
    process = await letters.start("replay", "--all", "--rate", "10")

    async def some_are_replayed() -> bool:
        return await letters.count("ORDERS") >= 204

    await until(some_are_replayed)
    process.send_signal(how)
    result = await ended(process)
    left = await letters.count()
    assert 0 < left < 200
    if how is signal.SIGINT:
        assert (result.status, result.out) == (130, f"{200 - left} replayed\n")
        assert await letters.count("ORDERS") == 400 - left
    assert (await letters.run("replay", "--all")).status == 0
    await broker.settled(BILLING)
    assert Billing.handled == list(range(200))
    assert await letters.count() == 0


async def test_a_kept_letter_is_replayed_once_within_the_duplicate_window(letters: Letters) -> None:
    """Twice the same replay is one."""
    await letters.add(1)
    assert (await letters.run("replay", "1", "--keep")).out == "1 replayed\n"
    result = await letters.run("replay", "1", "--keep")
    assert (result.status, result.out) == (0, "0 replayed, 1 had been replayed before\n")
    assert (await letters.count(), await letters.count("ORDERS")) == (1, 1)
    assert (await letters.run("replay", "--all")).out == "0 replayed, 1 had been replayed before\n"
    assert (await letters.count(), await letters.count("ORDERS")) == (0, 1)


async def test_a_replay_has_the_original_s_body_and_headers(letters: Letters) -> None:
    """But for what its publisher asked of the server then, or the server wrote."""
    gone = {
        "Nats-Msg-Id": "m1",
        "Nats-Expected-Stream": "OTHER",
        "Nats-Expected-Last-Sequence": "99",
        "nats-expected-last-msg-id": "m0",
        "Nats-TTL": "1s",
        "Nats-Rollup": "all",
        "Nats-Batch-Id": "b",
        "Nats-Batch-Sequence": "1",
        "Nats-Schedule": "@at 2030-01-01T00:00:00Z",
        "Nats-Incr": "+1",
        "Nats-Trace-Dest": "trace",
        "Nats-Pin-Id": "p",
        "Understudy-Replay-For": "shop-shipping",
    }
    kept = {"traceparent": "00-1-2-01", "Nats-Service-Error": "x", "Understudy-Note": "n", "a": "b"}
    await letters.js.publish("orders.other", b"")
    await letters.add(7, headers={**gone, **kept}, body=b"\x00\xff")
    assert (await letters.run("replay", "1")).out == "1 replayed\n"
    stored = await letters.js.get_msg("ORDERS", seq=2)
    info = await stream_info(letters.client, "SHOP_DEAD_LETTERS")
    assert info is not None
    assert (stored.subject, stored.data) == ("orders.placed", b"\x00\xff")
    assert stored.headers == {
        **kept,
        "Understudy-Replay-For": "shop-billing",
        "Understudy-Original-Id": "m1",
        "Nats-Msg-Id": f"SHOP_DEAD_LETTERS.{info['created']}.1",
        "Nats-Expected-Stream": "ORDERS",
    }
    # By this the other actors know it.
    assert next(iter(stored.headers)) == "Understudy-Replay-For"
    assert await letters.count("ORDERS") == 2


@pytest.mark.parametrize(
    ("headers", "original"),
    [
        ({"Understudy-Original-Id": "o", "Nats-Msg-Id": "m", "ce-id": "c"}, "o"),
        ({"Nats-Msg-Id": "m", "ce-id": "c"}, "m"),
        ({"ce-id": "c"}, "c"),
        ({"ce-id": "c", "ce-source": "/shop"}, "/shop c"),
        ({"Nats-Msg-Id": ""}, "ORDERS.{created}.7"),
        ({}, "ORDERS.{created}.7"),
    ],
)
async def test_a_replay_says_by_what_the_original_was_known(
    letters: Letters, headers: dict[str, str], original: str
) -> None:
    """So that a handler can tell what it has done already."""
    await letters.add(7, headers=headers)
    await letters.run("replay", "--all")
    known_by = (await replayed(letters))["Understudy-Original-Id"]
    assert known_by == original.format(created=letters.created)


async def test_a_letter_that_does_not_say_its_consumer_is_its_actor_s(letters: Letters) -> None:
    """Those of earlier versions; the name is `<app>-<actor>` where none was declared."""
    await letters.add(1)
    await letters.add(2, durable="payers")
    old = dict((await letters.js.get_msg("SHOP_DEAD_LETTERS", seq=1)).headers or {})
    del old["Understudy-Durable"], old["Nats-Msg-Id"]
    await letters.js.publish("dead-letters.shop.billing", b"{}", headers=old)
    await letters.js.add_consumer("ORDERS", ConsumerConfig(durable_name="payers"))
    assert (await letters.run("replay", "2", "3")).out == "2 replayed\n"
    assert (await replayed(letters, 1))["Understudy-Replay-For"] == "payers"
    assert (await replayed(letters, 2))["Understudy-Replay-For"] == "shop-billing"


async def test_what_can_t_be_replayed_is_named_and_stays_and_the_others_go_on(letters: Letters) -> None:
    """With what is in the way; a dry run says the same."""
    large = b"x" * letters.client.max_payload
    changes: list[dict[str, Any]] = [
        {},
        {"stream": "OLD"},
        {"subject": "others.placed"},
        {"durable": "shop-old"},
        {"subject": "orders.cancelled"},
        {"body": large},
        {},
    ]
    for number, change in enumerate(changes, start=1):
        await letters.add(number, **change)
    await letters.js.publish("dead-letters.shop.billing", b"a stranger's")
    problems = (
        "dead letter 2: its stream OLD is gone\n"
        "dead letter 3: stream ORDERS doesn't take others.placed any more\n"
        "dead letter 4: consumer shop-old of stream ORDERS is gone, so that nobody would handle it; "
        "'understudy run' makes it anew\n"
        "dead letter 5: consumer shop-billing doesn't take orders.cancelled any more, "
        "so that nobody would handle it\n"
        "dead letter 6: its body was left out, and stream ORDERS no longer has sequence 6\n"
        "dead letter 8: it doesn't say where it came from, so this is no dead letter of ours\n"
    )
    dry = await letters.run("replay", "--all", "--dry-run")
    assert (dry.status, dry.err) == (1, problems)
    assert dry.out == "would replay 2 to stream ORDERS for shop-billing\n"
    assert (await letters.count(), await letters.count("ORDERS")) == (8, 0)
    result = await letters.run("replay", "--all")
    assert (result.status, result.out, result.err) == (1, "2 replayed, 6 failed\n", problems)
    assert [letter["id"] for letter in (await letters.run("list", "--json")).objects()] == [8, 6, 5, 4, 3, 2]
    result = await letters.run("replay", "1", "4")
    assert result.err.startswith("dead letter 1: there is none of that number\ndead letter 4: consumer ")
    assert (result.status, result.out) == (1, "0 replayed, 2 failed\n")


async def test_a_body_that_was_left_out_is_replayed_from_its_stream(letters: Letters) -> None:
    """Where there is room for the headers that come with it."""
    large = b"x" * (letters.client.max_payload - 600)
    ack = await letters.js.publish("orders.placed", large)
    await letters.add(ack.seq, body=large, error="e" * 1000)
    assert (await letters.js.get_msg("SHOP_DEAD_LETTERS", seq=1)).data is None
    assert (await letters.run("replay", "1", "--dry-run")).status == 0
    assert (await letters.run("replay", "1")).out == "1 replayed\n"
    assert (await letters.js.get_msg("ORDERS", seq=ack.seq + 1)).data == large


async def test_a_letter_whose_replay_is_refused_stays(letters: Letters) -> None:
    """As when the original's stream is full."""
    await letters.add(1)
    config = (await letters.js.stream_info("ORDERS")).config
    await letters.js.update_stream(config.evolve(max_bytes=1, discard=DiscardPolicy.NEW))
    result = await letters.run("replay", "--all")
    assert (result.status, result.out) == (1, "0 replayed, 1 failed\n")
    assert result.err == ("dead letter 1: orders.placed: the stream refused it: maximum bytes exceeded\n")
    assert await letters.count() == 1


async def test_a_letter_that_can_t_be_removed_is_named(letters: Letters) -> None:
    """It was replayed, and whoever looks at the list has to know."""
    await letters.add(1)
    config = (await letters.js.stream_info("SHOP_DEAD_LETTERS")).config
    await letters.js.update_stream(config.evolve(sealed=True))
    result = await letters.run("replay", "--all")
    assert (result.status, result.out) == (1, "0 replayed, 1 failed\n")
    assert result.err.startswith(
        "dead letter 1: it was replayed and is still here, since it couldn't be removed: "
    )
    assert (await letters.count(), await letters.count("ORDERS")) == (1, 1)


async def test_only_what_is_chosen_is_replayed(letters: Letters) -> None:
    """By id, or by filters."""
    for number in range(1, 7):
        actor, reason = ("billing", "shipping")[number % 2], ("exhausted", "rejected")[number % 3 == 0]
        await letters.add(number, actor=actor, reason=reason)
    assert (await letters.run("replay", "--dry-run", "--reason", "exhausted")).out == (
        "would replay 2 to stream ORDERS for shop-billing\n"
        "would replay 2 to stream ORDERS for shop-shipping\n"
    )
    assert (await letters.run("replay", "--older-than", "1h")).out == "0 replayed\n"
    assert (await letters.run("replay", "--older-than", "1h", "--dry-run")).out == "would replay 0\n"
    assert (await letters.run("replay", "--actor", "billing", "--reason", "rejected")).out == "1 replayed\n"
    assert (await letters.run("replay", "3", "3", "1")).out == "2 replayed\n"
    assert [letter["id"] for letter in (await letters.run("list", "--json")).objects()] == [5, 4, 2]
    stored = [(await letters.js.get_msg("ORDERS", seq=number)).data for number in (1, 2, 3)]
    assert stored == [b'{"number": 6}', b'{"number": 1}', b'{"number": 3}']


async def test_a_broker_that_goes_away_is_status_3_and_what_was_done_is_said(
    letters: Letters, nats_server: NatsServer
) -> None:
    """What is left can be replayed when it is back."""
    for number in range(1, 1001):
        await letters.add(number)
    # So slowly that it is far from its end, however late the broker stops.
    process = await letters.start("replay", "--all", "--rate", "20")

    async def some_are_replayed() -> bool:
        return await letters.count("ORDERS") >= 5

    await until(some_are_replayed)
    nats_server.stop()
    result = await ended(process)
    assert result.status == 3
    assert " replayed" in result.out
    nats_server.start()
    await reconnected(letters.client)
    again = await letters.run("replay", "--all")
    assert (again.status, await letters.count(), await letters.count("ORDERS")) == (0, 0, 1000)
