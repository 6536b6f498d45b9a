"""What a handler and the hooks are given beside the event."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Reply = TypeVar("_Reply")
ASK_TIMEOUT_SECONDS = 5.0


class Delivery(Protocol):
    """The delivery that is being handled; everything here is read-only."""

    @property
    def subject(self) -> str:
        """The subject that the event came on."""

    @property
    def stream(self) -> str:
        """The stream that holds it."""

    @property
    def sequence(self) -> int:
        """Its sequence in the stream: with the stream it names the event for ever."""

    @property
    def attempt(self) -> int:
        """1 on the first run, one more after each run that failed; redeliveries alone don't raise it."""

    @property
    def published_at(self) -> datetime:
        """When the stream stored it, in UTC."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers as published."""

    @property
    def idempotency_key(self) -> str:
        """By what a repeat of the event is known, here and to services that take such a key.

        The actor's own (`Idempotency`), else the id that the event was published with, else its place in the
        stream. It is the same on every run, on every cell, and on the replay of a dead letter.
        """

    @property
    def deadline(self) -> datetime | None:
        """When whoever has asked waits no longer, in UTC; None if nobody has, or without end."""

    @property
    def trace_id(self) -> str:
        """The W3C trace id: the publisher's, or made on receipt."""

    @property
    def span_id(self) -> str:
        """The W3C id of this handling."""


class Guard(Protocol):
    """Guards the calls of a service: `async with`, in a thread `with`, or as a decorator.

    Entering raises CircuitOpen while the breaker is open, and BulkheadFull if `max_concurrent` calls go on
    running. A failure inside counts against the breaker and passes on as it is; a cancellation, `Retry`,
    `Reject` and what the breaker excludes don't count. One guard guards one call at a time; what it decorates
    may be called as often at once as one likes.
    """

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def __call__(self, function: _Function, /) -> _Function:
        """Returns the function guarded; what isn't a coroutine function is for threads alone."""


class Context(ABC):
    """The optional second parameter of a handler, valid until the handler has returned."""

    @property
    @abstractmethod
    def delivery(self) -> Delivery:
        """The delivery that is being handled."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """The state of the event's key, or without `key` the actor's: of the type that `state=` names.

        What the handler assigns to its fields is stored when it has returned, together with what it has
        published, before any of that goes out; what a failed handler has changed is dropped. Not to be used
        when the handler has returned. A handler that doesn't ask for it costs no commit.

        Raises DeclarationError in an actor without state.
        """

    @property
    @abstractmethod
    def log(self) -> Any:
        """A structlog logger that knows app, actor and cell; entries carry the delivery's trace ids."""

    @abstractmethod
    def publish(
        self,
        event: object,
        *,
        subject: str | None = None,
        now: bool = False,
        delay_seconds: float | None = None,
        timer: str = "",
        idempotency_key: str = "",
    ) -> Awaitable[None]:
        """Collects `event`: it goes out, confirmed, when the handler has returned and before the ack.

        What a failed handler has collected is dropped. The returned awaitable is already done, so awaiting
        it is optional. `subject` is needed for what is no Event, and overrides an Event's own.

        With `now=True` the event goes out at once, even if the handler fails later; then the awaitable must
        be awaited, and it raises PublishError if no stream confirms.

        With `delay_seconds` its stream, which must be declared with `timers=True`, keeps it so long first,
        counted from the call. `timer` names it, for `cancel`; an actor's timer that is set again under its
        name takes the place of the one before.

        `idempotency_key` is what its receivers are given as theirs (`ctx.delivery.idempotency_key`); by
        default it is known by its message id.
        """

    @abstractmethod
    async def cancel(self, timer: str) -> bool:
        """Cancels, at once, what this actor has published with a delay under that name.

        Also what this run has collected; where the run fails later, it stays cancelled. Returns whether there
        was such a timer: if not, it has fired, was cancelled before, or never set. Raises BrokerError if the
        server doesn't answer.
        """

    @abstractmethod
    async def ask(
        self,
        event: object,
        *,
        expects: type[_Reply],
        subject: str | None = None,
        timeout_seconds: float = ASK_TIMEOUT_SECONDS,
        idempotency_key: str = "",
    ) -> _Reply:
        """Publishes `event` at once, and returns what the handler of it that declares `reply=` answers.

        It waits no longer than `timeout_seconds`, and never longer than whoever has asked for this delivery.
        `expects` is the type that the answer is read as. A run that is repeated asks again; with an
        `idempotency_key` an actor that is idempotent handles it once, and says AskFailed to the others.
        For `async def` handlers.

        Raises AskTimeout, AskRejected or AskFailed; PublishError if no stream takes the event; DecodeError
        if the answer isn't what is expected; DeclarationError if this actor would wait for itself.
        """

    @abstractmethod
    def breaker(self, name: str) -> Guard:
        """Guards a block: `async with ctx.breaker("payments"):`; raises CircuitOpen while it is open.

        In a `def` handler, which runs in a thread, write `with`. As a decorator it guards each call of a
        function: `charge = ctx.breaker("payments")(client.charge)`; a coroutine function stays one.

        A handler that lets CircuitOpen pass has its delivery held, and no attempt is counted. A name that
        neither the actor nor the app declares is an error that lists those that are.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends this cell for good: it drains when the handler has returned, and isn't started again.

        The current delivery is settled as usual, whatever the handler then does. What the cell holds may
        still be handled for a moment; the rest is given back, and waits in the stream until the app is
        started anew or another replica takes it. May be called more than once, and from a handler's thread.

        Raises DeclarationError in an actor that is `permanent`, since its supervisor would start it again.
        """


class BatchContext(ABC):
    """The optional second parameter of a batch handler, valid until the handler has returned.

    `index` counts the list that the handler was given, from 0.
    """

    @property
    @abstractmethod
    def deliveries(self) -> Sequence[Delivery]:
        """The deliveries of the events, in the order of the list."""

    @abstractmethod
    def fail(self, index: int, error: Exception) -> None:
        """Fails one event of the batch; the others are acked when the handler returns.

        The event's attempt ends as if its handler had raised `error`: `Retry` and `Reject` mean what they
        mean there, anything else counts as a failure. Of two errors for one event the later counts.

        Where a failure blocks (`on_failure="block"`), the later events of its key in the batch, or with
        `ordered` all later ones, are held back with it: whatever the handler did with them, they are not
        acked and come again after it, in stream order.

        If the handler itself raises, all of them fail with that exception, whatever was said here.

        Raises IndexError if the batch has no such event, and TypeError if `error` is no exception.
        """

    @property
    @abstractmethod
    def log(self) -> Any:
        """A structlog logger that knows app, actor and cell."""

    @abstractmethod
    def publish(
        self, event: object, *, index: int | None = None, subject: str | None = None, now: bool = False
    ) -> Awaitable[None]:
        """Collects `event`, as `Context.publish` does: it goes out when the handler has returned.

        With `index` it belongs to that event of the batch: it is dropped if that one fails or is held back,
        and a rerun publishes it under the same id, so the stream drops the repeat. Without, it belongs to
        the batch, as what the handler returns does: it is dropped only if the handler raises, and goes out
        again if its events come in a batch of other events after a crash.
        """

    @abstractmethod
    def breaker(self, name: str) -> Guard:
        """Guards a block, as `Context.breaker` does; a CircuitOpen that passes holds the whole batch."""

    @abstractmethod
    def stop(self) -> None:
        """Ends this cell for good, as `Context.stop` does."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StartContext:
    """What `on_start` is told; `generation` counts the starts of this cell from 1."""

    app: str
    actor: str
    cell: str
    generation: int
    log: Any
