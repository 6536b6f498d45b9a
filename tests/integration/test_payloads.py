"""Bodies, headers and keys of every size and content, from publisher to handler and dead letter."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from support.cells import Bench, CellRun, bench, until
from support.nats import NatsServer
from support.wire import Tap, tap
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.errors import PublishError
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject
from understudy.actors.policies import RetryPolicy
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stream import Stream

STREAM = Stream("RAW", subjects=["raw.>"], storage="memory")
# What looks like a frame of the protocol where a body is expected.
NASTY = (
    b"",
    b"\r\n",
    b"MSG x 1 2\r\n",
    b"\r\nMSG raw.in 1 $JS.ACK.RAW.raw-keeper.1.7.7.0.0 5\r\nhello\r\n",
    b"HMSG raw.in 1 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    b"\r\nPING\r\n",
    b"-ERR 'Authorization Violation'\r\n",
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
)


@pytest.fixture
async def raw(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker for the app raw."""
    async with bench(nats_server.url, tmp_path) as made:
        yield made


class Kept:
    """What an actor was given, by stream sequence."""

    def __init__(self) -> None:
        self.bodies: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.runs = 0

    def app(self, *, reject: bool = False) -> App:
        """Return an app whose actor keeps what it is given here."""
        kept = self

        class Keeper(Actor):
            @handles("raw.in")
            async def keep(self, body: bytes, ctx: Context) -> None:
                kept.runs += 1
                kept.bodies[ctx.delivery.sequence] = body
                kept.headers[ctx.delivery.sequence] = dict(ctx.delivery.headers)
                if reject:
                    raise Reject("not ours")

        return App("raw", streams=[STREAM], children=[Keeper])


async def tapped_cell(raw: Bench, way: Tap, app: App) -> CellRun:
    """Start the app's cell behind a tap."""
    await ensure_topology(raw.client, app.spec(), apply=True)
    cell = CellRun(app, way.url, raw.directory)
    raw.cells.append(cell)
    await cell.start()
    return cell


async def publish_all(publisher: Publisher, bodies: list[bytes]) -> dict[int, bytes]:
    """Publish them, every other one with headers beside its id, and return them by stream sequence."""

    async def publish(number: int, body: bytes) -> int:
        headers = {"Number": str(number), "Colons": "a: b: c"} if number % 2 else {}
        return (await publisher.publish_raw("raw.in", body, headers)).seq

    sequences = await asyncio.gather(*(publish(number, body) for number, body in enumerate(bodies)))
    return dict(zip(sequences, bodies, strict=True))


def frame_bytes(headers: Mapping[str, str]) -> int:
    """Return how many bytes headers take on the wire: ADR-4."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return len(f"NATS/1.0\r\n{lines}\r\n")


async def test_bodies_of_the_smallest_and_the_largest_size_arrive(raw: Bench) -> None:
    """None at all, one byte, and max_payload, whether the headers take part of it or there are none."""
    kept = Kept()
    app = kept.app()
    await raw.cell(app)
    most = raw.client.max_payload
    headers = {"Nats-Msg-Id": "largest"}
    largest = random.randbytes(most - frame_bytes(headers))
    sent = await publish_all(raw.publisher, [b"", b"x"])
    sent[(await raw.publisher.publish_raw("raw.in", largest, headers)).seq] = largest
    bare = random.randbytes(most)
    sent[(await raw.client.jetstream().publish("raw.in", bare)).seq] = bare
    await raw.settled(app)
    assert kept.bodies == sent
    assert kept.runs == 4


async def test_one_byte_too_many_is_refused_and_nothing_else(nats_server: NatsServer, raw: Bench) -> None:
    """The server would close the connection for good; so it is never sent, and the next one goes out."""
    await ensure_topology(raw.client, Kept().app().spec(), apply=True)
    most = raw.client.max_payload
    headers = {"Nats-Msg-Id": "too large"}
    body = b"x" * (most - frame_bytes(headers) + 1)
    async with tap(nats_server.url, "RAW", "raw-keeper") as way, Publisher.connect(way.url) as publisher:
        with pytest.raises(PublishError) as raised:
            await publisher.publish_raw("raw.in", body, headers)
        assert str(raised.value) == (
            f"raw.in: body and headers are {most + 1} bytes, the server takes {most}; "
            "publish less, or raise the server's max_payload"
        )
        assert (await publisher.publish_raw("raw.in", body[:-1], headers)).seq == 1
        assert way.connections == 1


async def test_an_output_that_is_too_large_fails_its_event_alone(nats_server: NatsServer, raw: Bench) -> None:
    """It becomes a dead letter that says so, on the connection that everything else uses."""
    most = raw.client.max_payload

    class Swelling(Actor, retry=RetryPolicy(max_attempts=2, min_delay_seconds=0, max_delay_seconds=0)):
        @handles("raw.in")
        async def swell(self, body: bytes, ctx: Context) -> None:
            ctx.publish(body * most if body == b"x" else body, subject="raw.out")

    app = App("raw", streams=[STREAM], children=[Swelling])
    async with tap(nats_server.url, "RAW", "raw-swelling") as way:
        cell = await tapped_cell(raw, way, app)
        await publish_all(raw.publisher, [b"a", b"x", b"b"])
        await raw.settled(app)
        (letter,) = await raw.dead_letters(app)
        assert letter.data == b"x"
        assert letter.headers["Understudy-Reason"] == "exhausted"
        assert f"bytes, the server takes {most}" in letter.headers["Understudy-Error"]
        assert cell.status.counters["published"] == 2
        assert way.connections == 1


async def test_dead_letters_hold_a_body_of_any_size_that_fits(raw: Bench) -> None:
    """Ours add headers, so one of max_payload is left out, and named by stream and sequence."""
    app = Kept().app(reject=True)
    await raw.cell(app)
    most = raw.client.max_payload
    bodies = [b"", b"x", random.randbytes(most - 2048)]
    sent = await publish_all(raw.publisher, bodies)
    bare = await raw.client.jetstream().publish("raw.in", random.randbytes(most))
    await raw.settled(app)
    letters = {int(letter.headers["Understudy-Sequence"]): letter for letter in await raw.dead_letters(app)}
    assert letters.keys() == {*sent, bare.seq}
    for sequence, body in sent.items():
        assert (letters[sequence].data or b"") == body
        assert "Understudy-Body-Left-Out" not in letters[sequence].headers
    assert not letters[bare.seq].data
    assert letters[bare.seq].headers["Understudy-Body-Left-Out"] == f"RAW sequence {bare.seq}"


async def test_headers_of_32_kib_reach_the_handler_and_the_dead_letter(raw: Bench) -> None:
    """One long one and hundreds of short ones, as they were published."""
    kept = Kept()
    app = kept.app(reject=True)
    await raw.cell(app)
    headers = {f"X-{number:04}": f"value: {number}" for number in range(600)}
    headers["X-Long"] = ""
    headers["X-Long"] = "y" * (32 * 1024 - frame_bytes(headers))
    sequence = (await raw.publisher.publish_raw("raw.in", b"body", headers)).seq
    # The few bytes of what a handler sees of them must not depend on what stands beside them.
    await publish_all(raw.publisher, [b"", b"small"])
    await raw.settled(app)
    seen = kept.headers[sequence]
    assert {name: value for name, value in seen.items() if name.startswith("X-")} == headers
    assert kept.headers[sequence + 2].items() >= {"Number": "1", "Colons": "a: b: c"}.items()
    letter = (await raw.dead_letters(app))[0]
    assert letter.data == b"body"
    assert letter.headers.items() >= headers.items()
    assert "Understudy-Headers-Left-Out" not in letter.headers


@pytest.mark.parametrize("pieces", [1, 7, 90])
async def test_frames_that_come_in_pieces_are_put_together(
    nats_server: NatsServer, raw: Bench, pieces: int
) -> None:
    """Wherever they are cut, and though the bodies look like frames themselves."""
    kept = Kept()
    app = kept.app()
    bodies = [NASTY[number % len(NASTY)] + bytes([number % 256]) * (number % 5) for number in range(160)]
    async with tap(nats_server.url, "RAW", "raw-keeper") as way:
        way.pieces = pieces
        await tapped_cell(raw, way, app)
        sent = await publish_all(raw.publisher, bodies)
        await raw.settled(app)
    assert kept.bodies == sent
    assert kept.runs == len(bodies)


async def test_large_bodies_among_small_arrive_byte_for_byte(nats_server: NatsServer, raw: Bench) -> None:
    """A megabyte comes in many reads, and what follows it in the last one is no part of it."""
    kept = Kept()
    app = kept.app()
    most = raw.client.max_payload - 512
    chance = random.Random(3)
    bodies: list[bytes] = []
    for number in range(20):
        middle = chance.randrange(60_000, most)
        nasty = NASTY[number % len(NASTY)]
        bodies.append(chance.randbytes(middle) + nasty + chance.randbytes(most - middle - len(nasty)))
        bodies += [nasty * chance.randrange(3) for _ in range(chance.randrange(60))]
        bodies.append(chance.randbytes(chance.randrange(60_000, 70_000)))
    async with tap(nats_server.url, "RAW", "raw-keeper") as way:
        way.pieces = 100_000
        await ensure_topology(raw.client, app.spec(), apply=True)
        # Published first, so that the mailbox is filled by large and small at once.
        sent = await publish_all(raw.publisher, bodies)
        await tapped_cell(raw, way, app)
        await raw.settled(app)
    assert kept.bodies.keys() == sent.keys()
    assert [sequence for sequence, body in sent.items() if kept.bodies[sequence] != body] == []
    assert kept.runs == len(bodies)


class _Key:
    """A key that is counted while somebody remembers it."""

    alive = 0

    def __init__(self, value: bytes) -> None:
        self.value = value
        _Key.alive += 1

    def __del__(self) -> None:
        _Key.alive -= 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


@pytest.mark.timeout(120)
async def test_a_hundred_thousand_keys_are_each_handled_in_order_and_forgotten(raw: Bench) -> None:
    """Nothing is kept of a key when its events are settled."""
    keys, again = 100_000, 2000
    seen: Counter[bytes] = Counter()
    most_alive = 0

    class Keyed(Actor, key=lambda body: _Key(body[:8])):
        orders: ClassVar[dict[bytes, list[int]]] = defaultdict(list)

        @handles("raw.in")
        async def note(self, body: bytes, ctx: Context) -> None:
            nonlocal most_alive
            seen[body[:8]] += 1
            most_alive = max(most_alive, _Key.alive)
            if len(body) > 8:
                self.orders[body[:8]].append(ctx.delivery.sequence)

    app = App("raw", streams=[STREAM], children=[Child(Keyed)])
    cell = await raw.cell(app)

    async def publish(first: int, count: int, more: bytes) -> None:
        bodies = (number.to_bytes(8, "big") + more for number in range(first, first + count))
        await asyncio.gather(*(raw.publisher.publish_raw("raw.in", body) for body in bodies))

    for first in range(0, keys, 1000):
        await publish(first, 1000, b"")
    for turn in range(3):
        await publish(0, again, bytes([turn]))
    await until(lambda: seen.total() >= keys + 3 * again, 90)
    await raw.settled(app)
    assert len(seen) == keys
    assert seen.total() == keys + 3 * again
    assert len(Keyed.orders) == again
    assert all(len(order) == 3 and order == sorted(order) for order in Keyed.orders.values())
    assert cell.status.held == 0
    assert 0 < most_alive <= 4 * cell.status.capacity
    # A lane may remember its last.
    assert _Key.alive <= 64
