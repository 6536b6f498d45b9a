"""Dead letters on a real broker: stored whatever the original was, and only then given up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.js.api import DiscardPolicy, StreamConfig
from structlog.testing import capture_logs

from support.cells import Bench, bench, both_lanes, until
from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.errors import PublishError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject
from understudy.actors.policies import RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.jetstream.dead_letters import DeadLetter, write
from understudy.runtime.jetstream.direct import read_message
from understudy.runtime.jetstream.envelope import header_bytes
from understudy.runtime.jetstream.headers import parse
from understudy.runtime.jetstream.publish_window import MAX_HEADER_BYTES, PublishWindow
from understudy.runtime.stream import Stream

LETTER = DeadLetter(
    app="shop",
    actor="billing",
    durable="shop-billing",
    stream="ORDERS",
    stream_created="2026-01-01T00:00:00Z",
    subject="orders.placed",
    sequence=7,
    body=b"body",
    headers={"Content-Type": "application/json", "Nats-Msg-Id": "one"},
    reason="rejected",
    error="not\r\nours",
    attempts=2,
    trace_id="0" * 31 + "1",
)


class Placed(Event, subject="orders.placed"):
    number: int


@both_lanes
async def orders(
    nats_server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A broker with the dead-letter stream of the app shop."""
    async with bench(nats_server.url, tmp_path, fast_lane=request.param) as made:
        await made.client.jetstream().add_stream(
            StreamConfig(name="SHOP_DEAD_LETTERS", subjects=["dead-letters.shop.>"])
        )
        yield made


@pytest.fixture
async def window(orders: Bench) -> PublishWindow:
    """An open window."""
    window = PublishWindow(orders.client)
    await window.open()
    return window


async def letters(orders: Bench) -> list[Any]:
    """Return what the dead-letter stream holds."""
    js = orders.client.jetstream()
    last = (await js.stream_info("SHOP_DEAD_LETTERS")).state.last_seq
    return [await js.get_msg("SHOP_DEAD_LETTERS", seq=number) for number in range(1, last + 1)]


async def written(orders: Bench, window: PublishWindow, letter: DeadLetter) -> Any:
    """Write a letter and read it back."""
    await write(window, letter, orders.client.max_payload)
    assert orders.client.is_connected
    return (await letters(orders))[-1]


async def test_a_letter_holds_the_original_and_why_it_was_given_up(
    orders: Bench, window: PublishWindow
) -> None:
    """Body and headers as they were, those of JetStream renamed, and ours beside them."""
    stored = await written(orders, window, LETTER)
    assert stored.subject == "dead-letters.shop.billing"
    assert stored.data == b"body"
    headers = dict(stored.headers)
    assert headers.pop("Understudy-Time").endswith("+00:00")
    assert headers == {
        "Content-Type": "application/json",
        "Understudy-Original-Nats-Msg-Id": "one",
        "Nats-Msg-Id": "shop-billing.2026-01-01T00:00:00Z.7",
        "Understudy-Reason": "rejected",
        "Understudy-Error": "not ours",
        "Understudy-Stream": "ORDERS",
        "Understudy-Subject": "orders.placed",
        "Understudy-Sequence": "7",
        "Understudy-Attempts": "2",
        "Understudy-Actor": "billing",
        "Understudy-Durable": "shop-billing",
        "Understudy-Trace-Id": LETTER.trace_id,
    }


async def test_headers_that_jetstream_would_obey_are_renamed(orders: Bench, window: PublishWindow) -> None:
    """A copied expectation would be refused for ever, whatever its case."""
    headers = {"Nats-Expected-Stream": "ORDERS", "nats-expected-last-sequence": "99", "Nats-TTL": "1s"}
    stored = await written(orders, window, msgspec.structs.replace(LETTER, headers=headers))
    assert {name: value for name, value in stored.headers.items() if "riginal" in name} == {
        "Understudy-Original-Nats-Expected-Stream": "ORDERS",
        "Understudy-Original-nats-expected-last-sequence": "99",
        "Understudy-Original-Nats-TTL": "1s",
    }


@pytest.mark.parametrize("missing", [0, 1, 300])
async def test_a_body_that_leaves_no_room_is_left_out_and_named(
    orders: Bench, window: PublishWindow, missing: int
) -> None:
    """The server would close the connection for good."""
    body = b"x" * (orders.client.max_payload - missing)
    stored = await written(orders, window, msgspec.structs.replace(LETTER, body=body))
    assert stored.data is None
    assert stored.headers["Understudy-Body-Left-Out"] == "ORDERS sequence 7"
    assert stored.headers["Content-Type"] == "application/json"


async def test_a_large_body_that_fits_is_kept(orders: Bench, window: PublishWindow) -> None:
    """Two KiB below max_payload there is room for our headers."""
    body = b"x" * (orders.client.max_payload - 2048)
    stored = await written(orders, window, msgspec.structs.replace(LETTER, body=body))
    assert stored.data == body
    assert "Understudy-Body-Left-Out" not in stored.headers


@pytest.mark.parametrize("missing", [0, 1, 200, 1000])
async def test_headers_that_leave_no_room_are_left_out_longest_first_and_named(
    orders: Bench, window: PublishWindow, missing: int
) -> None:
    """Whatever the server took of the original, the letter is within its bounds."""
    headers = {"short": "s", "longer": "l" * 500, "longest": ""}
    headers["longest"] = "x" * (MAX_HEADER_BYTES - header_bytes(headers) - missing)
    await orders.client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    await orders.client.jetstream().publish("orders.placed", b"", headers=headers)
    original = await orders.client.jetstream().get_msg("ORDERS", seq=1)
    assert original.headers == headers
    stored = await written(orders, window, msgspec.structs.replace(LETTER, headers=headers))
    if missing == 1000:
        assert stored.headers["longest"] == headers["longest"]
        assert "Understudy-Headers-Left-Out" not in stored.headers
    else:
        assert "longest" not in stored.headers
        assert stored.headers["Understudy-Headers-Left-Out"] == "longest"
    assert stored.headers["longer"] == headers["longer"]
    assert stored.data == b"body"


async def test_thousands_of_small_headers_leave_a_letter_too(orders: Bench, window: PublishWindow) -> None:
    """Even the list of what was left out is bounded."""
    headers = {f"nats-{number:05}": "x" * 4 for number in range(3400)}
    stored = await written(orders, window, msgspec.structs.replace(LETTER, headers=headers))
    assert stored.headers["Understudy-Reason"] == "rejected"
    assert len(stored.headers["Understudy-Headers-Left-Out"]) == 2000
    assert sum("riginal" in name for name in stored.headers) > 1500


async def test_a_header_that_nats_py_can_t_write_is_left_out_and_named(
    orders: Bench, window: PublishWindow
) -> None:
    """Other clients write names that ours refuses."""
    headers = {"good": "1", "b@d": "2"}
    stored = await written(orders, window, msgspec.structs.replace(LETTER, headers=headers))
    assert stored.headers["good"] == "1"
    assert "b@d" not in stored.headers
    assert stored.headers["Understudy-Headers-Left-Out"] == "b@d"


async def test_headers_that_are_no_line_of_text_leave_a_letter_too(
    orders: Bench, window: PublishWindow
) -> None:
    """Half a line break becomes a blank; what isn't UTF-8 goes out as it came, where nats-py doesn't mind."""
    headers = {
        "broken": "a\nb\rc",
        "b\n@d": "1",
        "bytes": "\udcff",
        "more bytes": "2",
        "most-bytes": "\udcfe" * MAX_HEADER_BYTES,
    }
    await written(orders, window, msgspec.structs.replace(LETTER, headers=headers))
    stored = await read_message(orders.client, "SHOP_DEAD_LETTERS", 1, allow_direct=False)
    assert stored is not None
    block = parse(stored.header_block)
    assert block["broken"] == "a b c"
    # As text, since a failure's message has to be written somewhere.
    assert ascii(block["bytes"]) == (r"'\udcff'" if orders.fast_lane else "'?'")
    assert block["Understudy-Headers-Left-Out"] == "b @d, more bytes, most-bytes"


async def test_an_error_s_text_is_one_line_of_what_can_be_sent(orders: Bench, window: PublishWindow) -> None:
    """Line breaks, lone surrogates and length are no reason to lose the letter."""
    error = "no file \udcff\r\n" + "x" * 5000
    stored = await written(orders, window, msgspec.structs.replace(LETTER, error=error))
    assert stored.headers["Understudy-Error"] == "no file \\udcff " + "x" * 1985


async def test_two_actors_letters_for_one_message_are_both_stored(
    orders: Bench, window: PublishWindow
) -> None:
    """The id names who gives up; the same letter twice is stored once."""
    other = msgspec.structs.replace(LETTER, actor="shipping", durable="shop-shipping")
    ids = [await write(window, one, orders.client.max_payload) for one in (LETTER, other, LETTER, other)]
    assert ids == [1, 2, 1, 2]
    assert [stored.subject for stored in await letters(orders)] == [
        "dead-letters.shop.billing",
        "dead-letters.shop.shipping",
    ]
    recreated = msgspec.structs.replace(LETTER, stream_created="2027-01-01T00:00:00Z")
    await write(window, recreated, orders.client.max_payload)
    assert len(await letters(orders)) == 3


async def test_a_letter_given_up_again_says_its_own_reason(orders: Bench, window: PublishWindow) -> None:
    """What an earlier letter said gives way."""
    headers = {"Understudy-Reason": "exhausted", "Understudy-Error": "old", "x": "y"}
    stored = await written(orders, window, msgspec.structs.replace(LETTER, headers=headers))
    assert (stored.headers["Understudy-Reason"], stored.headers["Understudy-Error"]) == (
        "rejected",
        "not ours",
    )
    assert stored.headers["x"] == "y"


async def test_a_letter_that_is_not_confirmed_is_an_error(orders: Bench, window: PublishWindow) -> None:
    """The delivery may then not be termed."""
    await orders.client.jetstream().delete_stream("SHOP_DEAD_LETTERS")
    with pytest.raises(PublishError) as raised:
        await write(window, LETTER, orders.client.max_payload)
    assert str(raised.value) == (
        "dead-letters.shop.billing: no stream takes this subject; "
        "declare a Stream with it, or correct the subject"
    )


@pytest.mark.parametrize("how", ["deleted", "full", "sealed"])
async def test_what_can_t_be_dead_lettered_comes_again(orders: Bench, how: str) -> None:
    """It is given back with a delay, both errors are logged, the rest goes on, and later it is stored."""
    await orders.client.jetstream().delete_stream("SHOP_DEAD_LETTERS")
    seen: list[int] = []

    class Billing(Actor, retry=RetryPolicy(max_attempts=3, min_delay_seconds=0.05, max_delay_seconds=0.3)):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(event.number)
            if event.number == 1:
                raise Reject("not ours")

    app = App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[Billing])
    with capture_logs() as logs:
        cell = await orders.cell(app)
        js = orders.client.jetstream()
        config = (await js.stream_info("SHOP_DEAD_LETTERS")).config
        if how == "deleted":
            await js.delete_stream("SHOP_DEAD_LETTERS")
        elif how == "full":
            await js.update_stream(config.evolve(max_bytes=1, discard=DiscardPolicy.NEW))
        else:
            await js.update_stream(config.evolve(sealed=True))
        for number in (1, 2):
            await orders.publisher.publish(Placed(number=number))
        await until(lambda: seen.count(1) >= 2 and seen.count(2) == 1)

        async def only_one_is_left() -> bool:
            left = await orders.backlog(app)
            return (left.pending, left.ack_pending) == (0, 1)

        await until(only_one_is_left)
        unwritten = [entry for entry in logs if entry["event"] == "dead letter can't be written"]
        assert unwritten[0]["error"] == "not ours"
        assert unwritten[0]["reason"] == "rejected"
        expected = {
            "deleted": "no stream takes this subject; declare a Stream with it, or correct the subject",
            "full": "the stream refused it: maximum bytes exceeded",
            "sealed": "the stream refused it: invalid operation on sealed stream",
        }[how]
        assert unwritten[0]["dead_letter_error"] == f"dead-letters.shop.billing: {expected}"
        if how == "full":
            await js.update_stream(config)
        else:
            await (js.delete_stream("SHOP_DEAD_LETTERS") if how == "sealed" else orders.client.flush())
            await js.add_stream(config)
        await orders.settled(app)
    assert [letter.headers["Understudy-Error"] for letter in await letters(orders)] == ["not ours"]
    assert [entry["id"] for entry in logs if entry["event"] == "dead letter"] == [1]
    assert cell.status.counters["dead_lettered"] == 1
    await until(lambda: cell.status.held == 0)
