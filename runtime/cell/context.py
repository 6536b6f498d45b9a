"""What a handler is given as `ctx`: outputs are collected here and sent when it has returned."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, TypeVar

from understudy.actors.context import ASK_TIMEOUT_SECONDS, BatchContext, Context, Delivery, Guard
from understudy.actors.errors import CircuitOpen, DeclarationError
from understudy.actors.names import check_seconds
from understudy.actors.state import State
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.outcomes import held_by
from understudy.runtime.cell.sending import Sending, Where
from understudy.runtime.stores.attempts import NONE, Attempts

Send = Callable[[object, Where], Awaitable[None]]
# Of a delivery and an event: the type of its answer, its subject, timeout in seconds, its idempotency key.
Ask = Callable[[Any, object, type, str | None, float, str], Awaitable[Any]]
_Reply = TypeVar("_Reply")
SendOf = Callable[[int | None, object, str | None], Awaitable[None]]


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
        stop: has the cell stop itself.
        cancel: cancels a timer.
        ask: asks for an answer.
        state: the key's, None in an actor without state.

    Attributes:
        collected: what was published.
        failed_trial: the breaker's word if a call was its trial and failed.
        touched: whether the handler has asked for the state.
        counter: what is to be counted once the state is stored; empty for nothing.
        stored: what is to be called then; None for nothing.
    """

    __slots__ = (
        *("_ask", "_breakers", "_cancel", "_delivery", "_log", "_send", "_state", "_stop"),
        *("collected", "counter", "failed_trial", "stored", "touched"),
    )

    def __init__(
        self,
        delivery: HeldDelivery,
        breakers: Breakers,
        log: Any,
        send: Send,
        stop: Callable[[], None],
        cancel: Callable[[str], Awaitable[bool]],
        ask: Ask,
        state: State | None = None,
    ) -> None:
        self._stop = stop
        self._ask = ask
        self._cancel = cancel
        self._state = state
        self.touched = False
        self.counter = ""
        self.stored: Callable[[], None] | None = None
        self._delivery = delivery
        self._breakers = breakers
        self._log = log
        self._send = send
        self.collected: list[tuple[object, Where]] = []
        self.failed_trial: CircuitOpen | None = None

    @property
    def delivery(self) -> Delivery:
        """The delivery that is being handled."""
        return self._delivery

    @property
    def state(self) -> Any:
        """The state of the event's key."""
        if self._state is None:
            raise DeclarationError("this actor has no state; declare its class with state=")
        self.touched = True
        return self._state

    def is_held_by(self, error: BaseException) -> bool:
        """Return whether an error has the delivery wait for an open breaker, which is no attempt."""
        return held_by(error, self.failed_trial, self._breakers) is not None

    def log_with(self, **fields: str) -> None:
        """Have all entries of this delivery say so from now on, that of its failure too."""
        self._delivery.about = fields

    @property
    def attempts(self) -> Attempts:
        """What is recorded of earlier runs."""
        return self._delivery.attempts or NONE

    def look(self) -> Any:
        """Return the state without asking for it: if nobody does, nothing is stored."""
        return self._state

    @property
    def log(self) -> Any:
        """A structlog logger; entries carry the delivery's trace ids."""
        return self._log

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
        """Collect an event, or with `now` send it at once."""
        where: Where = subject
        if delay_seconds is not None:
            check_seconds(delay_seconds, "ctx.publish: delay_seconds", zero=True)
            where = Sending(subject, delay_seconds, timer, idempotency_key)
        elif timer:
            raise DeclarationError(f"ctx.publish: timer {timer!r} has no time; give delay_seconds= too")
        elif idempotency_key:
            where = Sending(subject, idempotency_key=idempotency_key)
        if now:
            return self._send(event, where)
        self.collected.append((event, where))
        return _DONE

    async def cancel(self, timer: str) -> bool:
        """Cancel a timer at once, that of this run too."""
        if not timer:
            raise DeclarationError("ctx.cancel: give the name that the timer was set under")
        kept = [one for one in self.collected if not (isinstance(one[1], Sending) and one[1].timer == timer)]
        was_collected = len(kept) < len(self.collected)
        self.collected[:] = kept
        return await self._cancel(timer) or was_collected

    async def ask(
        self,
        event: object,
        *,
        expects: type[_Reply],
        subject: str | None = None,
        timeout_seconds: float = ASK_TIMEOUT_SECONDS,
        idempotency_key: str = "",
    ) -> _Reply:
        """Ask, and return the answer."""
        check_seconds(timeout_seconds, "ctx.ask: timeout_seconds")
        answer: _Reply = await self._ask(
            self._delivery, event, expects, subject, timeout_seconds, idempotency_key
        )
        return answer

    def breaker(self, name: str) -> Guard:
        """Guard downstream calls."""
        return self._breakers.guard(name, self)

    def stop(self) -> None:
        """End this cell for good."""
        self._stop()


class CellBatchContext(BatchContext):
    """The context of one run of a batch handler.

    Args:
        deliveries: what is handled.
        breakers: the cell's.
        log: a logger that knows the cell.
        send: publishes an event at once, under the next id of its type: for one delivery by its index, or
            for all of them.
        stop: has the cell stop itself.

    Attributes:
        failures: by index.
        collected: what was published for each delivery by its index, and for all of them under None.
        failed_trial: the breaker's word if a call was its trial and failed.
    """

    __slots__ = (
        *("_breakers", "_deliveries", "_log", "_send", "_stop"),
        *("collected", "failed_trial", "failures"),
    )

    def __init__(
        self,
        deliveries: Sequence[Delivery],
        breakers: Breakers,
        log: Any,
        send: SendOf,
        stop: Callable[[], None],
    ) -> None:
        self._stop = stop
        self._deliveries = tuple(deliveries)
        self._breakers = breakers
        self._log = log
        self._send = send
        self.failures: dict[int, Exception] = {}
        self.collected: dict[int | None, list[tuple[object, str | None]]] = {}
        self.failed_trial: CircuitOpen | None = None

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """The deliveries of the events, in the order of the list."""
        return self._deliveries

    def fail(self, index: int, error: Exception) -> None:
        """Fail one event."""
        # Whoever passes a class, or None, would otherwise ack what has failed.
        given: object = error
        if not isinstance(given, Exception):
            raise TypeError(
                f"fail({index!r}, {given!r}): give an exception, such as ValueError('no such order')"
            )
        self.failures[self._check(index)] = given

    @property
    def log(self) -> Any:
        """A structlog logger."""
        return self._log

    def publish(
        self, event: object, *, index: int | None = None, subject: str | None = None, now: bool = False
    ) -> Awaitable[None]:
        """Collect an event, or with `now` send it at once."""
        if index is not None:
            index = self._check(index)
        if now:
            return self._send(index, event, subject)
        self.collected.setdefault(index, []).append((event, subject))
        return _DONE

    def breaker(self, name: str) -> Guard:
        """Guard downstream calls."""
        return self._breakers.guard(name, self)

    def stop(self) -> None:
        """End this cell for good."""
        self._stop()

    def _check(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self._deliveries):
            raise IndexError(
                f"the batch has {len(self._deliveries)} events, counted from 0, and none at {index}"
            )
        return index
