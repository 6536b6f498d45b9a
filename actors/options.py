"""The options of an actor: class keywords of Actor, overridable per Child."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.idempotency import Idempotency
from understudy.actors.keywords import check_keywords
from understudy.actors.names import check_choice, check_integer, check_name, check_seconds
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker, Mailbox, RetryPolicy
from understudy.actors.state import State, StateCodec

RestartType: TypeAlias = Literal["permanent", "transient", "temporary"]
RESTART_TYPES: tuple[RestartType, ...] = get_args(RestartType)

# With a key, handlers of different keys run at once; without one an instance handles one event at a time.
_KEYED_CONCURRENCY = 16
# What waits together of a key shares a commit.
_STATEFUL_CAPACITY = 4096


class OptionKeywords(TypedDict, total=False):
    """The keywords as a user may write them, so that type checkers check them."""

    key: str | Callable[[Any], object] | None
    mailbox: Mailbox
    concurrency: int
    ordered: bool
    state: type[State] | None
    idempotency: Idempotency | None
    replicas: int
    retry: RetryPolicy
    restart: RestartType
    restart_on: Sequence[type[Exception]]
    max_consecutive_failures: int | None
    handler_timeout_seconds: float
    hang_timeout_seconds: float
    start_timeout_seconds: float
    ack_wait_seconds: float
    on_failure: Literal["redeliver", "block"]
    double_ack: bool
    breakers: Sequence[CircuitBreaker]
    durable: str | None
    stream: str | None
    start: Literal["all", "new"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """An actor's options, checked and complete; made by `make_options` and `replace`.

    `given` is what was written: some defaults follow from other options, so they are worked out anew
    when a subclass or a Child overrides one.
    """

    key: str | Callable[[Any], object] | None = None
    mailbox: Mailbox = dataclasses.field(default_factory=Mailbox)
    concurrency: int = 1
    ordered: bool = False
    state: type[State] | None = None
    idempotency: Idempotency | None = None
    replicas: int = 1
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    restart: RestartType = "permanent"
    restart_on: tuple[type[Exception], ...] = ()
    max_consecutive_failures: int | None = None
    handler_timeout_seconds: float = 30.0
    hang_timeout_seconds: float = 8.0
    start_timeout_seconds: float = 30.0
    ack_wait_seconds: float = 15.0
    on_failure: Literal["redeliver", "block"] = "redeliver"
    double_ack: bool = False
    breakers: tuple[CircuitBreaker, ...] = ()
    durable: str | None = None
    stream: str | None = None
    start: Literal["all", "new"] = "all"
    where: str = dataclasses.field(default="actor", repr=False, compare=False)
    given: Mapping[str, object] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def is_sole_owner(self) -> bool:
        """Whether one cell alone may handle this actor's events: it keeps an order, or state.

        Of several replicas one is active then; the others are its standbys.
        """
        return self.key is not None or self.state is not None or self.ordered

    def replace(self, **overrides: object) -> "ActorOptions":
        """These options with some overridden, checked again."""
        return make_options({**self.given, **overrides}, self.where)

    def key_function(self) -> Callable[[Any], object] | None:
        """What gives an event's key, or None without one.

        The function of a named key reads the attribute, or the item of an untyped dict. It raises
        DecodeError if there is none or it can't be a key, since no later attempt would find one.
        """
        key = self.key
        if not isinstance(key, str):
            return key

        def read_key(event: Any) -> object:
            try:
                value = event[key] if type(event) is dict else getattr(event, key)
                hash(value)
            except (KeyError, AttributeError, TypeError) as error:
                name = type(event).__qualname__
                raise DecodeError(f"{name}: {key!r} can't be read as the actor's key: {error}") from error
            return value

        return read_key


# The names of all options.
OPTIONS = tuple(OptionKeywords.__annotations__)


def make_options(given: Mapping[str, object], where: str) -> ActorOptions:
    """Checks what was written and works out the defaults; `where` names the class or child in errors.

    Raises:
        DeclarationError: an option is unknown, has no usable value, or doesn't go with another.
    """
    check_keywords(given, OPTIONS, where, OptionKeywords)
    values = dict(given)
    keeps_order = values.get("key") is not None or values.get("ordered") is True
    if values.get("key") is not None:
        values.setdefault("concurrency", _KEYED_CONCURRENCY)
    if keeps_order:
        values.setdefault("on_failure", "block")
    if values.get("state") is not None:
        values.setdefault("mailbox", Mailbox(capacity=_STATEFUL_CAPACITY))
    breakers = values.get("breakers", ())
    if not isinstance(breakers, Sequence) or not all(isinstance(one, CircuitBreaker) for one in breakers):
        raise DeclarationError(f"{where}: breakers is {breakers!r}; give a list of CircuitBreaker")
    values["breakers"] = tuple(breakers)
    values["restart_on"] = _read_restart_on(values.get("restart_on", ()), where)
    # What the checks below make sure of, mypy can't see.
    options = ActorOptions(**values, where=where, given=dict(given))  # type: ignore[arg-type]
    _check_values(options, where)
    _check_idempotency(options, where)
    _check_together(options, where)
    return options


def _read_restart_on(given: object, where: str) -> tuple[type[Exception], ...]:
    types = given if isinstance(given, list | tuple) else None
    if types is None or not all(isinstance(one, type) and issubclass(one, Exception) for one in types):
        raise DeclarationError(f"{where}: restart_on is {given!r}; give a list of exception classes")
    for one in types:
        # What a handler raises to settle a delivery says nothing about the actor.
        if issubclass(one, Retry | Reject):
            raise DeclarationError(
                f"{where}: restart_on names {one.__qualname__}, which handlers raise on purpose; remove it"
            )
    return tuple(types)


def _check_values(options: ActorOptions, where: str) -> None:
    key: object = options.key
    if key is not None and not callable(key) and not (isinstance(key, str) and key.isidentifier()):
        raise DeclarationError(f"{where}: key is {key!r}; give an attribute's name or a callable")
    for name, kind in (("mailbox", Mailbox), ("retry", RetryPolicy), ("ordered", bool), ("double_ack", bool)):
        value = getattr(options, name)
        if not isinstance(value, kind):
            raise DeclarationError(f"{where}: {name} is {value!r}; give a {kind.__name__}")
    state: object = options.state
    if state is not None:
        if not (isinstance(state, type) and issubclass(state, State)):
            raise DeclarationError(f"{where}: state is {state!r}; give a subclass of State")
        StateCodec(state, where)
    check_integer(options.concurrency, f"{where}: concurrency", minimum=1)
    check_integer(options.replicas, f"{where}: replicas", minimum=1)
    for name in ("handler_timeout", "hang_timeout", "start_timeout", "ack_wait"):
        check_seconds(getattr(options, f"{name}_seconds"), f"{where}: {name}_seconds")
    check_choice(options.on_failure, f"{where}: on_failure", ("redeliver", "block"))
    check_choice(options.start, f"{where}: start", ("all", "new"))
    check_choice(options.restart, f"{where}: restart", RESTART_TYPES)
    if options.max_consecutive_failures is not None:
        check_integer(options.max_consecutive_failures, f"{where}: max_consecutive_failures", minimum=1)
    for name in ("durable", "stream"):
        value = getattr(options, name)
        if value is not None:
            check_name(value, f"{where}: {name}")
    names = [breaker.name for breaker in options.breakers]
    for name in names:
        if names.count(name) > 1:
            raise DeclarationError(f"{where}: two breakers are called {name!r}; rename one")


def _check_idempotency(options: ActorOptions, where: str) -> None:
    idempotency: object = options.idempotency
    if idempotency is None:
        return
    if not isinstance(idempotency, Idempotency):
        raise DeclarationError(
            f"{where}: idempotency is {idempotency!r}; give an Idempotency(window_seconds=…)"
        )


def _check_together(options: ActorOptions, where: str) -> None:
    if options.ordered and options.key is not None:
        raise DeclarationError(
            f"{where}: key and ordered exclude each other: ordered keeps the order of all events, "
            f"key that of each key; remove one"
        )
    if options.ordered and options.concurrency > 1:
        raise DeclarationError(
            f"{where}: ordered handles one event at a time, but concurrency is {options.concurrency}; "
            f"remove one of them"
        )
    if options.state is not None and options.key is None and options.concurrency > 1:
        raise DeclarationError(
            f"{where}: without key all events share one state and are handled one at a time, but concurrency "
            f"is {options.concurrency}; give a key, or remove concurrency"
        )
    # A takeover must come before the server redelivers.
    if options.hang_timeout_seconds * 3 >= options.ack_wait_seconds * 2:
        raise DeclarationError(
            f"{where}: hang_timeout_seconds is {options.hang_timeout_seconds}, but must be below two thirds "
            f"of ack_wait_seconds ({options.ack_wait_seconds}); lower it or raise ack_wait_seconds"
        )
