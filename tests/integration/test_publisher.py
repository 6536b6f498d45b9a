"""Publishing that a stream confirms, and everything that can keep it from confirming."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, StreamConfig

from support.cells import until
from support.nats import NatsServer, configured_server
from support.proxy import proxy
from understudy.actors.errors import EncodeError, PublishError
from understudy.actors.event import Event
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection, publish_window
from understudy.runtime.jetstream.api import NO_JETSTREAM, NoJetStream
from understudy.runtime.jetstream.direct import read_message
from understudy.runtime.jetstream.envelope import header_bytes
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import MAX_HEADER_BYTES, PublishWindow
from understudy.runtime.jetstream.publisher import Publisher


class Placed(Event, subject="orders.placed"):
    number: int


@pytest.fixture(params=[True, False], ids=["fast lane", "public API"])
def spec(request: pytest.FixtureRequest, nats_server: NatsServer) -> ConnectionSpec:
    """How to connect to the broker: every test here runs on both lanes."""
    return ConnectionSpec(servers=(nats_server.url,), fast_lane=request.param)


@pytest.fixture
async def client(spec: ConnectionSpec) -> AsyncIterator[Client]:
    """A connection to a broker with the stream ORDERS."""
    client = await connection.connect(spec, name="test")
    assert isinstance(client, FastClient) is spec.fast_lane
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    yield client
    await connection.close(client)


# Longer than a test takes, also where the machine stands still for a while: nothing is given up for its time.
AMPLE_SECONDS = 60


@pytest.fixture
async def window(client: Client) -> PublishWindow:
    """An open window."""
    window = PublishWindow(client, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    return window


@pytest.fixture
def no_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing written twice because its answer is late, as it is where the test is held up."""
    monkeypatch.setattr(publish_window, "ACK_TIMEOUT_SECONDS", 600.0)


class Silence:
    """Hears what is published to `silence`, and answers when it is told to."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._heard: asyncio.Queue[Msg] = asyncio.Queue()

    @classmethod
    async def kept(cls, client: Client) -> Silence:
        """Begin to hear."""
        silence = cls(client)
        await client.subscribe("silence", cb=silence._hear)
        return silence

    async def next(self) -> Msg:
        """Return the next message, once it is there."""
        return await asyncio.wait_for(self._heard.get(), AMPLE_SECONDS)

    async def answer(self, message: Msg, body: bytes) -> None:
        """Answer a message as a stream would."""
        await self._client.publish(message.reply, body)

    async def is_kept(self) -> bool:
        """Say whether nothing more was written."""
        await connection.confirm(self._client)
        return self._heard.empty()

    async def _hear(self, message: Msg) -> None:
        self._heard.put_nowait(message)


@pytest.fixture
async def silence(client: Client) -> Silence:
    """A subject that somebody hears and nobody confirms."""
    return await Silence.kept(client)


async def count(client: Client, stream: str = "ORDERS") -> int:
    """Return how many messages a stream holds."""
    return (await client.jetstream().stream_info(stream)).state.messages


async def refused(window: PublishWindow, subject: str, body: bytes, headers: dict[str, str]) -> PublishError:
    """Publish what is refused, and return the error."""
    with pytest.raises(PublishError) as raised:
        await window.publish(subject, body, headers)
    assert raised.value.subject == subject
    return raised.value


async def test_a_stream_confirms_what_it_has(spec: ConnectionSpec, client: Client) -> None:
    """The acknowledgement says where it is; the headers say what it is and who published it."""
    async with Publisher.connect(spec, source="till") as publisher:
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


async def test_a_subject_that_no_stream_takes(
    client: Client, window: PublishWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails soon, without waiting for the whole time."""
    started = time.monotonic()
    error = await refused(window, "bills.paid", b"", {})
    # What a window waits for confirmations is twice as long.
    assert time.monotonic() - started < AMPLE_SECONDS / 2
    assert str(error) == (
        "bills.paid: no stream takes this subject; declare a Stream with it, or correct the subject"
    )
    assert error.code is None
    # Also where there is less time than that takes.
    monkeypatch.setattr(publish_window, "NO_STREAM_SECONDS", 600.0)
    hasty = PublishWindow(client, timeout_seconds=AMPLE_SECONDS)
    await hasty.open()
    refusing = asyncio.create_task(refused(hasty, "bills.paid", b"", {}))
    await until(lambda: any(message.no_stream_since for message in hasty._in_flight.values()))
    hasty._timeout_seconds = 0.1
    assert str(await refusing) == str(error)


@pytest.mark.parametrize("fast_lane", [True, False], ids=["fast lane", "public API"])
async def test_a_broker_without_jetstream_is_said_to_have_none(*, fast_lane: bool) -> None:
    """Rather than no stream that takes the subject, which would be looked for in vain."""
    async with configured_server() as url:
        spec = ConnectionSpec(servers=(url,), fast_lane=fast_lane)
        async with Publisher.connect(spec) as publisher:
            with pytest.raises(PublishError) as raised:
                await publisher.publish(Placed(number=1))
            assert str(raised.value) == f"orders.placed: no stream takes this subject, and {NO_JETSTREAM}"
        # As whoever asks its API is told.
        client = await connection.connect(spec, name="test")
        with pytest.raises(NoJetStream, match=re.escape(NO_JETSTREAM)):
            await api.stream_info(client, "ORDERS")
        await connection.close(client)


async def test_jetstream_may_be_on_a_server_that_this_one_is_joined_to() -> None:
    """As in a cluster of which a part has it: then what lacks is the stream."""
    async with configured_server() as url:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")

        async def answer(question: Msg) -> None:
            await question.respond(b"{}")

        await client.subscribe("$JS.API.INFO", cb=answer)
        await connection.confirm(client)
        async with Publisher.connect(url) as publisher:
            with pytest.raises(PublishError, match="no stream takes this subject; declare a Stream with it"):
                await publisher.publish(Placed(number=1))
        await connection.close(client)


async def test_a_stream_that_is_away_for_a_moment_is_tried_again(
    client: Client, window: PublishWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a leader is elected, a stream answers no more than one that doesn't exist."""
    # Else what is a moment to us may be longer than that to the server.
    monkeypatch.setattr(publish_window, "NO_STREAM_SECONDS", 600.0)
    publishing = [asyncio.create_task(window.publish("bills.paid", b"", {"Nats-Msg-Id": n})) for n in "12"]
    # The server's word is there before the answer to this is.
    await connection.confirm(client)
    assert not any(task.done() for task in publishing)
    await client.jetstream().add_stream(name="BILLS", subjects=["bills.>"])
    assert await asyncio.gather(*publishing) == [PubAck("BILLS", 1), PubAck("BILLS", 2)]


async def test_a_stream_may_be_called_error(client: Client, window: PublishWindow) -> None:
    """A name in an acknowledgement doesn't make it a refusal."""
    await client.jetstream().add_stream(name="error", subjects=["errors"])
    assert await window.publish("errors", b"", {}) == PubAck("error", 1)


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


BUSY = b'{"error":{"code":429,"err_code":10167,"description":"too many requests"}}'


@pytest.mark.usefixtures("no_repeats")
async def test_a_stream_that_can_t_keep_up_is_tried_again(window: PublishWindow, silence: Silence) -> None:
    """The server refuses what its ingest queue has no room for; nothing is wrong with the event."""
    taken = asyncio.create_task(window.publish("silence", b"1", {}))
    await silence.answer(first := await silence.next(), BUSY)
    repeat = await silence.next()
    assert (repeat.data, repeat.reply) == (first.data, first.reply)
    await silence.answer(repeat, b'{"stream":"S","seq":1}')
    assert await taken == PubAck("S", 1)
    refusing = asyncio.create_task(refused(window, "silence", b"2", {}))
    await silence.answer(await silence.next(), BUSY)
    await silence.answer(await silence.next(), BUSY)
    window._timeout_seconds = 1.0
    assert str(await refusing) == (
        "silence: no stream confirmed the event within 1 s: the stream refused it: too many requests"
    )
    window.close()


async def test_exactly_max_payload_passes_and_one_byte_more_is_not_written(
    client: Client, window: PublishWindow
) -> None:
    """The server would close the connection for good."""
    headers = {"Nats-Msg-Id": "exact", "ce-source": "Zürich"}
    room = client.max_payload - header_bytes(headers)
    assert await window.publish("orders.placed", b"x" * room, headers) == PubAck("ORDERS", 1)
    error = await refused(window, "orders.placed", b"x" * (room + 1), headers)
    assert str(error) == (
        "orders.placed: body and headers are 1048577 bytes, the server takes 1048576; "
        "publish less, or raise the server's max_payload"
    )
    await connection.confirm(client)
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
    error = await refused(window, "orders.placed", b"", {"a b": "c"})
    assert str(error) == (
        "orders.placed: the header name 'a b' can't be written; use letters, digits and the marks of RFC 9110"
    )
    error = await refused(window, "orders.placed", b"", {"a": "b\r\nNats-Rollup: all"})
    assert str(error) == (
        "orders.placed: the header 'a' has a line break in its value: 'b\\r\\nNats-Rollup: all'; take it out"
    )
    assert await count(client) == 1


@pytest.mark.parametrize(
    "subject", ["orders.*", "orders.>", "orders placed", "orders..placed", "orders.a\r\nPUB b 0\r\n"]
)
async def test_a_subject_from_a_user_is_checked_before_anything_is_written(
    spec: ConnectionSpec, client: Client, subject: str
) -> None:
    """A wildcard would be stored as it is, and a line break would be a command."""
    async with Publisher.connect(spec) as publisher:
        for attempt in (
            publisher.publish(Placed(number=1), subject=subject),
            publisher.publish_async(Placed(number=1), subject=subject),
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
    acks = await asyncio.wait_for(asyncio.gather(*publishing), AMPLE_SECONDS)
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
    acks = await asyncio.wait_for(asyncio.gather(*publishing), AMPLE_SECONDS)
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
    assert 0.4 < time.monotonic() - started < 5


async def test_a_publisher_s_block_ends_when_all_is_confirmed(spec: ConnectionSpec, client: Client) -> None:
    """Nobody has to wait for the futures, and what isn't waited for isn't lost."""
    async with Publisher.connect(spec) as publisher:
        confirmed = [await publisher.publish_async(Placed(number=number)) for number in range(2000)]
    assert [future.result().seq for future in confirmed] == list(range(1, 2001))
    assert await count(client) == 2000


async def test_a_publisher_s_block_ends_though_the_broker_is_gone(
    nats_server: NatsServer, spec: ConnectionSpec
) -> None:
    """What was pending is given up when its time is over, and that is no error of the block."""
    async with Publisher.connect(spec, timeout_seconds=0.2) as publisher:
        nats_server.stop()
        confirmed = await publisher.publish_async(Placed(number=1))
    with pytest.raises(PublishError, match=r"no stream confirmed the event within 0\.2 s"):
        await confirmed


async def test_a_publisher_s_block_that_fails_waits_for_nothing(
    nats_server: NatsServer, spec: ConnectionSpec
) -> None:
    """What was pending is given up, and so is what comes too late."""
    left: list[Publisher] = []
    confirmed: list[asyncio.Future[PubAck]] = []

    async def fail() -> None:
        async with Publisher.connect(spec, timeout_seconds=60) as publisher:
            nats_server.stop()
            left.append(publisher)
            confirmed.append(await publisher.publish_async(Placed(number=1)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    for publishing in (confirmed[0], left[0].publish(Placed(number=2))):
        with pytest.raises(PublishError) as raised:
            await publishing
        assert str(raised.value) == "orders.placed: the connection is closed"


async def test_a_connection_that_ends_for_good_fails_what_waits(client: Client, silence: Silence) -> None:
    """Whether it is written or waits for its place, nothing hangs."""
    window = PublishWindow(client, size=1, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    publishing = [asyncio.create_task(window.publish("silence", b"", {})) for _ in range(2)]
    publishing.append(asyncio.create_task(enqueued(window)))
    await silence.next()
    await client.close()
    for task in publishing:
        with pytest.raises(PublishError, match="silence: the connection is closed"):
            await task
    with pytest.raises(PublishError, match="silence: the connection is closed"):
        await window.enqueue("silence", b"", {})


async def enqueued(window: PublishWindow) -> PubAck:
    """Publish by way of a future."""
    return await (await window.enqueue("silence", b"", {}))


async def test_events_of_one_task_are_stored_in_its_order(spec: ConnectionSpec, client: Client) -> None:
    """They are on their way together, and many more than the window holds."""
    async with Publisher.connect(spec) as publisher:
        confirmed = [
            await publisher.publish_async({"n": number}, subject="orders.n", message_id=str(number))
            for number in range(3000)
        ]
        acks = await asyncio.gather(*confirmed)
    assert acks == [PubAck("ORDERS", number) for number in range(1, 3001)]
    assert await count(client) == 3000


async def test_on_the_fast_lane_a_lost_connection_costs_no_order(nats_server: NatsServer) -> None:
    """What it took with it is written again before anything new."""
    async with proxy(nats_server.url) as broken, Publisher.connect(broken.url) as publisher:
        client = publisher._window._client
        await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
        confirmed = []
        for number in range(10_000):
            confirmed.append(
                await publisher.publish_async({"n": number}, subject="orders.n", message_id=str(number))
            )
            if number % 500 == 499:
                broken.cut()
        acks = await asyncio.gather(*confirmed)
        assert [ack.seq for ack in acks] == list(range(1, 10_001))
        assert client.stats["reconnects"] >= 1
        assert await count(client) == 10_000


async def test_what_a_lost_connection_took_is_repeated_before_anything_new(
    nats_server: NatsServer,
) -> None:
    """A publish may come at the very moment of the reconnect."""
    async with proxy(nats_server.url) as broken:
        connected = asyncio.Event()
        client = await connection.connect(
            ConnectionSpec(servers=(broken.url,)),
            name="test",
            on_state=lambda state: connected.set() if state == "connected" else None,
        )
        await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
        window = PublishWindow(client)
        await window.open()
        broken.cut()
        # The client doesn't know it yet, and writes.
        lost = await window.enqueue("orders.placed", b"1", {"Nats-Msg-Id": "1"})
        await connected.wait()
        new = await window.enqueue("orders.placed", b"2", {"Nats-Msg-Id": "2"})
        assert (await lost, await new) == (PubAck("ORDERS", 1), PubAck("ORDERS", 2))
        await connection.close(client)


@pytest.mark.usefixtures("no_repeats")
async def test_a_full_window_is_backpressure(client: Client, silence: Silence) -> None:
    """A further publish isn't written before one of those in flight is confirmed or given up."""
    window = PublishWindow(client, size=2, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    publishing = [asyncio.create_task(window.publish("silence", b"", {})) for _ in range(3)]
    enqueueing = asyncio.create_task(window.enqueue("silence", b"", {}))
    first, second = await silence.next(), await silence.next()
    assert await silence.is_kept()
    await silence.answer(first, b'{"stream": "S", "seq": 1}')
    assert await publishing[0] == PubAck("S", 1)
    await silence.answer(await silence.next(), b'{"stream": "S", "seq": 2}')
    assert await publishing[2] == PubAck("S", 2)
    # Its place is what it waits for, and not the answer.
    confirmed = await enqueueing
    assert not confirmed.done()
    await silence.answer(second, b"what?")
    with pytest.raises(PublishError, match="silence: the answer can't be read: "):
        await publishing[1]
    await silence.answer(await silence.next(), b'{"stream": "S", "seq": 3, "duplicate": true}')
    assert await confirmed == PubAck("S", 3, duplicate=True)


@pytest.mark.usefixtures("no_repeats")
async def test_the_window_is_bounded_in_bytes_too(client: Client, silence: Silence) -> None:
    """One that is larger than the bound goes alone."""
    window = PublishWindow(client, max_bytes=100, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    bodies = [b"1" * 59, b"2" * 40, b"3" * 60, b"4" * 101, b"5"]
    publishing = [asyncio.create_task(window.publish("silence", body, {})) for body in bodies]
    first, second = await silence.next(), await silence.next()
    assert await silence.is_kept()
    await silence.answer(first, b'{"stream": "S", "seq": 1}')
    third = await silence.next()
    for answered in (second, third):
        assert await silence.is_kept()
        await silence.answer(answered, b'{"stream": "S", "seq": 1}')
    fourth = await silence.next()
    assert fourth.data == bodies[3]
    assert await silence.is_kept()
    await silence.answer(fourth, b'{"stream": "S", "seq": 1}')
    await silence.answer(await silence.next(), b'{"stream": "S", "seq": 1}')
    await asyncio.gather(*publishing)


@pytest.mark.usefixtures("no_repeats")
async def test_a_publish_that_is_cancelled_leaves_its_place(client: Client, silence: Silence) -> None:
    """Written or not; one that waits for a place is never written."""
    window = PublishWindow(client, size=1, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    bodies = [b"written", b"waiting", b"enqueued", b"last"]
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(
            window.enqueue("silence", body, {})
            if body == b"enqueued"
            else window.publish("silence", body, {})
        )
        for body in bodies
    ]
    assert (await silence.next()).data == b"written"
    for index in (1, 2, 0):
        tasks[index].cancel()
    last = await silence.next()
    assert last.data == b"last"
    await silence.answer(last, b'{"stream": "S", "seq": 1}')
    assert await tasks[3] == PubAck("S", 1)
    assert all(task.cancelled() for task in tasks[:3])


async def test_a_future_that_is_cancelled_leaves_its_place(client: Client, silence: Silence) -> None:
    """Nobody wants to know, so the next one goes."""
    window = PublishWindow(client, size=1, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    (await window.enqueue("silence", b"1", {})).cancel()
    confirmed = await window.enqueue("silence", b"2", {})
    assert [(await silence.next()).data, (await silence.next()).data] == [b"1", b"2"]
    confirmed.cancel()
    await window.settled()


async def test_an_unanswered_publish_is_repeated_under_its_id(client: Client, silence: Silence) -> None:
    """An answer that was lost costs a repeat, which the stream drops; either's answer will do."""
    window = PublishWindow(client, timeout_seconds=AMPLE_SECONDS)
    await window.open()
    publishing = asyncio.create_task(window.publish("silence", b"body", {"Nats-Msg-Id": "1"}))
    first, second = await silence.next(), await silence.next()
    assert first.reply == second.reply
    assert first.headers == second.headers == {"Nats-Msg-Id": "1"}
    assert first.data == second.data == b"body"
    await silence.answer(first, b'{"stream": "S", "seq": 1}')
    assert await publishing == PubAck("S", 1)
    # That of the other is nobody's any more.
    await silence.answer(second, b'{"stream": "S", "seq": 1, "duplicate": true}')
    assert await silence.is_kept()
    assert client.is_connected


async def test_headers_that_are_not_utf_8_are_sent(client: Client, window: PublishWindow) -> None:
    """As they came on the fast lane; nats-py writes nothing else than UTF-8."""
    await window.publish("orders.placed", b"", {"x": "a\udcff"})
    stored = await read_message(client, "ORDERS", 1, allow_direct=False)
    assert stored is not None
    value = b"a\xff" if isinstance(client, FastClient) else b"a?"
    assert stored.header_block == b"NATS/1.0\r\nx: " + value + b"\r\n\r\n"
