"""A dead letter is replayed for one actor: the others that get it ack it and do nothing."""

from __future__ import annotations

import pytest

from support.cells import Bench, until
from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Batch
from understudy.runtime.app import App
from understudy.runtime.jetstream.dead_letters import REPLAY_FOR
from understudy.runtime.stream import Stream

STREAMS = [Stream("ORDERS", subjects=["orders.>"])]
HEADERS = {"Content-Type": "application/json", "x": "y"}


class Placed(Event, subject="orders.placed"):
    number: int


class Single(Actor):
    handled: list[int]

    @handles
    async def placed(self, event: Placed) -> None:
        self.handled.append(event.number)


class Keyed(Single, key="number"): ...


class Ordered(Single, ordered=True): ...


class Confirmed(Single, double_ack=True): ...


class InBatches(Actor):
    handled: list[int]

    @handles(batch=Batch(size=3, timeout_seconds=0.01))
    async def placed(self, events: list[Placed]) -> None:
        self.handled += [event.number for event in events]


class KeyedInBatches(InBatches, key="number"): ...


@pytest.mark.parametrize(
    "actor", [Single, Keyed, Ordered, Confirmed, InBatches, KeyedInBatches], ids=lambda actor: actor.__name__
)
async def test_a_replay_for_another_is_acked_and_not_handled(
    orders: Bench, actor: type[Single | InBatches]
) -> None:
    """Whatever kind of handler it has, and however its body reads; one for itself is handled."""
    handled = actor.handled = []
    app = App("shop", streams=STREAMS, children=[actor])
    durable = app.spec().consumers[0].durable
    cell = await orders.cell(app)
    js = orders.client.jetstream()
    for number, replay_for in enumerate(["shop-other", durable, None, f"{durable}x", "shop-other", durable]):
        headers = HEADERS if replay_for is None else {REPLAY_FOR: replay_for, **HEADERS}
        await js.publish("orders.placed", b'{"number": %d}' % number, headers=headers)
    await js.publish("orders.placed", b"unreadable", headers={REPLAY_FOR: "shop-other", **HEADERS})
    await orders.settled(app)
    assert sorted(handled) == [1, 2, 5]
    await until(lambda: cell.status.held == 0)
    counters = cell.status.counters
    assert (counters["skipped"], counters["handled"], counters["dead_lettered"]) == (4, 3, 0)
    assert counters["redelivered"] == 0


async def test_a_replay_for_another_that_is_taken_over_is_not_handled_either(orders: Bench) -> None:
    """The replacement reads it from the stream."""
    handled = Single.handled = []
    app = App("shop", streams=STREAMS, children=[Single])
    cell = await orders.cell(app)
    assert cell.cell is not None
    # Held by the first generation, which does no more than that.
    cell.cell._lanes.halt()
    js = orders.client.jetstream()
    await js.publish("orders.placed", b'{"number": 1}', headers={REPLAY_FOR: "shop-other", **HEADERS})
    await js.publish("orders.placed", b'{"number": 2}', headers=HEADERS)
    await until(lambda: len(cell.cell._mailbox) == 2)  # type: ignore[union-attr]
    assert cell.task is not None
    cell.task.cancel()
    await cell.vanish()
    await cell.start(reason="killed by SIGKILL")
    await orders.settled(app)
    assert handled == [2]
    counters = cell.status.counters
    assert (counters["taken_over"], counters["skipped"], counters["handled"]) == (2, 1, 1)
