"""Saga: a process of several steps, each of which can be undone, that goes on where it was.

    class Rebooking(Saga, key="booking", state=Booking):
        @starts
        async def delayed(self, event: Delayed) -> Booking | None: ...

        async def reserve(self, ctx: SagaContext[Booking]) -> None: ...
        async def release(self, ctx: SagaContext[Booking]) -> None: ...

        steps = (Step(reserve, compensation=release), ...)

All of it is checked when the class is made; how it is run is in understudy.runtime.cell.saga.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypedDict, TypeVar, Unpack

import msgspec

from understudy.actors.actor import Actor
from understudy.actors.context import Context, Guard
from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.event import Event, EventMeta
from understudy.actors.handlers import HandlerSpec, answers, handles, is_marked, published_types
from understudy.actors.idempotency import text_of
from understudy.actors.names import nearest
from understudy.actors.options import RestartType
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.actors.returned import has_subject, is_surely_no, returned_by, shown
from understudy.actors.saga_position import PlannedStep, Position
from understudy.actors.saga_step import Step
from understudy.actors.state import State, StateCodec

StateT = TypeVar("StateT", bound=State)
_Method = TypeVar("_Method", bound=Callable[..., Any])
_STARTS = "__understudy_starts__"
# Beside them in a handler's timeout: reading, storing and publishing.
_SPARE_SECONDS = 10.0
_MAX_ID_CHARACTERS = 200
_OWN = ("ordered", "idempotency", "on_failure")


class SagaContext(Generic[StateT]):
    """What an action, a compensation or a reply is given.

    Attributes:
        state: the saga's, to be read and assigned; what a failed run has changed is dropped.
        saga_id: by which it is known.
        idempotency_key: of saga, step and direction, the same in every run; to be handed to the service.
        attempt: 1 on the first run of the step, one more after each that failed.
        log: a structlog logger that knows app, actor, cell, saga and step.
        published: what `publish` was given.
    """

    __slots__ = ("_context", "attempt", "idempotency_key", "log", "published", "saga_id", "state")

    def __init__(self, context: Context, state: StateT, *, saga_id: str, step: str, key: str) -> None:
        self._context = context
        self.state = state
        self.saga_id = saga_id
        self.idempotency_key = key
        self.attempt = context.delivery.attempt
        self.log = context.log.bind(saga=saga_id, step=step)
        self.published: list[Event] = []

    def breaker(self, name: str) -> Guard:
        """Guards a call, as `Context.breaker` does: while it is open the saga waits where it is."""
        return self._context.breaker(name)

    def publish(self, event: Event) -> None:
        """Collects `event`: it goes out when the step is done and stored; not if it has failed."""
        self.published.append(event)


class SagaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a saga class declares.

    Args:
        plan: its steps, as far as they matter for where they lead.
        steps: by name.
        longest_seconds: how long one run of any of them may take.
        handlers: what it handles, by the names of the methods.
        starts: those that start one.
        replies: by the reply's method, the name of the step that it answers.
        codec: of the state.
    """

    plan: tuple[PlannedStep, ...]
    steps: Mapping[str, Step]
    longest_seconds: float
    handlers: Mapping[str, HandlerSpec]
    starts: frozenset[str]
    replies: Mapping[str, str]
    codec: StateCodec


# The user's own max_bytes bounds it, and the server's max_payload.
class SagaRecord(State, max_bytes=64 * 1024 * 1024):
    """A saga as it is stored: as the state of its id.

    Args:
        id: empty if no saga was ever started under it.
        position: where it is.
        state: the user's, encoded.
        version: of the state's class.
        started_at, changed_at: when, in seconds since 1970.
    """

    id: str = ""
    position: Position = Position()
    state: bytes = b""
    version: int = 1
    started_at: float = 0.0
    changed_at: float = 0.0


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What a saga tells itself, or an operator tells it.

    Args:
        saga: its id.
        kind: `go` (run the step), `timeout` (no reply has come), `resume` or `abandon`.
        turn: of the position, for the first two.
        reason: of an operator.
    """

    saga: str
    kind: str
    turn: int = 0
    reason: str = ""


class SagaKeywords(TypedDict, total=False):
    """The options of an actor that a saga has too."""

    mailbox: Mailbox
    concurrency: int
    replicas: int
    retry: RetryPolicy
    restart: RestartType
    restart_on: Sequence[type[Exception]]
    max_consecutive_failures: int | None
    handler_timeout_seconds: float
    hang_timeout_seconds: float
    start_timeout_seconds: float
    ack_wait_seconds: float
    double_ack: bool
    breakers: Sequence[CircuitBreaker]
    durable: str | None
    stream: str | None
    start: Literal["all", "new"]


def starts(method: _Method) -> _Method:
    """Marks a method as what starts a saga: it takes an event, as a handler does, and returns the state.

    Where it returns None no saga is started; nor where there is one under the event's key, ended or not.
    """
    if not is_marked(method):
        handles(method)
    setattr(method, _STARTS, True)
    return method


class Saga(Actor):
    """The base of sagas; class keywords are its options.

    `key` (an attribute's name or a callable: tells the saga's id in the events that start it) and `state`
    (its type) must be given; the others are an actor's, but for `ordered`, `idempotency` and `on_failure`.
    `retry` says how often and how soon actions and compensations are tried again. `steps` is its class
    attribute.

    One saga does one thing at a time, and up to `concurrency` (16) of them run at once.
    """

    __saga__: ClassVar[SagaSpec]
    steps: ClassVar[Sequence[Step]]

    def __init_subclass__(
        cls,
        *,
        key: str | Callable[[Any], object] | None = None,
        state: type[State] | None = None,
        **options: Unpack[SagaKeywords],
    ) -> None:
        where = f"saga {cls.__qualname__}"
        for name in _OWN:
            if name in options:
                raise DeclarationError(f"{where}: {name} isn't a saga's to choose; remove it")
        if not (isinstance(state, type) and issubclass(state, State)):
            raise DeclarationError(f"{where}: state is {state!r}; give a subclass of State")
        if not (callable(key) or (isinstance(key, str) and key.isidentifier())):
            raise DeclarationError(
                f"{where}: key is {key!r}; give the attribute of the events that start it which names the "
                f"saga, or a callable"
            )
        steps = _check_steps(cls, where)
        least = max(step.timeout_seconds for step in steps)
        if options.setdefault("handler_timeout_seconds", least + _SPARE_SECONDS) <= least:
            raise DeclarationError(
                f"{where}: handler_timeout_seconds is {options['handler_timeout_seconds']}, but a step may "
                f"take {least}; raise it, or leave it out"
            )
        _check_no_answers(cls, where)
        finder = _Finder(where)
        super().__init_subclass__(key=finder.find, state=SagaRecord, on_failure="redeliver", **options)
        handlers = {handler.method: handler for handler in cls.__understudy__.handlers}
        begins = frozenset(name for name in handlers if hasattr(getattr(cls, name), _STARTS))
        if not begins:
            raise DeclarationError(f"{where}: nothing starts it; put @starts on a method that takes an event")
        for name in sorted(begins):
            finder.add(handlers[name], key, "key")
        for name, handler in handlers.items():
            if not handler.is_async or (handler.wants_context and name in begins):
                form = "(self, event)" if name in begins else "(self, event, ctx: SagaContext)"
                raise DeclarationError(f"{where}: {name} can't be called; write async def {name}{form}")
        replies = _check_replies(steps, handlers, begins, where)
        for name, step in replies.items():
            finder.add(handlers[name], key if step.correlation is None else step.correlation, "correlation")
        _check_returns(cls, steps, begins, replies, state, where)
        plan = tuple(
            PlannedStep(step.name, bool(step.replies), step.compensation is not None) for step in steps
        )
        cls.__saga__ = SagaSpec(
            plan=plan,
            steps={step.name: step for step in steps},
            longest_seconds=least,
            handlers=handlers,
            starts=begins,
            replies={name: step.name for name, step in replies.items()},
            codec=StateCodec(state, where),
        )
        # Each is run for the saga, which needs the context.
        run = tuple(
            dataclasses.replace(handler, wants_context=True, is_async=True) for handler in handlers.values()
        )
        cls.__understudy__ = dataclasses.replace(cls.__understudy__, handlers=run)


def _check_no_answers(cls: type, where: str) -> None:
    """Refuse reply=, before what such a handler returns is compared with it."""
    for name in dir(cls):
        if answers(inspect.getattr_static(cls, name)):
            raise DeclarationError(f"{where}: {name} has reply=, but a saga answers nobody; take it away")


def _check_returns(
    cls: type,
    steps: Sequence[Step],
    begins: Iterable[str],
    replies: Iterable[str],
    state: type[State],
    where: str,
) -> None:
    for step in steps:
        _check_step_returns(cls, step, where)
    for name in begins:
        _check_start_returns(cls, name, state, where)
    for name in replies:
        _check_reply_returns(cls, name, where)


def _check_step_returns(cls: type, step: Step, where: str) -> None:
    """Refuse a step whose action or compensation says that it returns what fails each of its runs."""
    for method in (step.action, step.compensation):
        if not inspect.isfunction(method):
            continue
        name = f"{method.__name__}, of step {step.name!r},"
        returned = returned_by(cls, method)
        for type_ in returned:
            if is_surely_no(type_, Event):
                raise DeclarationError(f"{where}: {name} returns {shown(type_)}; return an Event or None")
            if isinstance(type_, EventMeta) and type_ is not Event and not has_subject(type_):
                raise DeclarationError(
                    f"{where}: {name} returns {shown(type_)}, which has no subject to be published to; "
                    f'write class {shown(type_)}(Event, subject="…")'
                )
        if method is step.action and step.replies and returned == (type(None),):
            raise DeclarationError(
                f"{where}: {name} returns None, but the step waits for a reply; return the event that is to "
                f"be replied to, or take replies= away"
            )


def _check_start_returns(cls: type, name: str, state: type[State], where: str) -> None:
    """Refuse a method that starts sagas and says that it returns something else than their state."""
    for type_ in returned_by(cls, inspect.unwrap(getattr(cls, name))):
        if is_surely_no(type_, state):
            raise DeclarationError(
                f"{where}: {name} returns {shown(type_)}; return {state.__qualname__}, the saga's state, or "
                f"None to start none"
            )


def _check_reply_returns(cls: type, name: str, where: str) -> None:
    """Refuse a reply's handler that says it returns an event, which nobody would publish."""
    for type_ in published_types(returned_by(cls, inspect.unwrap(getattr(cls, name)))):
        if isinstance(type_, EventMeta):
            raise DeclarationError(
                f"{where}: {name} returns {type_.__qualname__}, but what the handler of a reply returns goes "
                f"nowhere; publish it by ctx.publish"
            )


class _Finder:
    """Tells the saga's id in whatever comes: a start event, a reply, a signal."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._find: dict[Any, Callable[[Any], object]] = {Signal: lambda signal: signal.saga}

    def add(self, handler: HandlerSpec, key: str | Callable[[Any], object], what: str) -> None:
        """Takes in an event's type, and where it has the id."""
        fields = getattr(handler.type, "__struct_fields__", None)
        if fields is None:
            raise DeclarationError(f"{self._where}: {handler.method} takes no Event; annotate it with one")
        event = handler.type.__qualname__  # type: ignore[union-attr]
        if handler.type in self._find:
            raise DeclarationError(f"{self._where}: two of its methods take {event}; keep one")
        if callable(key):
            self._find[handler.type] = key
            return
        if key not in fields and not hasattr(handler.type, key):
            remedy = (
                "; add it, or say by the step's correlation= where the reply has the saga's id"
                if what == "correlation"
                else nearest(key, fields)
            )
            raise DeclarationError(
                f"{self._where}: {event}, which {handler.method} takes, has no field {key!r}, so it names no "
                f"saga{remedy}"
            )
        self._find[handler.type] = lambda event: getattr(event, key)

    def find(self, event: Any) -> str:
        """The id; DecodeError if there is none."""
        found = text_of(self._find[type(event)](event), "the saga's id")
        if len(found) > _MAX_ID_CHARACTERS or not found.isprintable():
            raise DecodeError(
                f"the saga's id is {found[:80]!r}; give at most {_MAX_ID_CHARACTERS} printable characters"
            )
        return found


def _check_steps(cls: type, where: str) -> tuple[Step, ...]:
    steps: object = getattr(cls, "steps", None)
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(one, Step) for one in steps):
        raise DeclarationError(
            f"{where}: steps is {steps!r}; write steps = (Step(reserve, compensation=release), …)"
        )
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise DeclarationError(f"{where}: two steps are called {name!r}; give one of them another name=")
    return tuple(steps)


def _check_replies(
    steps: Sequence[Step], handlers: Mapping[str, HandlerSpec], begins: frozenset[str], where: str
) -> dict[str, Step]:
    """The steps by the methods of their replies."""
    replies: dict[str, Step] = {}
    for step in steps:
        for reply in step.replies:
            name = getattr(reply, "__name__", str(reply))
            if name not in handlers or name in begins:
                raise DeclarationError(
                    f"{where}: {name}, a reply of step {step.name!r}, is no handler; put @handles above it"
                )
            if name in replies:
                raise DeclarationError(
                    f"{where}: {name} is the reply of {replies[name].name!r} and of {step.name!r}, so nobody "
                    f"can tell which of them it answers; use an event for each"
                )
            replies[name] = step
    for name in handlers:
        if name not in replies and name not in begins:
            raise DeclarationError(
                f"{where}: {name} handles an event that no step waits for; name it in a step's replies=, or "
                f"put @starts above it instead"
            )
    return replies
