"""The app of the tests that kill cells with state at chosen moments.

Actors add up the same entries per key: `ordered` blocks a key whose entry has failed, `unordered` gives it
back. They keep the numbers of what they have added; `once` and `once-unordered` are idempotent instead.
`batched` is idempotent, handles batches and keeps no state. `keyed`, `one-order` and `keyed-batched` keep
nothing at all, and say what they were given, in the order in which they were. STATE_ACTORS says which of them
there are, STATE_DOUBLE_ACK=1 has them wait for their acks. STATE_DIRECTORY is where the test asks for a
death: a file named like the actor holds the moment, a signal and a process, and is renamed just before the
cell sends that; without a process it kills itself. With STATE_BROKEN=ack-first commits aren't waited for,
with mark-first marks are made before the handlers run, and with suspects-first a replacement begins with what
was being handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from understudy.actors.actor import Actor
from understudy.actors.context import BatchContext, Context, StartContext
from understudy.actors.errors import PublishError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.outcomes import Retry
from understudy.actors.policies import Batch, Mailbox, RetryPolicy
from understudy.actors.state import State
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.line_work import LineWork
from understudy.runtime.cell.marking import Marking
from understudy.runtime.cell.state import HeldState, States
from understudy.runtime.cell.state_pipeline import StatePipeline
from understudy.runtime.cell.takeover import TakenOver, Takeover
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.stream import Stream

APP = "adding"
ACTORS = ("ordered", "unordered")
ONCE = ("once", "once-unordered")
BATCHED = "batched"
ONE_ORDER = "one-order"
TELLING = ("keyed", ONE_ORDER, "keyed-batched")
STATELESS = (BATCHED, *TELLING)
# Of how many first runs one fails.
FAILS_ONE_IN = 10
# The moments of a death: within a handler, before a commit is written, in the handler of one that is to be
# stored together with what an earlier one of its key has done, when a commit is written, when it is confirmed
# and nothing sent, when what was published is confirmed, when the ack is written, and any.
ANY = "any"
MOMENTS = ("handler", "commit", "later", "committing", "publish", "ack", "acked", ANY)
# With marks, when they aren't written yet, and when they are confirmed, too.
ONCE_MOMENTS = ("handler", "commit", "later", "committing", "publish", "mark", "marked", "ack", "acked", ANY)
# Of a batch, which commits nothing.
BATCHED_MOMENTS = ("handler", "mark", "marked", "ack", "acked", ANY)
TELLING_MOMENTS = ("handler", ANY)
DOUBLE_ACK = os.environ.get("STATE_DOUBLE_ACK") == "1"
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
    """Adds up what it has not added before."""

    looks = True

    def __init__(self, name: str) -> None:
        self._name = name

    def on_start(self, ctx: StartContext) -> None:
        _Death.actor = ctx.actor

    @handles
    async def entered(self, event: Entered, ctx: Context) -> Added | None:
        state: Sum = ctx.state
        if self.looks and event.number in state.seen:
            return None
        state.seen.add(event.number)
        state.count += 1
        state.total += event.amount
        if fails(ctx.delivery.sequence) and ctx.delivery.attempt == 1:
            raise Retry(delay_seconds=0.02)
        _Death.at("handler")
        if _Death.comes_later:
            _Death.at("later")
        return Added(
            actor=self._name, key=event.key, number=event.number, count=state.count, total=state.total
        )


class Once(Adding, idempotency=Idempotency(window_seconds=3600, key="number")):
    """Adds up what it is given."""

    looks = False


class Telling(Actor):
    """Says of each entry that it was there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_start(self, ctx: StartContext) -> None:
        _Death.actor = ctx.actor

    @handles
    async def entered(self, event: Entered, ctx: Context) -> Added:
        if fails(ctx.delivery.sequence) and ctx.delivery.attempt == 1:
            raise Retry(delay_seconds=0.02)
        _Death.at("handler")
        return Added(actor=self._name, key=event.key, number=event.number, count=0, total=0)


class Batched(Actor, key="key"):
    """Says of each entry that it was there, a batch at a time."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_start(self, ctx: StartContext) -> None:
        _Death.actor = ctx.actor

    @handles(batch=Batch(size=16, timeout_seconds=0.02))
    async def entered(self, events: list[Entered], ctx: BatchContext) -> None:
        for index, (event, delivery) in enumerate(zip(events, ctx.deliveries, strict=True)):
            if fails(delivery.sequence) and delivery.attempt == 1:
                ctx.fail(index, Retry(delay_seconds=0.02))
            else:
                added = Added(actor=self._name, key=event.key, number=event.number, count=0, total=0)
                await ctx.publish(added, index=index)
        _Death.at("handler")


class _Death:
    """Where the test wants this process dead, or the broker."""

    actor = ""
    # Whether what an earlier one of the same line has done isn't stored yet.
    comes_later = False

    @classmethod
    def wanted(cls, moment: str) -> tuple[int, int] | None:
        """Return whom to send which signal, if it is to be now and nobody was there before."""
        path = _DIRECTORY / cls.actor
        try:
            wanted, *victim = path.read_text().split()
            if wanted != moment:
                return None
            path.rename(path.with_suffix(".done"))
        except FileNotFoundError:
            return None
        return (int(victim[0]), int(victim[1])) if victim else (os.getpid(), signal.SIGKILL)

    @classmethod
    def at(cls, moment: str) -> None:
        """Have it die if it is wanted."""
        if (victim := cls.wanted(moment)) is not None:
            os.kill(*victim)


def _patch() -> None:
    commit, send, ack_all = States.commit, StatePipeline._send, Settlement.ack_all

    def dying_commit(self: States, state: HeldState) -> asyncio.Future[Any]:
        _Death.at("commit")
        answer = commit(self, state)
        if (victim := _Death.wanted("committing")) is not None:
            # Frames are written when the event loop comes round, which was asked of it before this.
            asyncio.get_running_loop().call_soon(os.kill, *victim)
        return answer

    async def dying_send(self: StatePipeline, runs: list[Any]) -> None:
        _Death.at("publish")
        await send(self, runs)

    def dying_ack_all(self: Settlement, replies: Sequence[bytes]) -> None:
        _Death.at("ack")
        ack_all(self, replies)
        if (victim := _Death.wanted("acked")) is not None:
            self.write()
            os.kill(*victim)

    async def dying_ack_confirmed(self: Settlement, reply: bytes) -> bool:
        _Death.at("ack")
        acked = await ack_confirmed(self, reply)
        _Death.at("acked")
        return acked

    ack_confirmed = Settlement.ack_confirmed
    if DOUBLE_ACK:
        # Otherwise it is asked for other things.
        Settlement.ack_confirmed = dying_ack_confirmed  # type: ignore[method-assign]
    make, is_made = Marking.make, Marking.is_made

    async def dying_make(self: Marking, delivery: HeldDelivery) -> Any:
        _Death.at("mark")
        return await make(self, delivery)

    async def dying_is_made(self: Marking, *arguments: Any) -> bool:
        made = await is_made(self, *arguments)
        _Death.at("marked")
        return made

    Marking.make = dying_make  # type: ignore[method-assign]
    Marking.is_made = dying_is_made  # type: ignore[method-assign, assignment]
    States.commit = dying_commit  # type: ignore[method-assign]
    StatePipeline._send = dying_send  # type: ignore[method-assign]
    Settlement.ack_all = dying_ack_all  # type: ignore[method-assign]
    _note_lines()
    _break(commit)


def _break(commit: Callable[[States, HeldState], asyncio.Future[Any]]) -> None:
    match os.environ.get("STATE_BROKEN"):
        case "ack-first":
            _ack_first(commit)
        case "mark-first":
            _mark_first()
        case "suspects-first":
            _suspects_first()


def _note_lines() -> None:
    run = StatePipeline._run

    async def noting_run(self: StatePipeline, work: LineWork, *arguments: Any) -> None:
        # No other one runs before the handler does.
        _Death.comes_later = work.sends
        await run(self, work, *arguments)

    StatePipeline._run = noting_run  # type: ignore[method-assign, assignment]


def _suspects_first() -> None:
    run = Takeover.run

    async def hand_over(self: Takeover, *arguments: Any, **options: Any) -> TakenOver:
        brought = await run(self, *arguments, **options)
        held = sorted(brought.held, key=lambda delivery: delivery not in brought.suspects)
        return msgspec.structs.replace(brought, held=held)

    Takeover.run = hand_over  # type: ignore[method-assign]


def _mark_first() -> None:
    claim = Marks.claim

    async def claim_and_mark(self: Marks, deliveries: Iterable[HeldDelivery]) -> Any:
        claimed = list(deliveries)
        known = await claim(self, claimed)
        for delivery in claimed:
            if delivery not in known:
                assert self._marking is not None
                with contextlib.suppress(PublishError):
                    await (await self._marking.make(delivery))
        return known

    Marks.claim = claim_and_mark  # type: ignore[method-assign]


def _ack_first(commit: Callable[[States, HeldState], asyncio.Future[Any]]) -> None:
    waiting: dict[str, asyncio.Task[Any]] = {}

    def late_commit(self: States, state: HeldState) -> asyncio.Future[Any]:
        _Death.at("commit")
        before = waiting.get(state.name)

        async def store() -> Any:
            # As if the broker took its time, which it may.
            await asyncio.sleep(0.3)
            if before is not None:
                state.revision = (await before).seq
            return await commit(self, state)

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
    "double_ack": DOUBLE_ACK,
}
KINDS: dict[str, tuple[type[Actor], dict[str, Any]]] = {
    "ordered": (Adding, {}),
    "unordered": (Adding, {"on_failure": "redeliver"}),
    "once": (Once, {}),
    "once-unordered": (Once, {"on_failure": "redeliver"}),
    BATCHED: (Batched, {"idempotency": Idempotency(window_seconds=3600, key="number")}),
    "keyed": (Telling, {"key": "key"}),
    ONE_ORDER: (Telling, {"ordered": True}),
    "keyed-batched": (Batched, {}),
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
                Child(KINDS[name][0], name=name, args={"name": name}, **KINDS[name][1], **common)
                for name in os.environ.get("STATE_ACTORS", ",".join(ACTORS)).split(",")
            ],
        )
    ],
)
