"""Where a saga is, and where each outcome takes it: pure functions, which know nothing of how steps are run.

running ──▶ completed                      each step done
   │
   ▼ a step has failed
compensating ──▶ compensated               what was done is undone, the last first
   │      ▲
   ▼      │ resumed
 stuck ───┘                                a compensation has failed for good, or what is next can't be tried

Whatever hasn't ended may be abandoned. Each change raises the `turn`; an outcome of an earlier turn changes
nothing, so that what comes twice, or too late, does no harm.
"""

import enum
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

Direction: TypeAlias = Literal["do", "undo"]


class Phase(enum.StrEnum):
    """What a saga is doing, or how it has ended."""

    RUNNING = "running"
    COMPENSATING = "compensating"
    STUCK = "stuck"
    COMPLETED = "completed"
    COMPENSATED = "compensated"
    ABANDONED = "abandoned"


ENDED = frozenset({Phase.COMPLETED, Phase.COMPENSATED, Phase.ABANDONED})


class PlannedStep(msgspec.Struct, frozen=True):
    """What is to be known of a step here.

    Args:
        name: unique in its saga.
        awaits_reply: whether it isn't done before a reply has come.
        has_compensation: whether it is undone when a later one fails.
    """

    name: str
    awaits_reply: bool = False
    has_compensation: bool = True


Plan: TypeAlias = Sequence[PlannedStep]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a saga is.

    Args:
        phase: what it is doing.
        step: the step that is done or undone; empty when the saga has ended well.
        direction: whether that is done or undone; also of one that is stuck.
        waiting: whether the step's command is sent and its reply has not come.
        turn: how many changes there were.
        undo: the steps that are done, or may be, and can be undone; the last is the first to be.
        error: why it compensates.
        problem: why it is stuck, or what was said when it was abandoned.
    """

    phase: Phase = Phase.RUNNING
    step: str = ""
    direction: Direction = "do"
    waiting: bool = False
    turn: int = 0
    undo: tuple[str, ...] = ()
    error: str = ""
    problem: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        return self.phase in (Phase.RUNNING, Phase.COMPENSATING)


class Done(msgspec.Struct, frozen=True):
    """The action or compensation has succeeded; of a step with a reply, its command is sent."""

    turn: int


class Replied(msgspec.Struct, frozen=True):
    """The reply has come."""

    turn: int


class Failed(msgspec.Struct, frozen=True):
    """The action has failed, or the compensation has failed for good.

    Args:
        turn: of the position.
        error: why.
        did_nothing: whether it is known that an action has had no effect, so that it needn't be undone.
    """

    turn: int
    error: str
    did_nothing: bool = False


class Halted(msgspec.Struct, frozen=True):
    """What is to be done can't even be tried: it is stuck where it is.

    Args:
        turn: of the position.
        problem: why.
    """

    turn: int
    problem: str


class TimedOut(msgspec.Struct, frozen=True):
    """No reply has come in time."""

    turn: int


class Resumed(msgspec.Struct, frozen=True):
    """An operator has what is stuck tried again."""


class Abandoned(msgspec.Struct, frozen=True):
    """An operator has it left as it is, for good."""

    reason: str = ""


Outcome: TypeAlias = Done | Replied | Failed | Halted | TimedOut | Resumed | Abandoned


def begin(plan: Plan) -> Position:
    """Where a saga begins."""
    return Position(step=plan[0].name)


def advance(plan: Plan, position: Position, outcome: Outcome) -> Position:
    """Where an outcome takes a saga; the same position if it changes nothing."""
    match outcome:
        case Abandoned(reason):
            if position.phase in ENDED:
                return position
            return _changed(position, phase=Phase.ABANDONED, waiting=False, problem=reason)
        case Resumed():
            return _resume(position) if position.phase is Phase.STUCK else position
    if outcome.turn != position.turn or not position.is_active:
        return position
    step = find(plan, position.step)
    if step is None:
        return _park(position, f"the step {position.step!r} is no longer declared")
    if isinstance(outcome, Halted):
        return _park(position, outcome.problem)
    if position.direction == "undo":
        match outcome:
            case Done():
                return _undo_next(position, position.undo[:-1], position.error)
            case Failed(_, error):
                return _park(position, f"{step.name} can't be undone: {error}")
        return position
    return _advance_forwards(plan, position, step, outcome)


def _advance_forwards(
    plan: Plan, position: Position, step: PlannedStep, outcome: Done | Replied | Failed | TimedOut
) -> Position:
    match outcome:
        case Done() if step.awaits_reply and not position.waiting:
            return _changed(position, waiting=True)
        case Done() if not position.waiting:
            return _go_on(plan, position, step)
        case Replied() if position.waiting:
            return _go_on(plan, position, step)
        case TimedOut() if position.waiting:
            return _undo_next(position, _with(position.undo, step), f"{step.name}: no reply in time")
        case Failed(_, error, did_nothing):
            undo = position.undo if did_nothing else _with(position.undo, step)
            return _undo_next(position, undo, f"{step.name}: {error}")
    return position


def find(plan: Plan, name: str) -> PlannedStep | None:
    """The step of that name, None if there is none."""
    return next((step for step in plan if step.name == name), None)


def _with(undo: tuple[str, ...], step: PlannedStep) -> tuple[str, ...]:
    return (*undo, step.name) if step.has_compensation else undo


def _go_on(plan: Plan, position: Position, step: PlannedStep) -> Position:
    undo = _with(position.undo, step)
    names = [one.name for one in plan]
    # One that is done may come again where a new version has another order.
    left = [name for name in names[names.index(step.name) + 1 :] if name not in undo]
    if not left:
        return _changed(position, phase=Phase.COMPLETED, step="", waiting=False, undo=undo)
    return _changed(position, step=left[0], waiting=False, undo=undo)


def _undo_next(position: Position, undo: tuple[str, ...], error: str) -> Position:
    return _changed(
        position,
        phase=Phase.COMPENSATING if undo else Phase.COMPENSATED,
        step=undo[-1] if undo else "",
        direction="undo",
        waiting=False,
        undo=undo,
        error=error,
    )


def _park(position: Position, problem: str) -> Position:
    return _changed(position, phase=Phase.STUCK, problem=problem)


def _resume(position: Position) -> Position:
    phase = Phase.RUNNING if position.direction == "do" else Phase.COMPENSATING
    return _changed(position, phase=phase, problem="")


def _changed(position: Position, **fields: object) -> Position:
    return msgspec.structs.replace(position, turn=position.turn + 1, **fields)
