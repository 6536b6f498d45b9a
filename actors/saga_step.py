"""Step: one action of a saga, and what undoes it."""

import enum
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from understudy.actors.errors import DeclarationError
from understudy.actors.event import Event
from understudy.actors.keywords import declares
from understudy.actors.names import check_integer, check_name, check_seconds


class NoCompensation(enum.Enum):
    """Says of a step that nothing undoes it, and nothing has to."""

    NO_COMPENSATION = "no compensation"


NO_COMPENSATION = NoCompensation.NO_COMPENSATION

_Action = Callable[..., Awaitable[Event | None]]


class Step:
    """One step: an action, and what undoes it.

    Both are `async def` methods of the saga that take a SagaContext; they may run more than once, each time
    with the same `ctx.idempotency_key`. An event that one of them returns is published under that key.

    With `replies`, handlers of the saga, the returned event is a command: the step is done when one of them
    has handled its event, and has failed when that raises Reject, or when none has come within
    `reply_timeout_seconds`. `correlation`, an attribute's name or a callable, tells the saga's id in a reply;
    by default it is the saga's `key`.

    An action that raises Reject has failed and has done nothing; a compensation that does is stuck. Whatever
    else one of them raises, or a run of more than `timeout_seconds`, is tried again, up to `max_attempts`
    runs (by default those of the saga's `retry`). Then an action has failed, may have done its work all the
    same, and is compensated with those before it; a compensation is stuck.

    Args:
        action: does it.
        compensation: undoes it, or NO_COMPENSATION.
        replies: handlers of what answers the command.
        correlation: where the replies have the saga's id.
        timeout_seconds: how long one run of action or compensation may take.
        reply_timeout_seconds: how long a reply is waited for (60).
        max_attempts: how often it is tried.
        name: names the step in keys and lists; the action's name by default.
    """

    __slots__ = (
        *("action", "compensation", "correlation", "max_attempts", "name", "replies"),
        *("reply_timeout_seconds", "timeout_seconds"),
    )

    action: _Action
    compensation: _Action | None
    replies: tuple[Callable[..., Any], ...]
    correlation: str | Callable[[Any], object] | None
    timeout_seconds: float
    reply_timeout_seconds: float
    max_attempts: int | None
    name: str

    @declares("Step")
    def __init__(
        self,
        action: _Action,
        *,
        compensation: _Action | NoCompensation | None = None,
        replies: Sequence[Callable[..., Any]] = (),
        correlation: str | Callable[[Any], object] | None = None,
        timeout_seconds: float = 10.0,
        reply_timeout_seconds: float | None = None,
        max_attempts: int | None = None,
        name: str | None = None,
    ) -> None:
        _check_method(action, "Step", "its action")
        self.name = check_name(action.__name__ if name is None else name, "Step")
        where = f"step {self.name!r}"
        if compensation is None:
            raise DeclarationError(
                f"{where}: nothing says what undoes it; give compensation=, a method of the saga, or "
                f"compensation=NO_COMPENSATION if nothing has to be undone"
            )
        if compensation is not NO_COMPENSATION:
            _check_method(compensation, where, "its compensation")
        self.action = action
        self.compensation = None if compensation is NO_COMPENSATION else compensation
        given: object = replies
        if not isinstance(given, list | tuple):
            name = getattr(given, "__name__", repr(given))
            raise DeclarationError(f"{where}: replies is {name}; give a list of handlers of the saga")
        self.replies = tuple(given)
        for option, value in (("correlation", correlation), ("reply_timeout_seconds", reply_timeout_seconds)):
            if value is not None and not self.replies:
                raise DeclarationError(f"{where}: {option} is for a step that waits; give replies= too")
        if not (correlation is None or isinstance(correlation, str) or callable(correlation)):
            raise DeclarationError(
                f"{where}: correlation is {correlation!r}; give an attribute's name or a callable"
            )
        self.correlation = correlation
        self.timeout_seconds = check_seconds(timeout_seconds, f"{where}: timeout_seconds")
        seconds = 60.0 if reply_timeout_seconds is None else reply_timeout_seconds
        self.reply_timeout_seconds = check_seconds(seconds, f"{where}: reply_timeout_seconds")
        if max_attempts is not None:
            check_integer(max_attempts, f"{where}: max_attempts", minimum=1)
        self.max_attempts = max_attempts

    def __repr__(self) -> str:
        return f"Step({self.name})"


def _check_method(method: object, where: str, what: str) -> None:
    if not inspect.isfunction(method) or not inspect.iscoroutinefunction(method):
        name = getattr(method, "__name__", repr(method))
        raise DeclarationError(f"{where}: {what} is {name}, which is no async def method of the saga")
    parameters = list(inspect.signature(method).parameters)
    if len(parameters) != 2:
        raise DeclarationError(
            f"{where}: {method.__name__} takes {', '.join(parameters) or 'nothing'}; write async def "
            f"{method.__name__}(self, ctx: SagaContext)"
        )
