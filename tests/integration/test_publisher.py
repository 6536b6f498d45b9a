"""Publishing that a stream confirms, and everything that can keep it from confirming."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, StreamConfig

from support.cells import until
from support.nats import NatsServer
from understudy.actors.errors import EncodeError, PublishError
from understudy.actors.event import Event
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.envelope import header_bytes
from understudy.runtime.jetstream.publisher import MAX_HEADER_BYTES, PubAck, Publisher, PublishWindow


class Placed(Event, subject="orders.placed"):
    number: int


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A connection to a broker with the stream ORDERS."""
    client = await connection.connect(ConnectionSpec(servers=(nats_server.url,)), name="test")
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    yield client
    await connection.close(client)


@pytest.fixture
async def window(client: Client) -> PublishWindow:
    """An open window with a short time."""
    window = PublishWindow(client, timeout_seconds=5)
    await window.open()
    return window


async def count(client: Client, stream: str = "ORDERS") -> int:
    """Return how many messages a stream holds."""
    return (await client.jetstream().stream_info(stream)).state.messages


async def refused(window: PublishWindow, subject: str, body: bytes, headers: dict[str, str]) -> PublishError:
    """Publish what is refused, and return the error."""
    with pytest.raises(PublishError) as raised:
        await window.publish(subject, body, headers)
    assert raised.value.subject == subject
    return raised.value


async def test_a_stream_confirms_what_it_has(nats_server: NatsServer, client: Client) -> None:
    """The acknowledgement says where it is; the headers say what it is and who published it."""
    async with Publisher.connect(nats_server.url, source="till") as publisher:
        assert await publisher.publish(Placed(number=1), message_id="one") == PubAck("ORDERS", 1)
        assert await publisher.publish_raw("orders.raw", b"2", {"Nats-Msg-Id": "two"}) == PubAck("ORDERS", 2)
        assert await publisher.publish({"a": 1}, subject="orders.odd") == PubAck("ORDERS", 3)
    stored = await client.jetstream().get_msg("ORDERS", seq=1)
    assert stored.subject == "orders.placed"
    assert stored.headers == {
        "Content-Type": "application/msgpack",
        "Nats-Msg-Id": "one",
        "ce-specversion": "1.0",
        "ce-id": "one",
        "ce-type": "Placed",
        "ce-source": "till",
    }


async def test_a_repeated_id_is_stored_once(client: Client, window: PublishWindow) -> None:
    """The acknowledgement says so, and names the first."""
    first = await window.publish("orders.placed", b"1", {"Nats-Msg-Id": "one"})
    second = await window.publish("orders.placed", b"1", {"Nats-Msg-Id": "one"})
    assert (first, second) == (PubAck("ORDERS", 1), PubAck("ORDERS", 1, duplicate=True))
    assert await count(client) == 1


async def test_a_subject_that_no_stream_takes(window: PublishWindow) -> None:
    """It fails at once, without waiting for an answer."""
    started = time.monotonic()
    error = await refused(window, "bills.paid", b"", {})
    assert str(error) == (
        "bills.paid: no stream takes this subject; declare a Stream with it, or correct the subject"
    )
    assert error.code is None
    assert time.monotonic() - started < 1


async def test_a_stream_that_refuses_is_quoted(client: Client, window: PublishWindow) -> None:
    """Its words and its error code are in the error."""
    js = client.jetstream()
    await js.add_stream(StreamConfig(name="SMALL", subjects=["small"], max_msg_size=10))
    await js.add_stream(StreamConfig(name="FULL", subjects=["full"], max_msgs=1, discard=DiscardPolicy.NEW))
    await window.publish("full", b"", {})
    error = await refused(window, "full", b"", {})
    assert str(error) == "full: the stream refused it: maximum messages exceeded"
    assert error.code == 10077
    error = await refused(window, "small", b"x" * 11, {})
    assert str(error) == "small: the stream refused it: message size exceeds maximum allowed"
    assert error.code == 10054


async def test_exactly_max_payload_passes_and_one_byte_more_is_not_written(
    client: Client, window: PublishWindow
) -> None:
    """The server would close the connection for good."""
    headers = {"Nats-Msg-Id": "exact", "ce-source": "Zürich"}
    room = client.max_payload - header_bytes(headers)
    assert await window.publish("orders.placed", b"x" * room, headers) == PubAck("ORDERS", 1)
    written = client.stats["out_msgs"]
    error = await refused(window, "orders.placed", b"x" * (room + 1), headers)
    assert str(error) == (
        "orders.placed: body and headers are 1048577 bytes, the server takes 1048576; "
        "publish less, or raise the server's max_payload"
    )
    assert client.stats["out_msgs"] == written
    assert client.stats["reconnects"] == 0
    # Without headers the body may have it all.
    assert await window.publish("orders.placed", b"x" * client.max_payload, {}) == PubAck("ORDERS", 2)


async def test_headers_at_their_bound_pass_and_one_byte_more_is_not_written(
    client: Client, window: PublishWindow
) -> None:
    """The server refuses what it can't count in 16 bits; we say so first."""
    fill = MAX_HEADER_BYTES - header_bytes({"x": ""})
    assert await window.publish("orders.placed", b"", {"x": "y" * fill}) == PubAck("ORDERS", 1)
    error = await refused(window, "orders.placed", b"", {"x": "y" * (fill + 1)})
    assert str(error) == "orders.placed: headers are over 65535 bytes; shorten them"
    with pytest.raises(PublishError, match="nats: invalid header: 'a b'"):
        await window.publish("orders.placed", b"", {"a b": "c"})
    assert await count(client) == 1


@pytest.mark.parametrize(
    "subject", ["orders.*", "orders.>", "orders placed", "orders..placed", "orders.a\r\nPUB b 0\r\n"]
)
async def test_a_subject_from_a_user_is_checked_before_anything_is_written(
    nats_server: NatsServer, client: Client, subject: str
) -> None:
    """A wildcard would be stored as it is, and a line break would be a command."""
    async with Publisher.connect(nats_server.url) as publisher:
        for attempt in (
            publisher.publish(Placed(number=1), subject=subject),
            publisher.publish_raw(subject, b""),
        ):
            with pytest.raises(EncodeError) as raised:
                await attempt
            assert str(raised.value) == (
                f"nothing can be published to the subject {subject!r}: its tokens must not be empty nor hold "
                "'*', '>', white space or control characters"
            )
        with pytest.raises(EncodeError) as raised:
            await publisher.publish_raw("a" * 1001, b"")
        assert str(raised.value) == "the subject has 1001 characters; the most is 1000"
    assert await count(client) == 0


async def test_a_broker_that_is_back_in_time_has_it_once(
    nats_server: NatsServer, client: Client, window: PublishWindow
) -> None:
    """Publishing waits over the restart, under one id."""
    await window.publish("orders.placed", b"0", {"Nats-Msg-Id": "0"})
    nats_server.stop()
    publishing = [
        asyncio.create_task(window.publish("orders.placed", b"x", {"Nats-Msg-Id": str(number)}))
        for number in range(1, 11)
    ]
    await until(lambda: not client.is_connected)
    nats_server.start()
    acks = await asyncio.wait_for(asyncio.gather(*publishing), 10)
    assert sorted(ack.seq for ack in acks) == list(range(2, 12))
    assert await count(client) == 11


async def test_a_broker_killed_under_publishes_keeps_each_once(
    nats_server: NatsServer, client: Client, window: PublishWindow
) -> None:
    """What was confirmed is there, what wasn't is tried again, and nothing twice."""
    publishing = [
        asyncio.create_task(window.publish("orders.placed", b"x", {"Nats-Msg-Id": str(number)}))
        for number in range(3000)
    ]
    await until(lambda: sum(task.done() for task in publishing) > 300)
    nats_server.kill()
    nats_server.start()
    acks = await asyncio.wait_for(asyncio.gather(*publishing), 15)
    assert len({ack.seq for ack in acks}) == 3000
    assert await count(client) == 3000


async def test_a_broker_that_stays_away_is_an_error_after_the_timeout(
    nats_server: NatsServer, client: Client
) -> None:
    """Neither sooner nor much later."""
    window = PublishWindow(client, timeout_seconds=0.5)
    await window.open()
    nats_server.stop()
    started = time.monotonic()
    error = await refused(window, "orders.placed", b"", {"Nats-Msg-Id": "1"})
    assert str(error) == "orders.placed: no stream confirmed the event within 0.5 s"
    assert error.code is None
    assert 0.4 < time.monotonic() - started < 2


async def test_a_publisher_s_block_ends_though_the_broker_is_gone(nats_server: NatsServer) -> None:
    """What was pending is given up, and that is no error of the block."""
    async with Publisher.connect(nats_server.url) as publisher:
        nats_server.stop()
        publishing = asyncio.create_task(publisher.publish(Placed(number=1)))
        await asyncio.sleep(0.1)
    publishing.cancel()


async def test_a_full_window_is_backpressure(nats_server: NatsServer, client: Client) -> None:
    """A further publish isn't written before one of those in flight is confirmed or given up."""
    window = PublishWindow(client, size=2, timeout_seconds=3)
    await window.open()
    # A subject that somebody hears and nobody confirms.
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: object) -> None:
        heard.put_nowait(message.reply)  # type: ignore[attr-defined]

    await client.subscribe("silence", cb=hear)
    publishing = [asyncio.create_task(window.publish("silence", b"", {})) for _ in range(3)]
    replies = [await heard.get(), await heard.get()]
    third = asyncio.create_task(heard.get())
    await client.flush()
    await asyncio.sleep(0)
    assert not third.done()
    await client.publish(replies[0], b'{"stream": "S", "seq": 1}')
    assert await asyncio.wait_for(publishing[0], 5) == PubAck("S", 1)
    await client.publish(await asyncio.wait_for(third, 1), b'{"stream": "S", "seq": 2}')
    assert await asyncio.wait_for(publishing[2], 5) == PubAck("S", 2)
    await client.publish(replies[1], b"what?")
    with pytest.raises(PublishError, match="silence: the answer can't be read: "):
        await publishing[1]


async def test_an_unanswered_publish_is_repeated_under_its_id(client: Client) -> None:
    """An answer that was lost costs a repeat, which the stream drops."""
    window = PublishWindow(client, timeout_seconds=5)
    await window.open()
    heard: asyncio.Queue[object] = asyncio.Queue()

    async def hear(message: object) -> None:
        heard.put_nowait(message)

    await client.subscribe("silence", cb=hear)
    publishing = asyncio.create_task(window.publish("silence", b"body", {"Nats-Msg-Id": "1"}))
    first, second = await heard.get(), await asyncio.wait_for(heard.get(), 5)
    assert first.reply != second.reply  # type: ignore[attr-defined]
    assert first.headers == second.headers == {"Nats-Msg-Id": "1"}  # type: ignore[attr-defined]
    # The late answer to the first is nobody's any more.
    await client.publish(first.reply, b'{"stream": "S", "seq": 1}')  # type: ignore[attr-defined]
    await client.publish(second.reply, b'{"stream": "S", "seq": 2}')  # type: ignore[attr-defined]
    assert await publishing == PubAck("S", 2)
