"""The app of the tests that kill cells with state at chosen moments.

Two actors add up the same entries per key: `ordered` blocks a key whose entry has failed, `unordered` gives
it back. STATE_DIRECTORY is where the test asks for a death: a file named like the actor holds the moment, and
is renamed just before the cell kills itself there. With STATE_BROKEN=ack-first commits aren't waited for.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from understudy.actors.actor import Actor
from understudy.actors.context import Context, StartContext
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Retry
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.state import State
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.cell.state import HeldState, States
from understudy.runtime.cell.state_pipeline import StatePipeline
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.stream import Stream

APP = "adding"
ACTORS = ("ordered", "unordered")
# Of how many first runs one fails.
FAILS_ONE_IN = 10
# The moments of a death: within a handler, before a commit is written, when it is written, when it is
# confirmed and nothing sent, when what was published is confirmed, when the ack is written.
MOMENTS = ("handler", "commit", "committing", "publish", "ack", "acked")
_DIRECTORY = Path(os.environ.get("STATE_DIRECTORY", "."))


class Entered(Event, subject="entries.entered"):
    """An amount to be added; one that comes twice, under whatever sequence, counts once."""

    number: int
    key: int
    amount: int


class Added(Event, subject="sums.{actor}.added"):
    """What a key's sum has come to."""

    actor: str
    key: int
    number: int
    count: int
    total: int


class Sum(State):
    """What is known of a key."""

    count: int = 0
    total: int = 0
    seen: set[int] = msgspec.field(default_factory=set)


def fails(sequence: int) -> bool:
    """Return whether the first run of an entry fails."""
    return sequence * 2_654_435_761 % (1 << 32) % FAILS_ONE_IN == 0


class Adding(Actor, key="key", state=Sum):
    """Adds up."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_start(self, ctx: StartContext) -> None:
        _Death.actor = ctx.actor

    @handles
    async def entered(self, event: Entered, ctx: Context) -> Added | None:
        state: Sum = ctx.state
        if event.number in state.seen:
            return None
        state.seen.add(event.number)
        state.count += 1
        state.total += event.amount
        if fails(ctx.delivery.sequence) and ctx.delivery.attempt == 1:
            raise Retry(delay_seconds=0.02)
        _Death.at("handler")
        return Added(
            actor=self._name, key=event.key, number=event.number, count=state.count, total=state.total
        )


class _Death:
    """Where the test wants this process dead."""

    actor = ""

    @classmethod
    def wanted(cls, moment: str) -> bool:
        """Return whether it is to die now, if nobody was there before."""
        path = _DIRECTORY / cls.actor
        try:
            if path.read_text() != moment:
                return False
            path.rename(path.with_suffix(".done"))
        except FileNotFoundError:
            return False
        return True

    @classmethod
    def at(cls, moment: str) -> None:
        """Die if it is wanted."""
        if cls.wanted(moment):
            os.kill(os.getpid(), signal.SIGKILL)


def _patch() -> None:
    commit, send, ack_all = States.commit, StatePipeline._send, Settlement.ack_all

    async def dying_commit(self: States, state: HeldState) -> asyncio.Future[Any]:
        _Death.at("commit")
        answer = await commit(self, state)
        if _Death.wanted("committing"):
            # Frames are written when the event loop comes round.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    async def dying_send(self: StatePipeline, runs: list[Any]) -> None:
        _Death.at("publish")
        await send(self, runs)

    def dying_ack_all(self: Settlement, replies: Sequence[bytes]) -> None:
        _Death.at("ack")
        ack_all(self, replies)
        if _Death.wanted("acked"):
            self.write()
            os.kill(os.getpid(), signal.SIGKILL)

    States.commit = dying_commit  # type: ignore[method-assign]
    StatePipeline._send = dying_send  # type: ignore[method-assign]
    Settlement.ack_all = dying_ack_all  # type: ignore[method-assign]
    if os.environ.get("STATE_BROKEN") != "ack-first":
        return

    waiting: dict[str, asyncio.Task[Any]] = {}

    async def late_commit(self: States, state: HeldState) -> asyncio.Future[Any]:
        _Death.at("commit")
        before = waiting.get(state.name)

        async def store() -> Any:
            # As if the broker took its time, which it may.
            await asyncio.sleep(0.3)
            if before is not None:
                state.revision = (await before).seq
            return await (await commit(self, state))

        waiting[state.name] = task = asyncio.create_task(store())
        task.add_done_callback(lambda done: done.exception())
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_result(_Unconfirmed(state.revision))
        _Death.at("committing")
        return answer

    States.commit = late_commit  # type: ignore[method-assign]


class _Unconfirmed(msgspec.Struct):
    """What nobody has said."""

    seq: int


# Not in the test's own process, which imports this for its names.
if "STATE_DIRECTORY" in os.environ:
    _patch()
common: dict[str, Any] = {
    "mailbox": Mailbox(capacity=256),
    "retry": RetryPolicy(max_attempts=20, min_delay_seconds=0.02, max_delay_seconds=0.1),
    "ack_wait_seconds": 6,
    "hang_timeout_seconds": 3,
}
app = App(
    APP,
    streams=[
        # So short that what is published twice is stored twice.
        Stream("ENTRIES", subjects=["entries.>"], duplicate_window_seconds=0.1),
        Stream("SUMS", subjects=["sums.>"]),
    ],
    children=[
        Supervisor(
            "ops",
            max_restarts=1000,
            children=[
                Child(Adding, name="ordered", args={"name": "ordered"}, **common),
                Child(Adding, name="unordered", args={"name": "unordered"}, on_failure="redeliver", **common),
            ],
        )
    ],
)
