"""The app whose owners fight: each node's cell takes itself for the key's only owner, and none is pinned.

With FIGHT_ONCE=1 its actor is idempotent.
"""

from __future__ import annotations

import os

from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.options import ActorOptions
from understudy.actors.policies import Mailbox
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.stream import Stream

APP, ACTOR, KEY = "fight", "counter", "prize"


ONCE = Idempotency(window_seconds=3600, key="number")


class Hit(Event, subject="hits.hit"):
    """One more."""

    number: int
    key: str = KEY


class Counted(Event, subject="counted.counted"):
    """What the count has come to, with this one."""

    number: int
    count: int


class Count(State):
    """How many there were."""

    count: int = 0


class Counter(Actor, key="key", state=Count, mailbox=Mailbox(capacity=16)):
    """Counts."""

    @handles
    async def hit(self, event: Hit, ctx: Context) -> Counted:
        state: Count = ctx.state
        state.count += 1
        return Counted(number=event.number, count=state.count)


# Not in the test's own process, which imports this for its names.
if "FIGHT_ONCE" in os.environ:
    ActorOptions.is_sole_owner = False  # type: ignore[method-assign, assignment]

app = App(
    APP,
    streams=[Stream("HITS", subjects=["hits.>"]), Stream("COUNTED", subjects=["counted.>"])],
    children=[Child(Counter, idempotency=ONCE if os.environ.get("FIGHT_ONCE") == "1" else None)],
)
