"""What a sole owner has come again when it is pinned: everything unsettled, once, before anything newer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from support.cells import bench, until
from support.nats import NatsServer
from support.owners import DURABLE, STREAM, Owners, Run
from support.proxy import proxy
from understudy.actors.outcomes import Reject
from understudy.actors.policies import Mailbox
from understudy.runtime.cell import ownership
from understudy.runtime.cell.ownership import SoleOwner
from understudy.runtime.jetstream import api, subscription
from understudy.runtime.jetstream.settlement import Settlement, ack_subject
from understudy.runtime.jetstream.subscription import PullSubscription

DELETED = (20, 21, 30, 59)
MakeOwners = Callable[..., Owners]
Fetch = Callable[[int], Awaitable[None]]

EXPIRES = ("EXPIRES_SECONDS", "IDLE_EXPIRES_SECONDS")

pytestmark = pytest.mark.usefixtures("long_requests")


@pytest.fixture
async def make(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[MakeOwners]:
    """A broker, and what makes nodes with options."""
    async with bench(nats_server.url, tmp_path) as made:
        yield lambda **options: Owners(made, **options)


@pytest.fixture
def owners(make: MakeOwners) -> Owners:
    """A broker for nodes with a key and no other option."""
    return make()


class Paused:
    """Recoveries that wait until the test lets them go on.

    Attributes:
        entered: set when one has begun.
        go_on: lets all go on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        recover = SoleOwner.recover

        async def wait(owner: SoleOwner, in_hand: Collection[int], fetch: Fetch) -> int:
            self.entered.set()
            await self.go_on.wait()
            return await recover(owner, in_hand, fetch)

        monkeypatch.setattr(SoleOwner, "recover", wait)


async def naks(owners: Owners) -> list[str]:
    """Return a list that from now on gets the subject of each nak."""
    written: list[str] = []

    async def note(message: Msg) -> None:
        if message.data.startswith(b"-NAK"):
            written.append(message.subject)

    await owners.bench.client.subscribe(f"$JS.ACK.{STREAM}.{DURABLE}.>", cb=note)
    return written


async def limit_requests(owners: Owners, **limits: int) -> None:
    """Let no request ask the consumer for more than that."""
    body = {"stream_name": STREAM, "config": (await owners.info())["config"] | limits}
    await api.request(owners.bench.client, f"CONSUMER.CREATE.{STREAM}.{DURABLE}", body)


class Holding:
    """Node a, which holds events of one customer and handles them slowly, and node b, its standby."""

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self.first_ends = asyncio.Event()

    async def handle(self, run: Run) -> None:
        """Take long on node a, for the first event until it is told to end."""
        if run.node == "a":
            await (self.first_ends.wait() if run.number == 0 else asyncio.sleep(0.5))

    async def start(self, count: int) -> None:
        """Have node a hold so many events."""
        self.owners.handler = self.handle
        await self.owners.start("a")
        await self.owners.note(range(count))
        await until(lambda: self.owners.nodes["a"].status.held == count)
        await self.owners.start("b")
        await self.owners.stood_by("b")

    async def give_back(self) -> None:
        """Drain node a, which hands over most of what it holds."""
        stopping = asyncio.create_task(self.owners.nodes["a"].stop())
        await until(lambda: self.owners.state("a") == "draining")
        self.first_ends.set()
        await stopping


@pytest.fixture
async def holding(owners: Owners) -> Holding:
    """Two nodes, the first of which holds the numbers 0 to 49."""
    made = Holding(owners)
    await made.start(50)
    return made


@pytest.mark.parametrize("blocked", [[0], [0, 777, 1400], [1999]], ids=["oldest", "between", "newest"])
async def test_old_unsettled_events_are_found_among_many_that_are_acked(
    owners: Owners, monkeypatch: pytest.MonkeyPatch, blocked: list[int]
) -> None:
    """They come before anything newer; where they are the oldest or the newest, little is looked through."""
    monkeypatch.setattr(ownership, "FIRST_PART", 50)
    opened = asyncio.Event()

    async def wait(run: Run) -> None:
        if run.node == "a" and run.number in blocked:
            await opened.wait()

    owners.handler = wait
    await owners.start("a")
    for first, last in zip([0, *(n + 1 for n in blocked)], [*blocked, 2000], strict=True):
        await owners.note(range(first, last), 20)
        await owners.note(range(last, last + (last in blocked)), prefix=f"blocked{last}-")
    await owners.all_handled(2000)
    await until(lambda: owners.nodes["a"].status.held == len(blocked))
    await owners.start("b")
    await owners.stood_by("b")
    written = await naks(owners)
    await owners.unpin()
    for number, customer in enumerate(blocked, start=2000):
        await owners.note(range(number, number + 1), prefix=f"blocked{customer}-")
    await owners.all_handled(2000 + len(blocked))
    assert sorted(owners.by("b")) == [*blocked, *range(2000, 2000 + len(blocked))]
    assert owners.in_order("b")
    assert len(written) <= 2 * 50 or blocked == [0, 777, 1400]
    opened.set()


def test_every_sequence_is_looked_at_once_the_ends_first() -> None:
    """However much lies between the oldest that is unsettled and the newest."""
    for first, last in ((1, 0), (1, 1), (5, 2052), (5, 2053), (7, 4102), (7, 4103), (100, 200_000)):
        parts = [list(part) for part in ownership._from_both_ends(first, last)]
        assert sorted(itertools.chain(*parts)) == list(range(first, last + 1))
        assert all(part == sorted(part) for part in parts)
        if last >= first:
            assert {first, last} <= set(parts[0])
    assert len(list(ownership._from_both_ends(1, 20_000_000))) <= 5


async def test_gaps_and_deleted_events_do_not_hold_a_recovery_up(owners: Owners) -> None:
    """What isn't the consumer's, and what the stream has no longer, isn't waited for."""
    holding = Holding(owners)
    owners.handler = holding.handle
    await owners.start("a")
    for number in range(0, 60, 2):
        await owners.note(range(number, number + 2))
        await owners.bench.publisher.publish_raw("notes.other", b"")
    await until(lambda: owners.nodes["a"].status.held == 60)
    for number in DELETED:
        # Every third message of the stream isn't the consumer's.
        await owners.bench.client.jetstream().delete_msg(STREAM, 1 + number + number // 2)
    await owners.start("b")
    await owners.stood_by("b")
    with capture_logs() as logs:
        await holding.give_back()
        await owners.all_handled(56)
    assert len(owners.by("a")) < 10
    assert [run.number for run in owners.runs] == [n for n in range(60) if n not in DELETED]
    assert "redeliveries did not come" not in [entry["event"] for entry in logs]


async def test_a_mailbox_that_was_full_in_bytes_is_recovered_whole(make: MakeOwners) -> None:
    """Though what pinned the new owner comes on top of it: no older event may be left for later."""
    owners = make(mailbox=Mailbox(capacity=64, max_bytes=10_000))
    opened = asyncio.Event()

    async def wait(run: Run) -> None:
        if run.node == "a":
            await opened.wait()

    owners.handler = wait
    node = await owners.start("a")
    await owners.note(range(40), prefix="c" * 900)
    await until(lambda: node.status.held >= 9)
    await owners.start("b")
    await owners.stood_by("b")
    await owners.unpin()
    await owners.note(range(40, 41), prefix="c" * 900)
    await until(lambda: len(owners.by("b")) == 41)
    assert owners.by("b") == list(range(41))
    opened.set()


async def test_what_is_given_back_again_meanwhile_comes_once_and_hides_nothing(
    owners: Owners, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A former owner may give back late what the new one has asked for: the rest is still waited for."""
    await limit_requests(owners, max_batch=10)
    # While only another standby waits, the server turns round what is to be redelivered.
    await owners.start("c")
    await owners.stood_by("c")
    given_back: list[int] = []
    answered = PullSubscription._answered

    async def give_back_again(pulling: PullSubscription, request: object) -> None:
        await answered(pulling, request)  # type: ignore[arg-type]
        if not given_back and pulling._gathered is not None:
            given_back.extend(sorted(pulling._gathered)[1:8])
            for sequence in given_back:
                last = (await owners.info())["delivered"]["consumer_seq"]
                reply = ack_subject(
                    STREAM, DURABLE, delivery_count=2, sequence=sequence, consumer_sequence=last
                )
                await owners.bench.client.request(reply.decode(), b"-NAK")

    monkeypatch.setattr(PullSubscription, "_answered", give_back_again)
    await holding.give_back()
    await owners.all_handled(50)
    assert len(given_back) == 7
    assert [run.number for run in owners.runs] == list(range(50))


async def test_acks_that_are_not_confirmed_yet_hide_nothing_that_is_missing(
    make: MakeOwners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has them, so they are in the mailbox and not pending: all others have to come."""
    owners = make(double_ack=True)
    first_ends, confirmed = asyncio.Event(), asyncio.Event()
    ack, recover = Settlement.ack_confirmed, SoleOwner.recover
    acked: list[bytes] = []
    gathered: list[int] = []

    async def confirm_late(settlement: Settlement, reply: bytes) -> bool:
        answered = await ack(settlement, reply)
        acked.append(reply)
        await confirmed.wait()
        return answered

    async def count(owner: SoleOwner, in_hand: Collection[int], fetch: Fetch) -> int:
        # The recovery's own acks are of no interest.
        monkeypatch.setattr(Settlement, "ack_confirmed", ack)
        missing = await recover(owner, in_hand, fetch)
        gathered.extend(in_hand)
        return missing

    async def handle(run: Run) -> None:
        if run.customer == "waits0":
            await first_ends.wait()

    owners.handler = handle
    await owners.start("a")
    await owners.note(range(1))
    await owners.settled()
    monkeypatch.setattr(Settlement, "ack_confirmed", confirm_late)
    await owners.note(range(1, 6), 5)
    await until(lambda: len(acked) == 5)
    await owners.note(range(6, 17), prefix="waits")
    await until(lambda: owners.nodes["a"].status.held == 16)
    monkeypatch.setattr(SoleOwner, "recover", count)
    await owners.unpin()
    await until(lambda: bool(gathered))
    assert sorted(gathered) == list(range(8, 18))
    first_ends.set()
    confirmed.set()
    await owners.all_handled(17)
    await owners.settled()
    assert owners.in_order()


@pytest.mark.parametrize("limits", [{"max_batch": 10}, {"max_bytes": 4000}], ids=["messages", "bytes"])
async def test_a_new_limit_on_requests_leaves_nothing_for_later(
    owners: Owners, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    """A standby learns of it when its first large request is refused, and asks again."""
    monkeypatch.setattr(subscription, "LOOK_SECONDS", 60.0)
    holding = Holding(owners)
    await holding.start(50)
    await limit_requests(owners, **limits)
    await holding.give_back()
    await owners.all_handled(50)
    assert [run.number for run in owners.runs] == list(range(50))


@pytest.mark.parametrize("fast_lane", [True, False], ids=["fast lane", "public lane"])
async def test_headers_come_as_they_were_published(make: MakeOwners, fast_lane: bool) -> None:
    """The server adds the pin to each delivery; no handler and no dead letter sees it."""
    owners = make(fast_lane=fast_lane)

    async def refuse(run: Run) -> None:
        if run.headers.get("Refuse"):
            raise Reject("no")

    owners.handler = refuse
    node = await owners.start("a")
    sent = [{}, {"A": "1"}, {"A": "1", "Refuse": "yes", "B": ""}]
    for number, headers in enumerate([*sent, *sent]):
        if number == len(sent):
            await node.stop()
            await owners.start("a")
        body = b'{"number": %d, "customer": "c"}' % number
        await owners.bench.client.jetstream().publish("notes.noted", body, headers=headers or None)
    await owners.all_handled(6)
    assert [run.headers for run in owners.runs] == [*sent, *sent]
    await owners.settled()
    letters = await owners.bench.dead_letters(owners.app("a"))
    assert len(letters) == 2
    assert all("Pin" not in name for letter in letters for name in letter.headers)


async def test_a_copied_pin_header_misleads_nobody(owners: Owners) -> None:
    """Who publishes on what it was delivered may copy the id of another consumer's pin."""
    await owners.start("a")
    for number in range(3):
        await owners.bench.client.jetstream().publish(
            "notes.noted", b'{"number": %d}' % number, headers={"Nats-Pin-Id": "copied", "A": "1"}
        )
    await owners.all_handled(3)
    assert owners.state("a") == "up"
    assert owners.runs[0].headers == {"Nats-Pin-Id": "copied", "A": "1"}


# What comes between


async def test_a_drain_in_the_middle_of_a_recovery_gives_all_of_it_back(
    owners: Owners, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first delivery is handled by the next owner, after the older ones of its key."""
    paused = Paused(monkeypatch)
    await holding.give_back()
    await paused.entered.wait()
    await owners.nodes["b"].stop()
    assert owners.by("b") == []
    paused.go_on.set()
    await owners.start("c")
    await owners.all_handled(50)
    assert len(owners.by("c")) > 40
    assert [run.number for run in owners.runs] == list(range(50))


async def test_a_standby_that_is_stopping_declines(
    owners: Owners, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pins it by its last open request goes to the next owner, with all that is older."""
    first = await owners.pin()
    cell = owners.nodes["b"].cell
    assert cell is not None
    recovering = Paused(monkeypatch)
    pulling = cell._subscription
    with monkeypatch.context() as patched:
        # Its last one is still open when it is served.
        for name in EXPIRES:
            patched.setattr(subscription, name, 60.0)
        await until(lambda: any(one.expires_at > time.monotonic() + 30 for one in pulling._requests))
    cell.quiesce()
    await owners.unpin()
    await owners.note(range(50, 51))

    async def pinned_anew() -> bool:
        return await owners.pin() not in ("", first)

    await until(pinned_anew)
    # What it holds it has given back: else it would go on with that until it learns of the other's pin.
    await until(lambda: owners.nodes["a"].status.held == 1)
    assert not recovering.entered.is_set()
    recovering.go_on.set()
    await owners.nodes["b"].stop()
    holding.first_ends.set()
    await owners.start("c")
    await owners.nodes["a"].stop()
    await owners.all_handled(51)
    assert owners.by("b") == []
    assert [run.number for run in owners.runs] == list(range(51))


async def test_a_connection_that_breaks_in_the_middle_of_a_recovery(
    owners: Owners, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner begins it again, and nothing is lost or out of order."""
    async with proxy(owners.bench.url) as between:
        await owners.start("c", between.url)
        await owners.stood_by("c")
        await owners.nodes["b"].stop()
        paused = Paused(monkeypatch)
        await holding.give_back()
        await paused.entered.wait()
        between.cut()
        await until(lambda: not owners.nodes["c"].status.connected)
        paused.go_on.set()
        await owners.all_handled(50)
        assert len(owners.by("c")) > 40
        assert [run.number for run in owners.runs] == list(range(50))
        await owners.nodes["c"].stop()


async def test_an_owner_that_is_unpinned_in_the_middle_of_a_recovery_stands_by(
    owners: Owners, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It handles nothing of what it has; the one that is pinned does."""
    paused = Paused(monkeypatch)
    await holding.give_back()
    await paused.entered.wait()
    first = await owners.pin()
    await owners.start("c")
    await owners.stood_by("c")
    await owners.unpin()
    # The naks of what b has in hand pin c, as b's own would.
    await owners.note(range(50, 51))

    async def pinned_anew() -> bool:
        return await owners.pin() not in ("", first)

    await until(pinned_anew)
    paused.go_on.set()
    await owners.all_handled(51)
    assert owners.by("b") == []
    assert [run.number for run in owners.runs] == list(range(51))
    await owners.stood_by("b")


async def test_a_consumer_that_is_deleted_in_the_middle_of_a_recovery_fails_the_cell(
    owners: Owners, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and its supervisor decides."""
    paused = Paused(monkeypatch)
    await holding.give_back()
    await paused.entered.wait()
    await owners.bench.client.jetstream().delete_consumer(STREAM, DURABLE)
    paused.go_on.set()
    task = owners.nodes["b"].task
    assert task is not None
    await asyncio.wait({task}, timeout=60)
    assert str(task.exception()).startswith(f"consumer {DURABLE} is gone from the server")
    assert owners.by("b") == []
