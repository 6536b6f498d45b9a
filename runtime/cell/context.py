"""What a handler is given as `ctx`: outputs are collected here and sent when it has returned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from typing import Any

from understudy.actors.context import Context, Delivery
from understudy.actors.errors import CircuitOpen
from understudy.runtime.breakers import Breakers

Send = Callable[[object, str | None], Awaitable[None]]


class _Done:
    """An awaitable that has nothing to wait for, without the cost of a coroutine."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()


class CellContext(Context):
    """The context of one handler run.

    Args:
        delivery: what is handled.
        breakers: the cell's.
        log: a logger that knows the cell.
        send: publishes an event at once, under the next id of its type.
    """

    __slots__ = ("_breakers", "_delivery", "_log", "_send", "collected", "failed_trial")

    def __init__(self, delivery: Delivery, breakers: Breakers, log: Any, send: Send) -> None:
        self._delivery = delivery
        self._breakers = breakers
        self._log = log
        self._send = send
        self.collected: list[tuple[object, str | None]] = []
        self.failed_trial: CircuitOpen | None = None

    @property
    def delivery(self) -> Delivery:
        """The delivery that is being handled."""
        return self._delivery

    @property
    def log(self) -> Any:
        """A structlog logger; entries carry the delivery's trace ids."""
        return self._log

    def publish(self, event: object, *, subject: str | None = None, now: bool = False) -> Awaitable[None]:
        """Collect an event, or with `now` send it at once."""
        if now:
            return self._send(event, subject)
        self.collected.append((event, subject))
        return _DONE

    def breaker(self, name: str) -> AbstractAsyncContextManager[None]:
        """Guard a downstream call."""
        return self._breakers.get(name).guard(self)
