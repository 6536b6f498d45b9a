"""Sagas that meet what they weren't made for: each ends all the same, or is stuck and says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.cells import bench, until
from support.nats import NatsServer
from support.rebooking import SOON, Charged, Declined, Delayed, Desk, Payments, Rebooking
from understudy.actors.event import Event
from understudy.actors.outcomes import Retry
from understudy.actors.policies import RetryPolicy
from understudy.actors.saga import Saga, SagaContext, starts
from understudy.actors.saga_position import Phase
from understudy.actors.saga_step import Step
from understudy.actors.state import State, StateCodec
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell import admission
from understudy.runtime.stream import Stream

STREAMS = [Stream("FLIGHTS", subjects=["flights.>"], timers=True)]


class Told(Event, subject="flights.told.{whom}"):
    whom: str


class Notes(State):
    text: str = ""


class Renumbered(State):
    """What a new version of the code makes of a booking, without reading the old one's."""

    seat: int = 0
    receipt: int = 0


@pytest.fixture
async def desk(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Desk]:
    """A broker, and what a test needs around it."""
    Rebooking.did, Rebooking.plan = [], {}
    Rebooking.waits_for_reply(600)
    Payments.answers, Payments.keys = {}, []
    async with bench(nats_server.url, tmp_path) as made:
        yield Desk(made)


async def run_one(desk: Desk, act: Callable[[SagaContext[Notes]], None], **options: Any) -> list[str]:
    """Start a saga of one step that does this; return what it does, to which more is added."""
    did: list[str] = []

    class Noting(Saga, key="booking", state=Notes, retry=SOON):
        @starts
        async def delayed(self, event: Delayed) -> Notes:
            return Notes()

        async def note(self, ctx: SagaContext[Notes]) -> None:
            did.append("do")
            act(ctx)

        async def undo(self, ctx: SagaContext[Notes]) -> None:
            did.append(f"undo {ctx.state.text}")

        steps = (Step(note, compensation=undo, **options),)

    await desk.bench.cell(App("air", streams=STREAMS, children=[Child(Noting, name="rebooking")]))
    await desk.publish(Delayed(booking="B1"))
    return did


def fill(ctx: SagaContext[Notes]) -> None:
    ctx.state.text = "x" * 300_000


def tell_nobody(ctx: SagaContext[Notes]) -> None:
    ctx.publish(Told(whom="a b"))


def replace_the_state(ctx: SagaContext[Notes]) -> None:
    ctx.state = "done"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (fill, "note: StateError: Notes takes 300011 bytes, its max_bytes is 262144;"),
        (tell_nobody, "note: EncodeError: Told: whom is 'a b', which can't be part of a subject;"),
        (replace_the_state, "note: StateError: Notes can't be stored: Expected `object`, got `str`"),
    ],
)
async def test_a_step_whose_outcome_can_not_be_stored_or_sent_has_failed(
    desk: Desk, act: Callable[[SagaContext[Notes]], None], error: str
) -> None:
    """It isn't a dead letter that nobody connects with a saga which would be running for ever."""
    did = await run_one(desk, act)
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert record.position.error.startswith(error)
    assert did == ["do"] * SOON.max_attempts + ["undo "]
    letters = await desk.bench.client.jetstream().stream_info("AIR_DEAD_LETTERS")
    assert letters.state.messages == 0


async def test_a_state_may_be_as_large_as_it_says(desk: Desk) -> None:
    """Where the saga is, which is stored with it, doesn't count."""

    def act(ctx: SagaContext[Notes]) -> None:
        ctx.state.text = "x" * (256 * 1024 - 12)

    await run_one(desk, act)
    record = await desk.reaches("B1", Phase.COMPLETED)
    assert len(record.state) == 256 * 1024 - 1


async def test_a_step_may_be_tried_more_often_than_the_sagas_others(desk: Desk) -> None:
    def act(ctx: SagaContext[Notes]) -> None:
        if ctx.attempt < 6:
            raise Retry(delay_seconds=0)

    did = await run_one(desk, act, max_attempts=6)
    await desk.reaches("B1", Phase.COMPLETED)
    assert did == ["do"] * 6


async def test_a_state_that_this_version_can_not_read_stops_it_where_it_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is undone for a bad deploy; when it is taken back the saga is resumed."""
    Rebooking.plan = {"notify do": ["waits"]}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await until(lambda: "notify do waits" in Rebooking.did)
    await desk.saga.stop()
    before = await desk.record("B1")
    assert before is not None
    right = Rebooking.__saga__
    wrong = msgspec.structs.replace(right, codec=StateCodec(Renumbered, "saga Rebooking"))
    monkeypatch.setattr(Rebooking, "__saga__", wrong)
    await desk.saga.start()
    # The step's own signal is asked for again in ten minutes, or with what comes later of its key: it is
    # handled first, and what resumes the saga has the step tried once more.
    await desk.signal("B1", "resume")
    stuck = await desk.reaches("B1", Phase.STUCK, turn=before.position.turn + 3)
    assert stuck.position.problem.startswith("notify: Renumbered, stored by version 1, can't be read")
    assert (stuck.position.step, stuck.state) == ("notify", before.state)
    await desk.saga.stop()
    monkeypatch.setattr(Rebooking, "__saga__", right)
    await desk.saga.start()
    await desk.signal("B1", "resume")
    await desk.reaches("B1", Phase.COMPLETED)
    assert not [one for one in Rebooking.did if "undo" in one]


async def test_what_comes_twice_or_too_late_changes_nothing(desk: Desk) -> None:
    Rebooking.plan = {"notify do": ["rejects"], "charge undo": ["waits"]}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await until(lambda: "charge undo waits" in Rebooking.did)
    before, did = await desk.record("B1"), len(Rebooking.did)
    for event in (Delayed, Charged, Declined, Charged):
        await desk.publish(event(booking="B1"))
    for turn in range(8):
        await desk.signal("B1", "timeout", turn=turn)
    await desk.publish(Delayed(booking="B2"))
    await desk.reaches("B2", Phase.COMPLETED)
    assert await desk.record("B1") == before
    assert len(Rebooking.did) == did + 3
    await desk.signal("B1", "abandon", reason="first")
    await desk.signal("B1", "abandon", reason="second")
    await desk.signal("B1", "resume")
    await desk.publish(Delayed(booking="B3"))
    await desk.reaches("B3", Phase.COMPLETED)
    after = await desk.record("B1")
    assert after is not None
    assert (after.position.phase, after.position.problem) == (Phase.ABANDONED, "first")


async def test_a_record_that_can_not_be_read_holds_up_no_other_saga_and_is_not_overwritten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "UNREADABLE_SECONDS", 0.1)
    Payments.answers = {"B1": "nothing"}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await desk.waits("B1")
    await desk.saga.stop()
    kv = await desk.bench.client.jetstream().key_value("air-state")
    good = (await kv.get("air-rebooking.B1")).value
    assert good is not None
    await kv.put("air-rebooking.B1", b"what is this")
    await desk.saga.start()
    await desk.publish(Charged(booking="B1"))
    await desk.publish(Delayed(booking="B2"))
    await desk.reaches("B2", Phase.COMPLETED)
    assert (await kv.get("air-rebooking.B1")).value == b"what is this"
    # The reply has waited for somebody to mend it.
    await kv.put("air-rebooking.B1", good)
    await desk.reaches("B1", Phase.COMPLETED)


async def test_a_reply_is_not_waited_for_longer_than_the_stream_keeps_its_timer(desk: Desk) -> None:
    """The app doesn't state how old messages may get, so that only the server knows it."""
    await desk.open()
    await desk.saga.stop()
    js = desk.bench.client.jetstream()
    config = (await js.stream_info("FLIGHTS")).config
    config.max_age, config.duplicate_window = 300, 120
    await js.update_stream(config)
    await desk.saga.start()
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert "can't be delayed by 600 s: stream FLIGHTS drops what is older than" in record.position.error


async def test_steps_in_another_order_are_done_once_each(desk: Desk) -> None:
    """A new version has them so, while a saga is on its way."""
    done: list[str] = []

    def version(names: str, waits_at: str = "") -> App:
        async def do(self: Saga, ctx: SagaContext[Notes]) -> None:
            step = ctx.idempotency_key.split(".")[3]
            done.append(step)
            if step == waits_at:
                raise ConnectionError("down")

        class Ordered(Saga, key="booking", state=Notes, retry=RetryPolicy(min_delay_seconds=0)):
            @starts
            async def delayed(self, event: Delayed) -> Notes:
                return Notes()

            steps = tuple(Step(do, compensation=do, name=name, max_attempts=1_000) for name in names)

        return App("air", streams=STREAMS, children=[Child(Ordered, name="rebooking")])

    first = await desk.bench.cell(version("abc", waits_at="b"))
    await desk.publish(Delayed(booking="B1"))
    await until(lambda: "b" in done)
    await first.stop()
    done.clear()
    await desk.bench.cell(version("bac"))
    await desk.reaches("B1", Phase.COMPLETED)
    assert done == ["b", "c"]
