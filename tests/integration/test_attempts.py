"""The record of failed attempts in KV, and reading held messages back by their sequence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client

from support.nats import NatsServer
from understudy.actors.errors import BrokerError
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.direct import IN_FLIGHT, read_message, read_messages
from understudy.runtime.jetstream.headers import parse
from understudy.runtime.stores.attempts import NONE, Attempts, AttemptStore

CREATED = "2026-01-01T00:00:00.123456789Z"


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A connection to a broker with the app's bucket."""
    client = await connection.connect(ConnectionSpec(servers=(nats_server.url,)), name="test")
    await client.jetstream().create_key_value(bucket="shop-attempts")
    yield client
    await connection.close(client)


async def store_of(client: Client, durable: str = "shop-billing", created: str = CREATED) -> AttemptStore:
    """Return a durable's records."""
    return await AttemptStore.open(client, "shop-attempts", durable, created)


async def test_what_was_recorded_is_read_by_the_next_generation(client: Client) -> None:
    """And nothing is known of any other delivery."""
    record = Attempts(failed=2, crashes=1, error="ValueError: nö")
    await (await store_of(client)).write(7, record)
    store = await store_of(client)
    assert await store.read(7) == record
    assert await store.read(8) == NONE
    await store.write(7, Attempts(failed=3))
    assert await store.read(7) == Attempts(failed=3)


@pytest.mark.parametrize("allow_direct", [True, False])
async def test_many_records_are_read_and_written_at_once(client: Client, allow_direct: bool) -> None:
    """Each is that of its delivery; most deliveries have none."""
    js = client.jetstream()
    config = (await js.stream_info("KV_shop-attempts")).config
    await js.update_stream(config.evolve(allow_direct=allow_direct))
    store = await store_of(client)
    records = {sequence: Attempts(failed=sequence) for sequence in range(1, 300, 3)}
    await store.write_all(records)
    assert await store.read_all(range(1, 300)) == [records.get(sequence, NONE) for sequence in range(1, 300)]
    assert await store.read_all([]) == []
    assert await store.read_all(range(300, 303)) == [NONE] * 3


async def test_another_durable_and_a_recreated_stream_begin_anew(client: Client) -> None:
    """Their sequences speak of other messages."""
    await (await store_of(client)).write(7, Attempts(failed=2))
    assert await (await store_of(client, durable="shop-shipping")).read(7) == NONE
    assert await (await store_of(client, created="2027-01-01T00:00:00Z")).read(7) == NONE


async def test_a_record_that_can_t_be_read_counts_for_nothing(client: Client) -> None:
    """As one that a later version wrote: the delivery is tried again instead of failing the cell."""
    bucket = await client.jetstream().key_value("shop-attempts")
    key = "shop-billing.20260101T000000123456789Z.7"
    for value in (b"\xc1", b"\x93\x01", b""):
        await bucket.put(key, value)
        assert await (await store_of(client)).read(7) == NONE
    await bucket.delete(key)
    assert await (await store_of(client)).read(7) == NONE


async def test_a_missing_bucket_is_named(client: Client) -> None:
    """The cell fails with it at its start."""
    with pytest.raises(BrokerError) as raised:
        await AttemptStore.open(client, "other-attempts", "other-billing", CREATED)
    assert str(raised.value) == (
        "KV bucket other-attempts is gone from the server; start 'understudy run' anew, which makes it"
    )


async def test_a_broker_that_is_away_is_an_error(
    nats_server: NatsServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted then, and the delivery is tried again."""
    store = await store_of(client)
    monkeypatch.setattr(store._bucket._js, "_timeout", 0.1)
    nats_server.stop()
    with pytest.raises(BrokerError, match=r"^the attempts of sequence 7 can't be read: nats: \w+"):
        await store.read(7)
    with pytest.raises(BrokerError, match=r"^the attempts of sequence 7 can't be written: nats: \w+"):
        await store.write(7, Attempts(failed=1))


@pytest.mark.parametrize("allow_direct", [True, False])
async def test_a_held_message_is_read_back_whole(client: Client, allow_direct: bool) -> None:
    """Either way: subject, body, its own headers, and when it was stored."""
    js = client.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"], allow_direct=allow_direct)
    headers = {"Nats-Msg-Id": "one", "ce-source": "Zürich", "traceparent": "00-1-2-01"}
    await js.publish("orders.placed", b"\x00body\r\n", headers=headers)
    await js.publish("orders.paid", b"")
    first = await read_message(client, "ORDERS", 1, allow_direct=allow_direct)
    assert first is not None
    assert (first.subject, first.body, parse(first.header_block)) == (
        "orders.placed",
        b"\x00body\r\n",
        headers,
    )
    stored = (await js.get_msg("ORDERS", seq=1)).time
    assert stored is not None
    assert abs(first.timestamp / 1e9 - stored.timestamp()) < 1e-5
    second = await read_message(client, "ORDERS", 2, allow_direct=allow_direct)
    assert second is not None
    assert (second.subject, second.body, parse(second.header_block)) == ("orders.paid", b"", {})


@pytest.mark.parametrize("allow_direct", [True, False])
async def test_a_message_that_went_is_none(client: Client, allow_direct: bool) -> None:
    """Deleted, purged or never there: there is nothing left to handle."""
    js = client.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"], allow_direct=allow_direct)
    await js.publish("orders.placed", b"")
    await js.delete_msg("ORDERS", 1)
    for sequence in (1, 2):
        assert await read_message(client, "ORDERS", sequence, allow_direct=allow_direct) is None


@pytest.mark.parametrize("allow_direct", [True, False])
async def test_many_messages_are_read_in_the_order_in_which_they_are_wanted(
    client: Client, allow_direct: bool
) -> None:
    """Among them one that is gone, and one that a header of its own might be taken for that."""
    js = client.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"], allow_direct=allow_direct)
    count = 3 * IN_FLIGHT
    for number in range(1, count + 1):
        headers = {"Status": "404"} if number == 9 else None
        await js.publish(f"orders.{number}", b"%d" % number, headers=headers)
    await js.delete_msg("ORDERS", count // 2)
    wanted: list[int | str] = [*range(count, 0, -1), "orders.5", "orders.none"]
    read = [one async for one in read_messages(client, "ORDERS", wanted, allow_direct=allow_direct)]
    bodies = [None if number == count // 2 else b"%d" % number for number in range(count, 0, -1)]
    assert [None if one is None else one.body for one in read] == [*bodies, b"5", None]


async def test_what_is_on_its_way_is_bounded_in_bytes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the largest body so far; before the first one that is what the server allows."""
    js = client.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"], allow_direct=True)
    sizes = [10] * 10 + [1000] * 100
    for size in sizes:
        await js.publish("orders.placed", bytes(size))
    asked = 0
    publish = client.publish

    async def count(*arguments: Any, **keywords: Any) -> None:
        nonlocal asked
        asked += 1
        await publish(*arguments, **keywords)

    monkeypatch.setattr(client, "publish", count)
    messages = read_messages(client, "ORDERS", range(1, 111), allow_direct=True, max_bytes=3000)
    ahead = []
    for taken in range(110):
        assert await anext(messages) is not None
        ahead.append(asked - taken)
    await messages.aclose()
    assert ahead[0] == 1
    assert ahead[1] == IN_FLIGHT
    # Of the large ones no more were asked for until three were left of those that seemed small.
    assert ahead[11] == IN_FLIGHT - 1
    assert set(ahead[80:108]) == {3}


async def test_a_broker_that_does_not_answer_is_named_with_the_message(
    nats_server: NatsServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takeover stops there, and the next start goes on with it."""
    monkeypatch.setattr("understudy.runtime.jetstream.direct.TIMEOUT_SECONDS", 0.1)
    nats_server.stop()
    with pytest.raises(BrokerError) as raised:
        await read_message(client, "ORDERS", 7, allow_direct=True)
    assert str(raised.value) == "sequence 7 of stream ORDERS can't be read: no answer"
