"""What is written to settle deliveries, in which order, and what becomes of it when the connection goes."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from structlog.testing import capture_logs

from support.cells import Bench, bench, both_lanes, reconnected, until
from support.nats import NatsServer
from support.proxy import Proxy
from support.wire import FrameReader
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import confirm
from understudy.runtime.jetstream.settlement import BURST, Settlement, parse_ack_subject

_names = itertools.count()


@both_lanes
async def broker(
    module_nats_server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A broker that a module's tests share."""
    async with bench(module_nats_server.url, tmp_path, fast_lane=request.param) as made:
        yield made


class Recorder(Proxy):
    """A proxy that keeps what the client publishes.

    Attributes:
        written: subject and body of each publish, over all connections.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.written: list[tuple[bytes, bytes]] = []

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, outward: bool
    ) -> None:
        if outward:
            self._frames = FrameReader()
        await super()._pass_on(source, target, outward)

    def _see(self, data: bytes, outward: bool) -> None:
        if outward:
            for frame in self._frames.feed(data):
                if frame.verb == b"PUB":
                    self.written.append((frame.arguments[0], frame.payload))


class Deliveries:
    """A stream whose messages have all been delivered, and a settlement on a connection of its own.

    Attributes:
        replies: the deliveries' reply subjects.
        acked: how many times collected acks were written.
    """

    def __init__(self, broker: Bench, between: Recorder) -> None:
        self.broker = broker
        self.between = between
        self.stream = f"S{next(_names)}"
        self.replies: list[bytes] = []
        self.acked = 0
        self.settlement: Settlement

    async def make(self, count: int, **config: Any) -> None:
        """Publish and fetch them, and connect."""
        client = self.broker.client
        body: dict[str, Any] = {"name": self.stream, "subjects": [f"{self.stream}.>"], "storage": "memory"}
        await api.request(client, f"STREAM.CREATE.{self.stream}", body)
        await self.configure("create", **config)
        for _ in range(count):
            await self.broker.publisher.publish_raw(f"{self.stream}.a", b"")
        self.replies = await self.fetch(count)
        self.client = await self.broker.connect(self.between.url)
        self.settlement = Settlement(self.client, self._count)

    async def configure(self, action: str, **config: Any) -> None:
        """Make the consumer, or change it."""
        config = {"durable_name": "d", "ack_policy": "explicit", **config}
        body = {"stream_name": self.stream, "config": config, "action": action}
        await api.request(self.broker.client, f"CONSUMER.CREATE.{self.stream}.d", body)

    def _count(self) -> None:
        self.acked += 1

    async def fetch(self, count: int) -> list[bytes]:
        """Return the reply subjects of what the server delivers next."""
        js = self.broker.client.jetstream()
        subscription = await js.pull_subscribe_bind("d", self.stream)
        replies: list[bytes] = []
        while len(replies) < count:
            replies += [message.reply.encode() for message in await subscription.fetch(count - len(replies))]
        await subscription.unsubscribe()
        return replies

    async def pending(self) -> int:
        """Return how many deliveries the server waits for."""
        info = await api.consumer_info(self.broker.client, self.stream, "d")
        assert info is not None
        return int(info["num_ack_pending"])

    async def leaves(self, count: int) -> None:
        """Wait until the server waits for so many."""

        async def is_so() -> bool:
            return await self.pending() == count

        await until(is_so)

    def written(self) -> list[tuple[int, bytes]]:
        """Return the stream sequences and words of the settlements that were written."""
        return [
            (parse_ack_subject(subject)[1], body)
            for subject, body in self.between.written
            if subject.startswith(b"$JS.ACK")
        ]


@pytest.fixture
async def deliveries(broker: Bench) -> AsyncIterator[Deliveries]:
    """Deliveries that the test makes."""
    between = Recorder(int(broker.url.rpartition(":")[2]))
    await between.start()
    yield Deliveries(broker, between)
    await between.stop()


Call: TypeAlias = Callable[[Settlement, list[bytes]], Awaitable[object]]
FOLLOWING: dict[str, tuple[Call, list[tuple[int, bytes]]]] = {
    "nak": (lambda settlement, replies: settlement.nak(replies[0]), [(4, b"-NAK")]),
    "late nak": (
        lambda settlement, replies: settlement.nak(replies[0], 0.5),
        [(4, b'-NAK {"delay": 500000000}')],
    ),
    "term": (lambda settlement, replies: settlement.term(replies[0], "no\nmore"), [(4, b"+TERM no more")]),
    "in progress": (lambda settlement, replies: settlement.in_progress(replies[0]), [(4, b"+WPI")]),
    "confirmed ack": (lambda settlement, replies: settlement.ack_confirmed(replies[0]), [(4, b"")]),
    "naks in order": (
        lambda settlement, replies: settlement.nak_in_order(replies),
        [(4, b"-NAK"), (5, b"-NAK")],
    ),
    "flush": (lambda settlement, _replies: settlement.flush(), []),
}


@pytest.mark.parametrize("following", FOLLOWING)
async def test_acks_are_written_before_what_follows(deliveries: Deliveries, following: str) -> None:
    """Whatever it is: who asks for more afterwards has told the server of the room first."""
    await deliveries.make(5)
    one, two, three, *others = deliveries.replies
    call, words = FOLLOWING[following]
    deliveries.settlement.ack(one)
    deliveries.settlement.ack(two)
    await call(deliveries.settlement, others)
    await deliveries.client.publish("after")
    deliveries.settlement.ack(three)
    await deliveries.settlement.flush()
    await confirm(deliveries.client)
    assert deliveries.written() == [(1, b""), (2, b""), *words, (3, b"")]
    subjects = [subject for subject, _ in deliveries.between.written]
    assert subjects[-2:] == [b"after", three]


async def test_acks_are_written_without_being_asked_for(deliveries: Deliveries) -> None:
    """Those that are enough at once, and fewer soon; both are said."""
    await deliveries.make(BURST + 10)
    for reply in deliveries.replies[:BURST]:
        deliveries.settlement.ack(reply)
    await until(lambda: deliveries.acked == 1)
    await deliveries.leaves(10)
    for reply in deliveries.replies[BURST:]:
        deliveries.settlement.ack(reply)
    assert deliveries.acked == 1
    await deliveries.leaves(0)
    assert deliveries.acked == 2
    assert deliveries.written() == [(sequence, b"") for sequence in range(1, BURST + 11)]


async def test_flushing_nothing_writes_and_says_nothing(deliveries: Deliveries) -> None:
    """As each pull request and nak does it."""
    await deliveries.make(1)
    await deliveries.settlement.flush()
    await confirm(deliveries.client)
    assert (deliveries.written(), deliveries.acked) == ([], 0)


async def test_a_confirmed_ack_is_applied_when_it_returns(deliveries: Deliveries) -> None:
    """That is what it is for."""
    await deliveries.make(3)
    for left, reply in enumerate(deliveries.replies[::-1]):
        assert await deliveries.settlement.ack_confirmed(reply)
        assert await deliveries.pending() == len(deliveries.replies) - 1 - left


async def test_each_word_does_what_it_says(deliveries: Deliveries) -> None:
    """A nak brings it back at once, a late one later; a term never; an extension begins `ack_wait` anew."""
    await deliveries.make(4, ack_wait=600_000_000_000)
    nak, late, term, extended = deliveries.replies
    await deliveries.settlement.nak(nak)
    await deliveries.settlement.nak(late, 0.2)
    await deliveries.settlement.term(term, "no more")
    again = [parse_ack_subject(reply)[:2] for reply in await deliveries.fetch(2)]
    assert again == [(2, 1), (2, 2)]
    await deliveries.settlement.in_progress(extended)
    await confirm(deliveries.client)
    # From now on, what nothing is heard of comes again: these two before the one that was extended later.
    await deliveries.configure("update", ack_wait=1_000_000_000)
    again = [parse_ack_subject(reply)[:2] for reply in await deliveries.fetch(3)]
    assert again == [(3, 1), (3, 2), (2, 4)]
    assert await deliveries.pending() == 3


async def test_what_is_settled_without_a_connection_is_written_to_the_next(deliveries: Deliveries) -> None:
    """Once, and in its order; a confirmation can't be had."""
    await deliveries.make(4)
    one, two, three, four = deliveries.replies
    deliveries.between.refusing = True
    deliveries.between.cut()
    await until(lambda: not deliveries.client.is_connected)
    with capture_logs() as logs:
        deliveries.settlement.ack(one)
        deliveries.settlement.ack(two)
        await deliveries.settlement.nak(three, 600)
        deliveries.settlement.ack(four)
        await asyncio.sleep(0.05)
    # The connection has its own to say.
    assert [entry for entry in logs if not entry["event"].startswith("broker ")] == []
    assert deliveries.written() == []
    deliveries.between.refusing = False
    await deliveries.leaves(1)
    assert deliveries.written() == [(1, b""), (2, b""), (3, b'-NAK {"delay": 600000000000}'), (4, b"")]


async def test_nothing_is_written_twice(deliveries: Deliveries) -> None:
    """Neither for a connection that broke: what it took with it is the server's to deliver again."""
    await deliveries.make(600, ack_wait=300_000_000_000)
    for number, reply in enumerate(deliveries.replies, start=1):
        deliveries.settlement.ack(reply)
        if number % 200 == 0:
            connections = deliveries.between.connections
            deliveries.between.cut()
            await until(lambda: deliveries.between.connections > connections)  # noqa: B023
        elif number % 10 == 0:
            await asyncio.sleep(0)
    await reconnected(deliveries.client)
    await confirm(deliveries.client)
    written = Counter(deliveries.written())
    assert max(written.values()) == 1
    assert 600 - len(written) <= await deliveries.pending() < 600


async def test_after_the_end_of_the_connection_all_fails_quietly(deliveries: Deliveries) -> None:
    """One warning, no exception; a confirmation is denied."""
    await deliveries.make(10)
    await deliveries.client.close()
    with capture_logs() as logs:
        for reply in deliveries.replies:
            deliveries.settlement.ack(reply)
        await deliveries.settlement.flush()
        deliveries.settlement.ack(deliveries.replies[0])
        await until(lambda: deliveries.acked == 2)
        await deliveries.settlement.nak(deliveries.replies[0])
        await deliveries.settlement.term(deliveries.replies[0], "no more")
        await deliveries.settlement.in_progress(deliveries.replies[0])
        assert not await deliveries.settlement.ack_confirmed(deliveries.replies[0])
        assert not await deliveries.settlement.nak_in_order(deliveries.replies)
    assert [entry["log_level"] for entry in logs].count("warning") == 1
    assert {entry["error"] for entry in logs} == {"nats: connection closed"}
    assert await deliveries.pending() == 10


async def test_what_is_done_amid_naks_is_acked_before_its_own(deliveries: Deliveries) -> None:
    """An owner that recovers gives back what it doesn't hold, and so what was handled a moment ago."""
    await deliveries.make(2 * BURST)
    done = deliveries.replies[BURST + 10]

    def lost() -> Iterator[bytes]:
        for number, reply in enumerate(deliveries.replies):
            if number == BURST:
                # As a worker does while the naks are written.
                deliveries.settlement.ack(done)
            yield reply

    assert await deliveries.settlement.nak_in_order(lost())
    written = deliveries.written()
    assert written.index((BURST + 11, b"")) < written.index((BURST + 11, b"-NAK"))
    assert len(await deliveries.fetch(2 * BURST - 1)) == 2 * BURST - 1
    assert await deliveries.pending() == 2 * BURST - 1
