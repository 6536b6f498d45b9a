"""The subscription's credit, counted at the socket: a room is emptied in every order, on both lanes."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from support.cells import Bench, bench, until
from support.nats import NatsServer
from support.pulling import Pulling, Room, pulling
from support.wire import Account, Delivered, Settled, tap
from understudy.runtime.jetstream import api, pull_request, subscription

EXPIRES_SECONDS = 0.1
DURABLE = "credit"
_numbers = itertools.count()


class Publish(NamedTuple):
    """So many messages of a size are published."""

    messages: int
    size: int


class Settle(NamedTuple):
    """What lies at these places of the room is settled."""

    places: list[int]
    how: Literal["ack", "nak", "late nak", "term"]


Step = Publish | Settle | Literal["pause", "resume", "expire"]
steps = st.one_of(
    st.builds(Publish, st.integers(1, 60), st.sampled_from([0, 10, 100, 500])),
    st.builds(
        Settle,
        st.lists(st.integers(0, 63), min_size=1, max_size=40),
        st.sampled_from(["ack", "ack", "nak", "late nak", "term"]),
    ),
    st.sampled_from(["pause", "resume", "expire"]),
)


async def settle(pull: Pulling, replies: list[bytes], how: str) -> None:
    """Settle some of what is in the room, each as soon as it has left it."""
    for reply in replies:
        pull.room.held = [(held, body) for held, body in pull.room.held if held != reply]
        match how:
            case "ack":
                pull.settlement.ack(reply)
            case "nak":
                await pull.settlement.nak(reply)
            case "late nak":
                await pull.settlement.nak(reply, 0.05)
            case _:
                await pull.settlement.term(reply, "no more")
        pull.subscription.settled()


async def take(step: Step, made: Bench, pull: Pulling, subject: str) -> int:
    """Do a step, and return how many messages it has published."""
    match step:
        case Publish(messages, size):
            await asyncio.gather(*(made.publisher.publish_raw(subject, b"x" * size) for _ in range(messages)))
            return messages
        case Settle(places, how):
            # What was just asked for or published may be on its way.
            await asyncio.sleep(0.01)
            held = [reply for reply, _ in pull.room.held]
            chosen = dict.fromkeys(held[place % len(held)] for place in places if held)
            await settle(pull, list(chosen), how)
        case "pause":
            pull.subscription.pause()
        case "resume":
            pull.subscription.resume()
        case "expire":
            await asyncio.sleep(1.2 * EXPIRES_SECONDS)
    return 0


async def follow(
    course: list[Step], url: str, directory: Path, *, stream: str, room: Room, fast_lane: bool
) -> Account:
    """Take all steps, settle what is left, and return what was seen at the socket."""
    consumer: dict[str, Any] = {
        "durable_name": DURABLE,
        "ack_policy": "explicit",
        "max_expires": round(EXPIRES_SECONDS * 1_000_000_000),
    }
    published = 0
    async with tap(url, stream, DURABLE) as way, bench(url, directory, fast_lane=fast_lane) as made:
        body: dict[str, Any] = {"name": stream, "subjects": [f"{stream}.>"], "storage": "memory"}
        await api.request(made.client, f"STREAM.CREATE.{stream}", body)
        body = {"stream_name": stream, "config": consumer, "action": "create"}
        await api.request(made.client, f"CONSUMER.CREATE.{stream}.{DURABLE}", body)
        pull = await pulling(made, room, stream, DURABLE, url=way.url)
        pull.start()
        for step in course:
            published += await take(step, made, pull, f"{stream}.a")
        pull.subscription.resume()

        async def is_settled() -> bool:
            await settle(pull, [reply for reply, _ in room.held], "ack")
            info = await api.consumer_info(made.client, stream, DURABLE)
            assert info is not None
            return bool(info["ack_floor"]["stream_seq"] == published)

        await until(is_settled)
        await pull.subscription.stop()
        assert pull.failures == []
        await api.request(made.client, f"STREAM.DELETE.{stream}")
    return way.account


@pytest.mark.parametrize("fast_lane", [True, False], ids=["fast lane", "public API"])
@given(
    course=st.lists(steps, max_size=10),
    capacity=st.integers(1, 64),
    max_bytes=st.sampled_from([1, 200, 1000, 5000, 1 << 20]),
)
@example(
    course=[Publish(60, 10), Settle([0, 1], "nak"), "pause", "expire", "resume"], capacity=1, max_bytes=1
)
@example(course=["expire", Publish(60, 100), Settle([5, 3, 9], "term")], capacity=16, max_bytes=1000)
# Not shrunk: a course takes half a second.
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_what_is_held_and_asked_for_never_exceeds_the_room(
    module_nats_server: NatsServer,
    tmp_path_factory: pytest.TempPathFactory,
    fast_lane: bool,
    course: list[Step],
    capacity: int,
    max_bytes: int,
) -> None:
    """In messages and in bytes, however it is emptied, paused and left alone; in the end nothing is left."""
    with (
        mock.patch.object(subscription, "RETRY_SECONDS", 0.02),
        # Else requests seem to be lost where all stands still for a moment.
        mock.patch.object(pull_request, "LOST_AFTER_SECONDS", 600.0),
        capture_logs() as logs,
    ):
        account = asyncio.run(
            follow(
                course,
                module_nats_server.url,
                tmp_path_factory.mktemp("credit"),
                stream=f"CREDIT{next(_numbers)}",
                room=Room(capacity, max_bytes),
                fast_lane=fast_lane,
            )
        )
    assert account.excesses(capacity, max_bytes) == []
    assert account.count(Settled) == account.count(Delivered)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == []
