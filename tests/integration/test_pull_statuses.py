"""What the server says of a pull request, and what the subscription makes of it.

What a server can be made to say is said by one. The rest is said by an impostor: a proxy renames the consumer
in the requests, so that they reach somebody who answers in the server's words.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from support.cells import Bench, bench, both_lanes, reconnected, until
from support.impostor import NEXT, Impostor, impostor, inbox_of
from support.nats import NatsServer
from support.proxy import proxy
from support.pulling import Pulling, Room, pulling
from understudy.runtime.jetstream import api, subscription
from understudy.runtime.jetstream.pull_request import PullRequest

_names = itertools.count()


@both_lanes
async def broker(
    module_nats_server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A broker that a module's tests share."""
    async with bench(module_nats_server.url, tmp_path, fast_lane=request.param) as made:
        yield made


class Lost:
    """Says when requests count as lost: never, since those of a test that is held up would too.

    Attributes:
        first: but so many of the first are given up a moment after their time.
    """

    def __init__(self) -> None:
        self.first = 0
        self._numbers: dict[str, int] = {}

    def at(self, request: PullRequest) -> float:
        """Return when a request counts as lost."""
        number = self._numbers.setdefault(request.reply, len(self._numbers))
        return request.expires_at + (0.2 if number < self.first else 600.0)


@pytest.fixture(autouse=True)
def lost(monkeypatch: pytest.MonkeyPatch) -> Lost:
    """Requests count as lost when the test says so."""
    made = Lost()
    monkeypatch.setattr(PullRequest, "lost_at", property(made.at))
    return made


class Consumer:
    """A stream with a durable consumer, and all requests that are made to it.

    Attributes:
        requests: reply subject and demand of each pull request.
    """

    def __init__(self, broker: Bench, name: str) -> None:
        self.stream = name
        self.durable = "real"
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._broker = broker

    async def make(self, **config: Any) -> None:
        """Make stream and consumer, and listen to the requests."""
        client = self._broker.client
        body = {"name": self.stream, "subjects": [f"{self.stream}.>"], "storage": "memory"}
        await api.request(client, f"STREAM.CREATE.{self.stream}", body)
        await self.configure("create", **config)

        async def note(message: Msg) -> None:
            self.requests.append((message.reply, json.loads(message.data)))

        await client.subscribe(f"{NEXT}.{self.stream}.{self.durable}", cb=note)
        await client.flush()

    async def configure(self, action: str, **config: Any) -> None:
        """Make the consumer, or change it."""
        await api.request(
            self._broker.client,
            f"CONSUMER.CREATE.{self.stream}.{self.durable}",
            {
                "stream_name": self.stream,
                "config": {"durable_name": self.durable, "ack_policy": "explicit", **config},
                "action": action,
            },
        )

    async def delete(self) -> None:
        """Delete the consumer."""
        await api.request(self._broker.client, f"CONSUMER.DELETE.{self.stream}.{self.durable}")

    async def pause(self, until: str) -> None:
        """Have it deliver nothing until then."""
        subject = f"CONSUMER.PAUSE.{self.stream}.{self.durable}"
        await api.request(self._broker.client, subject, {"pause_until": until})

    async def publish(self, count: int, size: int = 10) -> None:
        """Publish messages of a size."""
        for _ in range(count):
            await self._broker.publisher.publish_raw(f"{self.stream}.a", b"x" * size)

    async def pulling(self, room: Room, url: str = "") -> Pulling:
        """Return a subscription to it."""
        return await pulling(self._broker, room, self.stream, self.durable, url=url)

    def impostor(self) -> AbstractAsyncContextManager[Impostor]:
        """Return who answers in its place, for the length of a `with` block."""
        return impostor(self._broker.url, self._broker.client, self.stream, self.durable)

    async def info(self) -> dict[str, Any]:
        """Return the server's description of it."""
        info = await api.consumer_info(self._broker.client, self.stream, self.durable)
        assert info is not None
        return info

    async def drained(self, pull: Pulling, count: int) -> None:
        """Take so many messages out of the room, each once, until nothing is unsettled."""
        seen: list[int] = []
        while len(seen) < count:
            await until(lambda: bool(pull.room.held))
            seen += await pull.settle(len(pull.room.held))
        assert sorted(seen) == sorted(set(seen))

        async def is_settled() -> bool:
            return bool((await self.info())["num_ack_pending"] == 0)

        await until(is_settled)


@pytest.fixture
async def consumer(broker: Bench) -> Consumer:
    """A name for a consumer that the test makes."""
    return Consumer(broker, f"S{next(_names)}")


def warnings(logs: list[Any]) -> list[str]:
    """Return what was warned of."""
    return [
        entry.get("description") or entry["event"]
        for entry in logs
        if entry["log_level"] not in ("debug", "info")
    ]


LIMITS: dict[str, tuple[Any, str]] = {
    "max_batch": (3, "Exceeded MaxRequestBatch of 3"),
    "max_expires": (100_000_000, "Exceeded MaxRequestExpires of 100ms"),
    "max_bytes": (500, "Exceeded MaxRequestMaxBytes of 500"),
}
DEMANDED = {"max_batch": "batch", "max_expires": "expires", "max_bytes": "max_bytes"}


@pytest.mark.parametrize("limit", LIMITS)
async def test_what_a_consumer_allows_is_known_from_the_start(consumer: Consumer, limit: str) -> None:
    """No request is larger or longer, so that nothing is refused."""
    most = LIMITS[limit][0]
    await consumer.make(**{limit: most})
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(16))
        pull.start()
        await consumer.publish(40)
        await consumer.drained(pull, 40)
    assert warnings(logs) == []
    assert max(demand[DEMANDED[limit]] for _, demand in consumer.requests) == most


@pytest.mark.parametrize("limit", LIMITS)
async def test_what_a_consumer_allows_from_now_on_is_looked_up_when_it_refuses(
    consumer: Consumer, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and the next request is as it has to be."""
    most, description = LIMITS[limit]
    # Else it looks unasked where this loop is held up for a moment.
    monkeypatch.setattr(subscription, "UNHEARD_SECONDS", 600.0)
    await consumer.make()
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(16))
        pull.start()
        await consumer.publish(16)
        await consumer.drained(pull, 16)
        await consumer.configure("update", **{limit: most})
        # What was asked for before the change is served all the same, or expires.
        await consumer.publish(40)
        draining = asyncio.create_task(consumer.drained(pull, 40))
        await until(lambda: warnings(logs) == [description])
        monkeypatch.undo()
        await draining
        await until(lambda: consumer.requests[-1][1][DEMANDED[limit]] <= most)
        await consumer.publish(40)
        await consumer.drained(pull, 40)
    assert warnings(logs) == [description]


async def test_a_consumer_that_lets_no_request_wait_is_not_asked_all_the_time(consumer: Consumer) -> None:
    """Four times a second, and each time for what there is."""
    await consumer.make(max_expires=1_000_000)
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(16))
        pull.start()
        started = time.monotonic()
        await until(lambda: len(consumer.requests) >= 4)
        assert time.monotonic() - started > 2.5 * subscription.RETRY_SECONDS
        await consumer.publish(40)
        await consumer.drained(pull, 40)
    assert warnings(logs) == []


async def test_where_too_many_wait_it_tries_again(broker: Bench, consumer: Consumer) -> None:
    """Four times a second, with one warning; when there is room, all comes."""
    await consumer.make(max_waiting=1, max_batch=4)
    other = broker.client
    inbox = other.new_inbox()
    waiting = await other.subscribe(inbox)
    demand = json.dumps({"batch": 1, "expires": 600_000_000_000}).encode()
    await other.publish(f"{NEXT}.{consumer.stream}.{consumer.durable}", demand, reply=inbox)
    await until(lambda: len(consumer.requests) == 1)
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(16))
        pull.start()
        started = time.monotonic()
        await until(lambda: len(consumer.requests) >= 6)
        # Two at a time, beside the one that is in their way, which is still there.
        rounds = 2 + (time.monotonic() - started) / subscription.RETRY_SECONDS
        assert len(consumer.requests) <= 1 + 2 * rounds
        assert pull.room.held == []
        await consumer.publish(1)
        await (await waiting.next_msg(timeout=30)).ack()
        await consumer.publish(40)
        await consumer.drained(pull, 40)
    assert warnings(logs) == ["Exceeded MaxWaiting"]


async def test_a_request_that_is_filled_by_its_bytes_has_ended(broker: Bench, consumer: Consumer) -> None:
    """The server says nothing then; the room that is made is asked for again at once."""
    await consumer.make()
    js = broker.client.jetstream()
    await js.publish(f"{consumer.stream}.a")
    probe = await consumer.pulling(Room(1))
    probe.start()
    await until(lambda: bool(probe.room.held))
    reply = probe.room.held[0][0]
    await consumer.drained(probe, 1)
    await probe.subscription.stop()
    # All sequences that follow have one digit, like the first.
    body = 100 - len(f"{consumer.stream}.a") - len(reply)
    requests = 2 if broker.fast_lane else 1
    pull = await consumer.pulling(Room(64, max_bytes=200 * requests))
    for _ in range(8):
        await js.publish(f"{consumer.stream}.a", b"x" * body)
    with capture_logs() as logs:
        pull.start()
        seen: list[int] = []
        while len(seen) < 8:
            await until(lambda: len(pull.room.held) >= 2)
            seen += await pull.settle(2)
    assert seen == list(range(2, 10))
    assert [entry["event"] for entry in logs] == []


async def test_a_push_consumer_fails_the_cell(consumer: Consumer) -> None:
    """It will never be pulled from."""
    await consumer.make(deliver_subject="pushed")
    pull = await consumer.pulling(Room(16))
    pull.start()
    await until(lambda: bool(pull.failures))
    assert [str(failure) for failure in pull.failures] == [
        "consumer real can't be pulled from: Consumer is push based"
    ]


async def test_a_bad_request_fails_the_cell(consumer: Consumer) -> None:
    """Repeating it would change nothing."""
    await consumer.make(priority_policy="overflow", priority_groups=["some"])
    pull = await consumer.pulling(Room(16))
    pull.start()
    await until(lambda: bool(pull.failures))
    assert [str(failure) for failure in pull.failures] == [
        "consumer real can't be pulled from: Bad Request - Priority Group missing"
    ]


async def test_a_deleted_consumer_fails_the_cell_once(consumer: Consumer) -> None:
    """However many requests were open."""
    await consumer.make(max_batch=4)
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(16))
        pull.start()
        await until(lambda: bool(consumer.requests))
        await consumer.delete()
        await until(lambda: bool(pull.failures))
    assert [str(failure) for failure in pull.failures] == [
        "consumer real is gone from the server; 'understudy run' makes it again, "
        "and a new one starts where the actor's 'start' says"
    ]
    assert warnings(logs) == []


async def test_a_consumer_made_anew_while_nothing_was_asked_for_fails_the_cell(consumer: Consumer) -> None:
    """Before it is asked for anything: its sequences may mean other messages."""
    await consumer.make()
    pull = await consumer.pulling(Room(4))
    pull.start()
    await consumer.publish(4)
    await until(lambda: len(pull.room.held) == 4)
    await consumer.delete()
    await consumer.configure("create")
    await asyncio.sleep(2 * subscription.UNHEARD_SECONDS)
    asked = len(consumer.requests)
    await pull.settle(4)
    await until(lambda: bool(pull.failures))
    assert [str(failure) for failure in pull.failures] == [
        "consumer real was deleted and made again; "
        "what this cell holds is not the new one's, and the restarted cell begins with that"
    ]
    assert len(consumer.requests) == asked


async def test_a_paused_consumer_lets_requests_expire(consumer: Consumer) -> None:
    """Whatever is published meanwhile comes when it goes on."""
    await consumer.make()
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(16))
        pull.start()
        await until(lambda: bool(consumer.requests))
        await consumer.pause("2099-01-01T00:00:00Z")
        await consumer.publish(40)
        asked = len(consumer.requests)
        await until(lambda: len(consumer.requests) > asked)
        assert pull.room.held == []
        await consumer.pause("0001-01-01T00:00:00Z")
        await consumer.drained(pull, 40)
    assert warnings(logs) == []


STATUSES: dict[str, list[str]] = {
    "404 No Messages": [],
    "408 Requests Pending": [],
    "408 Interest Expired": ["Nats-Pending-Messages: 16", "Nats-Pending-Bytes: 9"],
    "409 Leadership Change": ["Nats-Pending-Messages: 16", "Nats-Pending-Bytes: 9"],
    "409 Server Shutdown": ["Nats-Pending-Messages: 16", "Nats-Pending-Bytes: 9"],
    "409 Exceeded MaxWaiting": [],
    "409 What a later server may say": [],
    "503": ["Nats-Subject: x"],
}


@pytest.mark.parametrize("status", STATUSES)
async def test_a_request_that_ends_early_is_repeated_after_a_pause(
    broker: Bench, consumer: Consumer, status: str
) -> None:
    """One warning for a whole row, no failure, and no room is lost."""
    await consumer.make()
    async with consumer.impostor() as fake:
        fake.answer = lambda reply: fake.say(reply, status, *STATUSES[status])
        with capture_logs() as logs:
            pull = await consumer.pulling(Room(8), fake.url)
            pull.start()
            started = time.monotonic()
            await until(lambda: len(fake.requests) >= 4)
            assert time.monotonic() - started > 2.5 * subscription.RETRY_SECONDS
            fake.end()
            await consumer.publish(40)
            await until(lambda: len(pull.room.held) == 8)
            await consumer.drained(pull, 40)
        assert warnings(logs) == [status.partition(" ")[2] or "pull request ended"]
        assert pull.failures == []


@pytest.mark.parametrize("status", ["409 Leadership Change", "409 Batch Completed", "408 Request Timeout"])
async def test_a_status_before_the_last_deliveries_ends_nothing_yet(
    broker: Bench, consumer: Consumer, status: str
) -> None:
    """A consumer with replicas sends deliveries later; the pending count says what won't come."""
    await consumer.make()
    async with consumer.impostor() as fake:
        pull = await consumer.pulling(Room(4), fake.url)
        pull.start()
        await until(lambda: bool(fake.requests))
        (first,) = fake.requests
        missing = 0 if status == "409 Batch Completed" else 1
        fake.deliver(first, 1)
        fake.say(first, status, f"Nats-Pending-Messages: {missing}", "Nats-Pending-Bytes: 99")
        await until(lambda: len(pull.room.held) == 1)
        # Longer than the pause after a request that has ended.
        await asyncio.sleep(2 * subscription.RETRY_SECONDS)
        assert len(fake.requests) == 1
        for sequence in range(2, 5 - missing):
            fake.deliver(first, sequence)
        await until(lambda: len(pull.room.held) == 4 - missing)
        if missing:
            await until(lambda: len(fake.requests) == 2)
            fake.say(fake.requests[1], "408 Request Timeout")
        fake.end()
        pull.room.held.clear()
        pull.subscription.settled()
        await consumer.publish(8)
        await consumer.drained(pull, 8)


async def test_an_idle_heartbeat_ends_nothing(broker: Bench, consumer: Consumer) -> None:
    """What was asked for still comes."""
    await consumer.make()
    async with consumer.impostor() as fake:
        with capture_logs() as logs:
            pull = await consumer.pulling(Room(2), fake.url)
            pull.start()
            await until(lambda: bool(fake.requests))
            (first,) = fake.requests
            fake.say(first, "100 Idle Heartbeat", "Nats-Last-Consumer: 7", "Nats-Last-Stream: 9")
            fake.deliver(first, 1)
            fake.say(first, "100 Idle Heartbeat")
            fake.deliver(first, 2)
            await until(lambda: len(pull.room.held) == 2)
            assert fake.requests == [first]
            fake.end()
        assert warnings(logs) == []


async def test_requests_live_longer_while_they_bring_nothing(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fourth on, until something comes."""
    monkeypatch.setattr(subscription, "EXPIRES_SECONDS", 0.1)
    monkeypatch.setattr(subscription, "IDLE_EXPIRES_SECONDS", 0.2)
    await consumer.make()
    pull = await consumer.pulling(Room(16))
    pull.start()

    def expires() -> list[float]:
        return [demand["expires"] / 1e9 for _, demand in consumer.requests]

    await until(lambda: len(expires()) >= 5)
    await consumer.publish(1)
    await until(lambda: 0.1 in expires()[5:])
    assert expires()[:3] == [0.1] * 3
    assert set(expires()[3 : expires().index(0.1, 3)]) == {0.2}
    assert expires().index(0.1, 3) >= 5
    await consumer.drained(pull, 1)


async def test_a_lost_request_is_given_up_after_its_time(
    broker: Bench, consumer: Consumer, lost: Lost
) -> None:
    """One warning, new inboxes, and no room is lost."""
    lost.first = 2
    await consumer.make()
    async with consumer.impostor() as fake:
        # Twice: whoever hears the requests says nothing.
        fake.rewrites = 2
        with capture_logs() as logs:
            pull = await consumer.pulling(Room(8), fake.url)
            pull.start()
            await until(lambda: len(fake.requests) == 2)
            assert inbox_of(fake.requests[0]) != inbox_of(fake.requests[1])
            assert f"{inbox_of(fake.requests[0])}.*" not in fake.subscribed.values()
            await consumer.publish(40)
            await until(lambda: len(pull.room.held) == 8)
            await consumer.drained(pull, 40)
        assert warnings(logs) == ["a pull request was lost"]


# A subscription that gets this wrong strands something in about every other one.
@pytest.mark.parametrize("_round", range(4))
async def test_a_lost_request_does_not_strand_what_the_other_is_sent(
    module_nats_server: NatsServer, tmp_path: Path, lost: Lost, _round: int
) -> None:
    """The other, which only the fast lane has, ends before both begin anew: nothing waits for `ack_wait`."""
    lost.first = 1
    async with bench(module_nats_server.url, tmp_path) as broker:
        consumer = Consumer(broker, f"S{next(_names)}")
        await consumer.make(max_batch=20_000, max_ack_pending=-1)
        published, warned = await lose_one_of_two(broker, consumer)
        assert warned == ["a pull request was lost"]
        assert (await consumer.info())["delivered"]["consumer_seq"] == published


async def lose_one_of_two(broker: Bench, consumer: Consumer) -> tuple[int, list[str]]:
    """Have the first request never answered, and keep the other busy until that is noticed.

    Returns:
        How many messages were published and settled, and what was warned of.
    """
    async with consumer.impostor() as fake:
        fake.rewrites = 1
        with capture_logs() as logs:
            pull = await consumer.pulling(Room(40_000), fake.url)
            pull.start()
            await until(lambda: len(fake.requests) == 1 and len(consumer.requests) == 1)
            settled = published = 0
            # Acknowledged: the server drops what its ingest queue has no room for.
            js = broker.client.jetstream(publish_async_max_pending=1000)
            while not warnings(logs):
                # Faster than they are settled, so that there is always something on its way.
                for _ in range(100):
                    await js.publish_async(f"{consumer.stream}.a", b"", wait_stall=15.0)
                published += 100
                settled += len(await pull.settle(len(pull.room.held)))
                await asyncio.sleep(0)
            await js.publish_async_completed()
            await consumer.drained(pull, published - settled)
        return published, warnings(logs)


async def test_what_an_event_loop_has_not_read_yet_is_not_lost(
    broker: Bench, consumer: Consumer, lost: Lost
) -> None:
    """A handler that held it up for longer than a request lives costs no redelivery."""
    lost.first = 1
    await consumer.make()

    def publish_elsewhere() -> None:
        async def publish() -> None:
            client = await nats.connect(broker.url)
            for _ in range(200):
                await client.jetstream().publish(f"{consumer.stream}.a", b"x" * 4000)
            await client.close()

        asyncio.run(publish())

    with capture_logs() as logs:
        pull = await consumer.pulling(Room(256, max_bytes=1 << 30))
        pull.start()
        await until(lambda: bool(consumer.requests))
        blocked_until = time.monotonic() + subscription.EXPIRES_SECONDS + 0.5
        thread = threading.Thread(target=publish_elsewhere)
        thread.start()
        thread.join()
        time.sleep(max(0, blocked_until - time.monotonic()))
        await until(lambda: len(pull.room.held) == 200)
        await consumer.drained(pull, 200)
    assert warnings(logs) == []
    assert (await consumer.info())["delivered"]["consumer_seq"] == 200


async def test_each_connection_has_inboxes_of_its_own(consumer: Consumer) -> None:
    """The old ones are given up, so that what lives on in the server brings nothing."""
    await consumer.make()
    async with consumer.impostor() as between:
        between.end()
        pull = await consumer.pulling(Room(8), between.url)
        pull.start()
        await until(lambda: bool(consumer.requests))
        for _ in range(3):
            before = consumer.requests[-1][0]
            asked = len(consumer.requests)
            between.cut()
            await until(lambda: len(consumer.requests) > asked)  # noqa: B023
            assert inbox_of(consumer.requests[-1][0]) != inbox_of(before)
            assert f"{inbox_of(before)}.*" not in between.subscribed.values()
        await consumer.publish(40)
        await until(lambda: len(pull.room.held) == 8)
        await consumer.drained(pull, 40)


async def test_a_request_that_was_still_to_be_written_brings_nothing(
    broker: Bench, consumer: Consumer
) -> None:
    """It would bring what is newer than what was lost with the connection."""
    await consumer.make()
    async with proxy(broker.url) as between:
        pull = await consumer.pulling(Room(8), between.url)
        pull.start()
        await until(lambda: bool(consumer.requests))
        left_over = consumer.requests[-1][0]
        between.refusing = True
        between.cut()
        await until(lambda: not pull.client.is_connected)
        # As one that the broken connection had not taken yet.
        demand = json.dumps({"batch": 3, "expires": 5_000_000_000}).encode()
        await pull.client.publish(f"{NEXT}.{consumer.stream}.{consumer.durable}", demand, reply=left_over)
        await consumer.publish(3)
        pull.subscription.pause()
        between.refusing = False
        await until(lambda: (left_over, json.loads(demand)) in consumer.requests)
        await reconnected(pull.client)
        await asyncio.sleep(0.2)
        assert pull.room.held == []
        assert (await consumer.info())["delivered"]["consumer_seq"] == 0
        pull.subscription.resume()
        await consumer.drained(pull, 3)


async def test_what_is_not_settled_makes_no_slow_consumer(broker: Bench, consumer: Consumer) -> None:
    """Neither here nor in the server: no more is sent than there is room for."""
    await consumer.make()
    with capture_logs() as logs:
        pull = await consumer.pulling(Room(600, max_bytes=1 << 30))
        # Before the first request: it would expire with a part, and there is too little room for the rest.
        await consumer.publish(1500, 1000)
        pull.start()
        await until(lambda: len(pull.room.held) == 600)

        async def the_rest_waits() -> bool:
            # The server counts what is published a moment after it has confirmed it.
            info = await consumer.info()
            return (info["num_ack_pending"], info["num_pending"]) == (600, 900)

        await until(the_rest_waits)
        await consumer.drained(pull, 1500)
    assert [entry["event"] for entry in logs] == []
