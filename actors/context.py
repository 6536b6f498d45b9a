"""What a handler and the hooks are given beside the event."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol


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
    def trace_id(self) -> str:
        """The W3C trace id: the publisher's, or made on receipt."""

    @property
    def span_id(self) -> str:
        """The W3C id of this handling."""


class Context(ABC):
    """The optional second parameter of a handler, valid until the handler has returned."""

    @property
    @abstractmethod
    def delivery(self) -> Delivery:
        """The delivery that is being handled."""

    @property
    @abstractmethod
    def log(self) -> Any:
        """A structlog logger that knows app, actor and cell; entries carry the delivery's trace ids."""

    @abstractmethod
    def publish(self, event: object, *, subject: str | None = None, now: bool = False) -> Awaitable[None]:
        """Collects `event`: it goes out, confirmed, when the handler has returned and before the ack.

        What a failed handler has collected is dropped. The returned awaitable is already done, so awaiting
        it is optional. `subject` is needed for what is no Event, and overrides an Event's own.

        With `now=True` the event goes out at once, even if the handler fails later; then the awaitable must
        be awaited, and it raises PublishError if no stream confirms.
        """

    @abstractmethod
    def breaker(self, name: str) -> AbstractAsyncContextManager[None]:
        """Guards a block: `async with ctx.breaker("payments"):`; raises CircuitOpen while it is open.

        A failure inside counts against the breaker and passes on; a cancellation never counts. A name that
        neither the actor nor the app declares is an error that lists those that are.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StartContext:
    """What `on_start` is told; `generation` counts the starts of this cell from 1."""

    app: str
    actor: str
    cell: str
    generation: int
    log: Any
