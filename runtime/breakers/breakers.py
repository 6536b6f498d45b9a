"""The breakers of one cell, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from understudy.actors.errors import DeclarationError
from understudy.actors.policies import CircuitBreaker
from understudy.runtime.breakers.breaker import Breaker
from understudy.runtime.breakers.bulkhead import Bulkhead
from understudy.runtime.breakers.guard import Caller, Guard
from understudy.runtime.breakers.sharing import Sharing, Store


class BreakerState(msgspec.Struct, frozen=True):
    """What one breaker does.

    Args:
        name: its name.
        state: `closed`, `open` or `half-open`.
        since: when it was last closed, in seconds since 1970; 0 if it is.
    """

    name: str
    state: str
    since: float


class Breakers:
    """The breakers of one cell.

    Args:
        policies: by name.
        changed: called in the cell's event loop with a breaker's name when it has opened, closed, or lets its
            next trial through at another time.
        count: called likewise with the name of a counter.
        called: called in any thread with a breaker's name and what became of a call: `success`, `failure`,
            `rejected`, `timeout` or `excluded`.
        me: names the cell among those that share its breakers, as `Breaker` has it.
        call_bound_seconds: how long a call may take at most, where its breaker has no timeout.
    """

    def __init__(
        self,
        policies: Mapping[str, CircuitBreaker],
        *,
        changed: Callable[[str], None] = lambda _: None,
        count: Callable[[str], None] = lambda _: None,
        called: Callable[[str, str], None] = lambda *_: None,
        me: str = "",
        call_bound_seconds: float = 30.0,
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._breakers = {
            name: Breaker(
                policy,
                changed=lambda name: self._in_loop(changed, name),
                count=lambda counter: self._in_loop(count, counter),
                called=partial(called, name),
                me=me,
                call_bound_seconds=call_bound_seconds,
            )
            for name, policy in policies.items()
        }
        self._bulkheads = {
            name: Bulkhead(policy.max_concurrent)
            for name, policy in policies.items()
            if policy.max_concurrent is not None
        }
        self._shared: dict[str, Sharing] = {}

    def run_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which event loop is the cell's."""
        self._loop = loop

    async def share(self, store: Store, keys: Mapping[str, str]) -> None:
        """Share the breakers with the other cells from now on.

        Args:
            store: where they have them.
            keys: each breaker's, by its name.
        """
        self._shared = {
            keys[name]: Sharing(breaker, keys[name], store) for name, breaker in self._breakers.items()
        }
        await asyncio.gather(*(shared.start() for shared in self._shared.values()))

    def hear(self, key: str, value: bytes, revision: int) -> None:
        """Hear of a new record."""
        shared = self._shared.get(key)
        if shared is not None:
            shared.hear(value, revision)

    def look(self) -> None:
        """Look what was written meanwhile: the connection had been lost."""
        for shared in self._shared.values():
            shared.look()

    async def close(self) -> None:
        """Tell the others what they don't know yet, and share no more."""
        await asyncio.gather(*(shared.close() for shared in self._shared.values()))

    def guard(self, name: str, caller: Caller) -> Guard:
        """Return what guards a call.

        Raises:
            DeclarationError: no breaker of that name is declared.
        """
        return Guard(self.get(name), self._bulkheads.get(name), caller, self._loop)

    def __contains__(self, name: object) -> bool:
        """Return whether a breaker of that name is declared."""
        return name in self._breakers

    def get(self, name: str) -> Breaker:
        """Return a breaker.

        Raises:
            DeclarationError: none of that name is declared.
        """
        try:
            return self._breakers[name]
        except KeyError:
            declared = ", ".join(sorted(self._breakers)) or "none"
            raise DeclarationError(
                f"no circuit breaker named {name!r} (declared: {declared}); "
                f"add CircuitBreaker({name!r}) to the actor's or the app's breakers"
            ) from None

    def wait_seconds(self, name: str) -> float | None:
        """Return how long a breaker lets no trial through: 0 if one may be made now, None if it is closed."""
        breaker = self._breakers.get(name)
        return None if breaker is None else breaker.wait_seconds()

    def states(self) -> tuple[BreakerState, ...]:
        """Return what each breaker does, in the order of their names."""
        return tuple(
            BreakerState(name, breaker.record.state, breaker.record.since)
            for name, breaker in sorted(self._breakers.items())
        )

    def _in_loop(self, call: Callable[[str], None], name: str) -> None:
        if self._loop is None or self._loop is _running_loop():
            call(name)
        else:
            self._loop.call_soon_threadsafe(call, name)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
