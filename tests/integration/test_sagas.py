"""Sagas in a cell: steps, replies and their timers, compensations, and what an operator may do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.cells import bench, until
from support.nats import NatsServer
from support.rebooking import (
    SIGNALS,
    SOON,
    Booking,
    Charged,
    Declined,
    Delayed,
    Desk,
    Payments,
    Rebooking,
    air,
)
from understudy.actors.errors import CircuitOpen, DeclarationError
from understudy.actors.outcomes import Reject
from understudy.actors.policies import CircuitBreaker, RetryPolicy
from understudy.actors.saga import Saga, SagaContext, starts
from understudy.actors.saga_position import Phase
from understudy.actors.saga_step import NO_COMPENSATION, Step
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.cell.counts import counts_path, read_counts
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stream import Stream
from understudy.runtime.testing import capture_logs


@pytest.fixture
async def desk(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Desk]:
    """A broker, and what a test needs around it."""
    Rebooking.did, Rebooking.plan = [], {}
    Rebooking.waits_for_reply(600)
    Payments.answers, Payments.keys = {}, []
    async with bench(nats_server.url, tmp_path) as made:
        yield Desk(made)


async def test_it_does_its_steps_one_after_the_other(desk: Desk) -> None:
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPLETED)
    assert Rebooking.did == ["reserve do works", "charge do works", "notify do works"]
    assert msgspec.msgpack.decode(record.state) == {"seat": "12A", "receipt": "R1"}
    # The receiver of the command knows it by saga, step and direction.
    assert Payments.keys == ["air.rebooking.B1.charge.do"]
    assert await desk.texts("flights.rebooked") == [{"booking": "B1"}]


async def test_only_what_its_start_method_wants_is_started_and_that_once(desk: Desk) -> None:
    await desk.open()
    await desk.publish(Delayed(booking="B0", minutes=3))
    await desk.publish(Charged(booking="B9"))
    await desk.publish(Delayed(booking="B1"))
    await desk.reaches("B1", Phase.COMPLETED)
    await desk.publish(Delayed(booking="B1"))
    await desk.publish(Delayed(booking="B2"))
    await desk.reaches("B2", Phase.COMPLETED)
    assert len(Rebooking.did) == 6
    # Nor is anything stored of what was none.
    assert await desk.record("B0") is None
    assert await desk.record("B9") is None


@pytest.mark.parametrize(
    ("plan", "did"),
    [
        (
            {"notify do": ["fails"] * 2},
            ["reserve do", "charge do", "notify do", "notify do", "charge undo", "reserve undo"],
        ),
        ({"reserve do": ["rejects"]}, ["reserve do"]),
        ({"reserve do": ["fails"] * 3}, ["reserve do"] * 3 + ["reserve undo"]),
        ({"charge do": ["rejects"]}, ["reserve do", "charge do", "reserve undo"]),
        (
            {"notify do": ["rejects"], "charge undo": ["fails"] * 2},
            ["reserve do", "charge do", "notify do"] + ["charge undo"] * 3 + ["reserve undo"],
        ),
    ],
)
async def test_a_failed_step_has_what_was_done_undone_in_reverse(
    desk: Desk, plan: dict[str, list[str]], did: list[str]
) -> None:
    Rebooking.plan = plan
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert [one.rpartition(" ")[0] for one in Rebooking.did] == did
    assert record.position.error.endswith(("not today", "RuntimeError: no seat"))
    # What a failed run has changed or published is dropped.
    assert msgspec.msgpack.decode(record.state)["seat"] != "dropped"
    assert await desk.texts("flights.rebooked") == []


async def test_what_retries_mend_is_no_failure(desk: Desk) -> None:
    Rebooking.plan = {"reserve do": ["fails", "fails"], "notify do": ["fails"]}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await desk.reaches("B1", Phase.COMPLETED)


async def test_entries_name_the_saga_the_step_and_the_direction(desk: Desk) -> None:
    Rebooking.plan = {"reserve do": ["fails"], "notify do": ["rejects"], "charge undo": ["fails"]}
    with capture_logs() as entries:
        await desk.open()
        await desk.publish(Delayed(booking="B1"))
        await desk.reaches("B1", Phase.COMPENSATED)
    names = ("saga", "step", "direction", "attempt")
    failed = [[one[name] for name in names] for one in entries if one["event"] == "handler failed"]
    assert failed == [["B1", "reserve", "do", 1], ["B1", "charge", "undo", 1]]
    (compensates,) = [one for one in entries if one["event"] == "saga compensates"]
    assert [compensates[name] for name in names] == ["B1", "notify", "do", 1]


async def test_a_phase_is_logged_when_it_is_stored(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so not by a run whose commit met another's."""
    Payments.answers = {"B1": "declined"}
    runs = 0

    async def declined(self: Rebooking, event: Declined) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            kv = await desk.bench.client.jetstream().key_value("air-state")
            stored = (await kv.get("air-rebooking.B1")).value
            assert stored is not None
            await kv.put("air-rebooking.B1", stored)
        raise Reject(f"no funds, {runs}")

    monkeypatch.setattr(Rebooking, "declined", declined)
    with capture_logs() as entries:
        await desk.open()
        await desk.publish(Delayed(booking="B1"))
        await desk.reaches("B1", Phase.COMPENSATED)
    (compensates,) = [one for one in entries if one["event"] == "saga compensates"]
    assert (runs, compensates["error"]) == (2, "charge: no funds, 2")
    assert [compensates[name] for name in ("saga", "step", "direction")] == ["B1", "charge", "do"]


async def test_a_refusal_fails_the_step_which_has_done_nothing(desk: Desk) -> None:
    Payments.answers = {"B1": "declined"}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert record.position.error == "charge: no funds"
    assert [one.rpartition(" ")[0] for one in Rebooking.did] == ["reserve do", "charge do", "reserve undo"]


async def test_no_reply_in_time_fails_the_step_which_may_have_done_its_work(desk: Desk) -> None:
    Rebooking.waits_for_reply(0.5)
    Payments.answers = {"B1": "nothing"}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert record.position.error == "charge: no reply in time"
    did = [one.rpartition(" ")[0] for one in Rebooking.did]
    assert did == ["reserve do", "charge do", "charge undo", "reserve undo"]
    # Too late.
    Rebooking.waits_for_reply(600)
    await desk.publish(Charged(booking="B1"))
    await desk.publish(Delayed(booking="B2"))
    await desk.reaches("B2", Phase.COMPLETED)
    assert (await desk.reaches("B1", Phase.COMPENSATED)).position == record.position


async def test_a_compensation_that_fails_for_good_is_stuck_until_it_is_resumed(desk: Desk) -> None:
    Rebooking.plan = {"notify do": ["rejects"], "charge undo": ["fails"] * 3}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    stuck = await desk.reaches("B1", Phase.STUCK)
    assert stuck.position.problem == "charge can't be undone: RuntimeError: no seat"
    assert stuck.position.error == "notify: not today"
    await desk.signal("B1", "resume")
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert record.position.problem == ""
    assert Rebooking.did[-2:] == ["charge undo works", "reserve undo works"]
    # Begun, failed, stuck, and tried again to its end.
    counts = read_counts(counts_path(Path(desk.saga.directory), "rebooking/0")).counters
    counted = {phase: counts[f"saga_{phase}"] for phase in Phase if counts[f"saga_{phase}"]}
    assert counted == {Phase.RUNNING: 1, Phase.COMPENSATING: 2, Phase.STUCK: 1, Phase.COMPENSATED: 1}


async def test_what_is_abandoned_stays_as_it_is(desk: Desk) -> None:
    Rebooking.plan = {"notify do": ["rejects"], "charge undo": ["rejects"]}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await desk.reaches("B1", Phase.STUCK)
    await desk.signal("B1", "abandon", reason="refunded by hand")
    record = await desk.reaches("B1", Phase.ABANDONED)
    assert record.position.problem == "refunded by hand"
    done = len(Rebooking.did)
    await desk.signal("B1", "resume")
    await desk.publish(Delayed(booking="B2"))
    await desk.reaches("B2", Phase.COMPLETED)
    assert (await desk.reaches("B1", Phase.ABANDONED)).position == record.position
    assert [one for one in Rebooking.did[done:] if "undo" in one] == []


async def test_what_is_resumed_though_it_goes_on_by_itself_does_nothing_twice(desk: Desk) -> None:
    Payments.answers = {"B1": "nothing"}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await desk.waits("B1")
    for _ in range(3):
        await desk.signal("B1", "resume")
    await desk.publish(Charged(booking="B1"))
    await desk.reaches("B1", Phase.COMPLETED)
    assert len(Rebooking.did) == 3


async def test_a_signal_of_another_turn_runs_nothing(desk: Desk) -> None:
    Rebooking.plan = {"reserve do": ["waits"]}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await until(lambda: Rebooking.did == ["reserve do waits"])
    for turn in (1, 7):
        await desk.signal("B1", "go", turn=turn)
        await desk.signal("B1", "timeout", turn=turn)
    await desk.publish(Delayed(booking="B2"))
    await desk.reaches("B2", Phase.COMPLETED)
    assert len(Rebooking.did) == 1 + 3


async def test_waiting_survives_a_drain_and_the_death_of_the_broker_and_its_timer_fires_once(
    desk: Desk, nats_server: NatsServer
) -> None:
    # Long enough that they still wait when that is looked at.
    seconds = 5.0
    Rebooking.waits_for_reply(seconds)
    Payments.answers = {"B1": "nothing", "B2": "nothing"}
    await desk.open()
    for booking in ("B1", "B2"):
        await desk.publish(Delayed(booking=booking))
    for booking in ("B1", "B2"):
        await desk.waits(booking)
    waiting_since = time.time()
    await desk.saga.stop()
    nats_server.kill()
    nats_server.start()
    await asyncio.sleep(max(0.0, waiting_since + seconds + 0.2 - time.time()))
    # Its reply is in the stream behind its timer.
    await desk.saga.start()
    for booking in ("B1", "B2"):
        await desk.reaches(booking, Phase.COMPENSATED)
    assert Rebooking.did.count("charge undo works") == 2
    assert len(await desk.texts(SIGNALS)) >= 2
    timeouts = [one for one in await desk.texts(SIGNALS) if one["kind"] == "timeout"]
    assert sorted(one["saga"] for one in timeouts) == ["B1", "B2"]


async def test_a_reply_that_came_while_its_cell_was_down_is_taken(desk: Desk) -> None:
    Payments.answers = {"B1": "nothing"}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await desk.waits("B1")
    await desk.saga.stop()
    await desk.publish(Charged(booking="B1"))
    await desk.saga.start()
    await desk.reaches("B1", Phase.COMPLETED)


async def test_a_step_that_hangs_is_cut_short(desk: Desk) -> None:
    class Hanging(Saga, key="booking", state=Booking, retry=RetryPolicy(max_attempts=1)):
        @starts
        async def delayed(self, event: Delayed) -> Booking:
            return Booking()

        async def hang(self, ctx: SagaContext[Booking]) -> None:
            await asyncio.Event().wait()

        async def undo(self, ctx: SagaContext[Booking]) -> None:
            Rebooking.did.append("undone")

        steps = (Step(hang, compensation=undo, timeout_seconds=0.2),)

    streams = [Stream("FLIGHTS", subjects=["flights.>"], timers=True)]
    await desk.bench.cell(App("air", streams=streams, children=[Child(Hanging, name="rebooking")]))
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert record.position.error == "hang: took longer than 0.2 s"
    assert Rebooking.did == ["undone"]


async def test_an_open_breaker_holds_a_saga_where_it_is(desk: Desk) -> None:
    calls: list[str] = []
    # What the first call doesn't use up is one attempt.
    twice = RetryPolicy(max_attempts=2, min_delay_seconds=0.01)

    class Guarded(Saga, key="booking", state=Booking, retry=twice):
        @starts
        async def delayed(self, event: Delayed) -> Booking:
            return Booking()

        async def call(self, ctx: SagaContext[Booking]) -> None:
            async with ctx.breaker("seats"):
                calls.append(ctx.saga_id)
                # The first opens the breaker; the saga's attempts would be used up by its refusals.
                if len(calls) < 3:
                    raise ConnectionError("down")

        steps = (Step(call, compensation=NO_COMPENSATION),)

    streams = [Stream("FLIGHTS", subjects=["flights.>"], timers=True)]
    breaker = CircuitBreaker("seats", fail_max=1, reset_timeout_seconds=0.2)
    child = Child(Guarded, name="rebooking", breakers=[breaker])
    await desk.bench.cell(App("air", streams=streams, children=[child]))
    await desk.publish(Delayed(booking="B1"))
    await desk.reaches("B1", Phase.COMPLETED)
    assert calls == ["B1"] * 3


async def test_a_step_that_meets_a_breaker_that_the_saga_does_not_have_has_failed(desk: Desk) -> None:
    class Relaying(Saga, key="booking", state=Booking, retry=SOON):
        @starts
        async def delayed(self, event: Delayed) -> Booking:
            return Booking()

        async def call(self, ctx: SagaContext[Booking]) -> None:
            raise CircuitOpen("elsewhere", 0.01)

        steps = (Step(call, compensation=NO_COMPENSATION),)

    streams = [Stream("FLIGHTS", subjects=["flights.>"], timers=True)]
    await desk.bench.cell(App("air", streams=streams, children=[Child(Relaying, name="rebooking")]))
    await desk.publish(Delayed(booking="B1"))
    record = await desk.reaches("B1", Phase.COMPENSATED)
    assert record.position.error.startswith("call: CircuitOpen: circuit breaker 'elsewhere' is open")


async def test_a_step_that_is_declared_no_more_leaves_the_saga_stuck(desk: Desk) -> None:
    Rebooking.waits_for_reply(5.0)
    Payments.answers = {"B1": "nothing"}
    await desk.open()
    await desk.publish(Delayed(booking="B1"))
    await desk.waits("B1")
    await desk.saga.stop()

    class Shorter(Saga, key="booking", state=Booking, retry=SOON):
        @starts
        async def delayed(self, event: Delayed) -> Booking:
            return Booking()

        async def notify(self, ctx: SagaContext[Booking]) -> None: ...

        steps = (Step(notify, compensation=NO_COMPENSATION),)

    streams = [Stream("FLIGHTS", subjects=["flights.>"], timers=True)]
    app = App("air", streams=streams, children=[Child(Shorter, name="rebooking")])
    await ensure_topology(desk.bench.client, app.spec(), apply=True, force=True)
    await desk.bench.cell(app)
    record = await desk.reaches("B1", Phase.STUCK)
    assert record.position.problem == "the step 'charge' is no longer declared"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: App("air", streams=[Stream("FLIGHTS", subjects=["flights.>"])], children=[Rebooking]),
            "app 'air': actor 'rebooking' is a saga and reads stream 'FLIGHTS', which has no timers; declare "
            "that as Stream('FLIGHTS', …, timers=True)",
        ),
        (
            lambda: air(key=lambda event: "one"),
            "app 'air': actor 'rebooking': a saga's key can't be overridden; remove it from its Child",
        ),
        (
            lambda: air(handler_timeout_seconds=10),
            "app 'air': actor 'rebooking': handler_timeout_seconds is 10, but a step may take 10; raise it, "
            "or leave it out",
        ),
        (
            lambda: App(
                "air",
                streams=[Stream("FLIGHTS", subjects=["flights.>"], timers=True, max_age_seconds=1)],
                children=[Rebooking],
            ),
            "app 'air': actor 'rebooking': step 'charge' waits 1 s for a reply, but stream 'FLIGHTS' drops "
            "what is older than 1 s, its timer too; raise max_age_seconds or lower reply_timeout_seconds",
        ),
    ],
)
def test_an_app_that_can_run_no_saga_is_told_what_to_change(make: Any, message: str) -> None:
    Rebooking.waits_for_reply(1.0)
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == message
