"""Credit, counted at the socket: deliveries plus demand less settlements never exceed the mailbox."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from support.cells import Bench, CellRun, bench, until
from support.nats import NatsServer
from support.wire import Account, Connected, Delivered, Demanded, Ended, FrameReader, Settled, Tap, tap
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell import fetch_ahead
from understudy.runtime.jetstream import settlement
from understudy.runtime.jetstream.api import consumer_info
from understudy.runtime.jetstream.pinning import pinned_id, unpin
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stream import Stream

DURABLE = "credit-taker"
KINDS: dict[str, dict[str, Any]] = {
    "shared": {},
    "shared, four at once": {"concurrency": 4},
    "keyed": {"key": lambda body: body[4:5]},
    "ordered": {"ordered": True},
}
_numbers = itertools.count()


class Taken:
    """What an actor has handled, and what it is to do: bodies begin with a number of four bytes."""

    def __init__(self, stream: str, deed: Callable[[int, Context], Any] | None = None) -> None:
        self.stream = stream
        self.subject = f"{stream.lower()}.placed"
        self.handled: Counter[int] = Counter()
        self.gate = asyncio.Semaphore(0)
        self.deed = deed

    def app(self, **options: Any) -> App:
        """Return an app whose actor notes what it handles here."""
        taken = self

        class Taker(Actor):
            @handles(f"{self.stream.lower()}.>")
            async def placed(self, body: bytes, ctx: Context) -> None:
                number = int.from_bytes(body[:4], "big")
                if taken.deed is not None:
                    await taken.deed(number, ctx)
                taken.handled[number] += 1

        return App(
            "credit",
            streams=[Stream(self.stream, subjects=[f"{self.stream.lower()}.>"])],
            children=[Child(Taker, **options)],
        )

    async def wait(self, _number: int, _ctx: Context) -> None:
        """Wait until the test lets one more through."""
        await self.gate.acquire()

    def release(self, count: int) -> None:
        """Let some more through."""
        for _ in range(count):
            self.gate.release()


async def place(made: Bench, subject: str, numbers: range, sizes: list[int] | None = None) -> None:
    """Publish numbered bodies, the sizes by turns."""
    sizes = sizes or [8]
    await asyncio.gather(
        *(
            made.publisher.publish_raw(
                subject,
                number.to_bytes(4, "big")
                + bytes([number % 5])
                + b"x" * max(0, sizes[number % len(sizes)] - 5),
            )
            for number in numbers
        )
    )


async def tapped_cell(made: Bench, way: Tap, app: App) -> CellRun:
    """Start the app's cell behind a tap."""
    await ensure_topology(made.client, app.spec(), apply=True)
    cell = CellRun(app, way.url, made.directory)
    made.cells.append(cell)
    await cell.start()
    return cell


async def ack_pending(made: Bench, stream: str) -> int:
    """Return how many deliveries the server waits for the acks of."""
    info = await consumer_info(made.client, stream, DURABLE)
    assert info is not None
    return int(info["num_ack_pending"])


class Course(NamedTuple):
    """What happens in one run of the property.

    Args:
        kind: of actor.
        capacity, max_bytes: of its mailbox.
        messages: how many there are.
        sizes, delays: of the messages, and of their handlers in seconds, by turns.
        trouble: what goes wrong with the first attempt of every seventh message.
        cuts: after which parts of the messages the connection ends.
    """

    kind: str
    capacity: int
    max_bytes: int
    messages: int
    sizes: list[int]
    delays: list[float]
    trouble: list[str]
    cuts: list[float]

    def trouble_of(self, number: int) -> str:
        """Return what goes wrong with a message, empty if nothing does."""
        place, rest = divmod(number, 7)
        return self.trouble[place] if rest == 0 and place < len(self.trouble) else ""


courses = st.builds(
    Course,
    kind=st.sampled_from(sorted(KINDS)),
    capacity=st.integers(1, 300),
    max_bytes=st.sampled_from([1, 100, 1000, 10_000, 1 << 20]),
    messages=st.integers(1, 300),
    sizes=st.lists(st.sampled_from([5, 90, 150, 3000]), min_size=1, max_size=5),
    delays=st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.01]), min_size=1, max_size=5),
    trouble=st.lists(st.sampled_from(["retry", "reject", "breaker"]), max_size=12),
    cuts=st.lists(st.floats(0.05, 0.95), max_size=3),
)


async def follow(course: Course, url: str, directory: Path, stream: str) -> Account:
    """Run a course from the first message to the last settlement, and return what was seen at the socket."""
    troubled: set[int] = set()

    async def deed(number: int, ctx: Context) -> None:
        await asyncio.sleep(course.delays[number % len(course.delays)])
        trouble = course.trouble_of(number)
        if trouble == "reject":
            raise Reject("not ours")
        if number in troubled:
            return
        troubled.add(number)
        if trouble == "retry":
            raise Retry(delay_seconds=0.02)
        if trouble == "breaker":
            async with ctx.breaker("service"):
                raise ConnectionError("down")

    taken = Taken(stream, deed)
    app = taken.app(
        mailbox=Mailbox(capacity=course.capacity, max_bytes=course.max_bytes),
        retry=RetryPolicy(min_delay_seconds=0, max_delay_seconds=0.02, max_attempts=10),
        breakers=[CircuitBreaker("service", fail_max=1, reset_timeout_seconds=0.05)],
        ack_wait_seconds=1.5,
        hang_timeout_seconds=0.9,
        **KINDS[course.kind],
    )
    expected = {number for number in range(course.messages) if course.trouble_of(number) != "reject"}
    with capture_logs():
        async with bench(url, directory) as made, tap(url, stream, DURABLE) as way:
            cell = await tapped_cell(made, way, app)
            placing = asyncio.create_task(place(made, taken.subject, range(course.messages), course.sizes))
            for cut in sorted(course.cuts):
                await until(lambda: len(taken.handled) >= cut * len(expected))  # noqa: B023
                await way.hang_up()
            await placing
            await made.settled(app)
            await cell.stop()
            await made.client.jetstream().delete_stream(stream)
    assert set(taken.handled) == expected
    return way.account


# Eleven of them.
@pytest.mark.timeout(600)
@given(course=courses)
@example(course=Course("shared", 1, 1, 20, [90], [0.0], ["retry", "breaker"], [0.5]))
@example(course=Course("keyed", 64, 1000, 300, [5, 90, 3000], [0.001], ["breaker", "retry"], [0.3, 0.6]))
@example(course=Course("shared", 300, 10_000, 200, [900], [0.002], [], [0.5]))
# Not shrunk: a course takes a second or two.
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_what_is_held_and_asked_for_never_exceeds_the_mailbox(
    module_nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory, course: Course
) -> None:
    """In messages and in bytes, at every moment, whatever the handlers do and however often we reconnect.

    Only what a sole owner has come again isn't bounded in bytes: its order comes first.
    """
    stream = f"CREDIT{next(_numbers)}"
    account = asyncio.run(follow(course, module_nats_server.url, tmp_path_factory.mktemp("cells"), stream))
    assert account.count(Connected) > len(course.cuts)
    assert account.count(Delivered) >= course.messages
    excesses = account.excesses(course.capacity, course.max_bytes)
    if course.kind == "keyed" and course.cuts:
        excesses = [excess for excess in excesses if excess.held + excess.demanded > course.capacity]
    assert excesses == []


@pytest.mark.parametrize("kind", ["shared", "keyed"])
async def test_with_a_blocked_handler_the_server_never_has_more_out_than_the_mailbox_holds(
    nats_server: NatsServer, tmp_path: Path, kind: str
) -> None:
    """Whether it is filled by several pull requests, partly emptied, or its connection is cut."""
    capacity = 16
    taken = Taken("CREDIT")
    taken.deed = taken.wait
    app = taken.app(mailbox=Mailbox(capacity=capacity), **KINDS[kind])
    async with bench(nats_server.url, tmp_path) as made, tap(nats_server.url, "CREDIT", DURABLE) as way:
        cell = await tapped_cell(made, way, app)

        async def stays_within(least: int) -> None:
            async def is_quiet() -> bool:
                return await ack_pending(made, "CREDIT") == cell.status.held >= least

            await until(is_quiet)
            for _ in range(30):
                assert least <= await ack_pending(made, "CREDIT") <= capacity

        await place(made, taken.subject, range(6))
        await until(lambda: cell.status.held == 6)
        # What the rest of the mailbox is asked for expires, and is asked for again.
        expired, asked = way.account.count(Ended), way.account.count(Demanded)
        await until(lambda: way.account.count(Ended) > expired and way.account.count(Demanded) > asked)
        await place(made, taken.subject, range(6, 100))
        await stays_within(capacity)
        way.cut()
        await until(lambda: way.connections == 2)
        await stays_within(capacity)
        taken.release(11)
        await until(lambda: len(taken.handled) == 11)
        # It is filled again when half of it is free, not before.
        await stays_within(capacity // 2)
        assert way.account.most_held() == capacity
        taken.release(100)
        await made.settled(app)
    assert taken.handled == Counter(range(100))


@pytest.mark.timeout(240)
async def test_naks_with_a_long_delay_stop_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """They count against the consumer's max_ack_pending until they come again; the rest still flows."""

    async def deed(number: int, ctx: Context) -> None:
        if number < 2000:
            raise Retry(delay_seconds=600)

    taken = Taken("CREDIT", deed)
    app = taken.app(mailbox=Mailbox(capacity=64))
    async with bench(nats_server.url, tmp_path) as made:
        cell = await made.cell(app)
        await place(made, taken.subject, range(5000))
        await until(lambda: len(taken.handled) == 3000, 100)
        assert set(taken.handled) == set(range(2000, 5000))
        await until(lambda: cell.status.held == 0)

        async def only_naks_are_pending() -> bool:
            # The last acks are on their way.
            return await ack_pending(made, "CREDIT") == 2000

        await until(only_naks_are_pending)
        assert cell.status.counters["redelivered"] == 0


@pytest.mark.parametrize("fast_lane", [True, False])
@pytest.mark.parametrize("narrow", ["bytes", "rate"])
async def test_acks_wait_for_no_others_when_nothing_else_can_come(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: str, *, fast_lane: bool
) -> None:
    """As in a mailbox that has room for one at a time, by its bytes or since the handler was slow before."""
    monkeypatch.setattr(settlement, "ACK_DELAY_SECONDS", 5.0)
    monkeypatch.setattr(fetch_ahead, "FIRST", 1)
    taken = Taken("CREDIT")
    app = taken.app(mailbox=Mailbox(max_bytes=1) if narrow == "bytes" else Mailbox())
    async with bench(nats_server.url, tmp_path, fast_lane=fast_lane) as made:
        cell = await made.cell(app)
        await place(made, taken.subject, range(20))
        # Each for as long as that: more than a minute and a half.
        await until(lambda: len(taken.handled) == 20)
        await cell.stop()
        assert await ack_pending(made, "CREDIT") == 0


async def test_an_owner_that_was_unpinned_asks_within_the_bytes_it_has_left(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """It is a candidate again, which asks for one, and holds what it had as the owner."""
    taken = Taken("CREDIT")
    taken.deed = taken.wait
    app = taken.app(mailbox=Mailbox(max_bytes=1000), ordered=True)
    async with bench(nats_server.url, tmp_path) as made, tap(nats_server.url, "CREDIT", DURABLE) as way:
        cell = await tapped_cell(made, way, app)
        await place(made, taken.subject, range(1), [600])
        await until(lambda: cell.status.held == 1)
        info = await consumer_info(made.client, "CREDIT", DURABLE)
        assert info is not None
        assert await unpin(made.client, "CREDIT", DURABLE, pinned_id(info))
        await until(
            lambda: any(
                isinstance(event, Demanded) and (event.batch, event.max_bytes) == (1, 400)
                for event in way.account.events
            )
        )
        ended = way.account.count(Ended)
        await place(made, taken.subject, range(1, 3), [600])
        # They are too large for what is left, which the request learns.
        await until(lambda: way.account.count(Ended) > ended)
        taken.release(3)
        await made.settled(app)
    assert way.account.excesses(1024, 1000) == []
    assert taken.handled == Counter(range(3))


def test_the_account_sees_an_excess() -> None:
    """Else its silence above would say nothing."""
    account = Account("S", "d")
    frames = FrameReader()
    request = b'{"batch": 2, "max_bytes": 200}'
    for frame in frames.feed(
        b"CONNECT {}\r\nSUB _IN.* 1\r\nPUB $JS.API.CONSUMER.MSG.NEXT.S.d _IN.1 %d\r\n%s\r\n"
        % (len(request), request)
    ):
        account.outward(frame)
    for sequence in (1, 2):
        for frame in frames.feed(
            b"MSG s 1 $JS.ACK.S.d.1.%d.%d.0.0 30\r\n%s\r\n" % (sequence, sequence, b"x" * 30)
        ):
            account.inward(frame)
    assert account.excesses(2, 200) == []
    assert [excess.event for excess in account.excesses(1, 200)] == account.events[1:]
    # The server counts subject and reply subject too, so that fewer bytes of bodies can come than are left.
    amounts = [(excess.held_bytes, excess.demanded_bytes) for excess in account.excesses(2, 150)]
    assert amounts == [(0, 200), (30, 148)]
    again = list(
        frames.feed(
            b"PUB $JS.ACK.S.d.1.1.1.0.0  4\r\n+WPI\r\nPUB $JS.API.CONSUMER.MSG.NEXT.S.d _IN.2 28\r\n"
            b'{"batch":1, "max_bytes": 70}\r\nPUB $JS.ACK.S.d.1.1.1.0.0  0\r\n\r\n'
        )
    )
    for frame in again:
        account.outward(frame)
    # An extension settles nothing, so the second request is one too many until the ack.
    (excess,) = account.excesses(2, 200)
    assert excess.event == Demanded(b"_IN.2", 1, 70)
    assert account.events[-1] == Settled(1)
