"""The values that say how much an actor holds, how it retries, and when it stops calling a sick service."""

from collections.abc import Sequence
from typing import Any

import msgspec

from understudy.actors.errors import DeclarationError
from understudy.actors.keywords import PolicyMeta
from understudy.actors.names import check_integer, check_name, check_seconds


class Mailbox(msgspec.Struct, metaclass=PolicyMeta, frozen=True, kw_only=True):
    """How much a cell may hold; what doesn't fit stays in the stream.

    Held deliveries and outstanding demand together never exceed `capacity`, nor their bodies `max_bytes`
    (one body larger than that is fetched alone).
    """

    capacity: int = 1024
    max_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        check_integer(self.capacity, "Mailbox: capacity", minimum=1)
        check_integer(self.max_bytes, "Mailbox: max_bytes", minimum=1)


class Batch(msgspec.Struct, metaclass=PolicyMeta, frozen=True, kw_only=True):
    """How many events a batch handler takes at once: `@handles(batch=Batch(size=100))`.

    It is handed `size` events, or fewer when `timeout_seconds` have passed since the first of them began to
    wait; 0 hands over what is there without waiting. The actor's `handler_timeout_seconds` bounds the
    handling of the whole batch.
    """

    size: int
    timeout_seconds: float = 1.0

    def __post_init__(self) -> None:
        check_integer(self.size, "Batch: size", minimum=1)
        check_seconds(self.timeout_seconds, "Batch: timeout_seconds", zero=True)


class RetryPolicy(msgspec.Struct, metaclass=PolicyMeta, frozen=True, kw_only=True):
    """How often and how soon a failed event is tried again before it becomes a dead letter.

    `max_attempts` counts handler runs that failed; `max_crashes` counts processes that died over the event.
    `min_delay_seconds` is the base of an exponential backoff: the pause is drawn anew each time, from 0 to
    that (doubled with each attempt, up to `max_delay_seconds`; full jitter), so it can be shorter.
    """

    max_attempts: int = 5
    min_delay_seconds: float = 0.5
    max_delay_seconds: float = 60.0
    max_crashes: int = 3

    def __post_init__(self) -> None:
        check_integer(self.max_attempts, "RetryPolicy: max_attempts", minimum=1)
        check_integer(self.max_crashes, "RetryPolicy: max_crashes", minimum=1)
        check_seconds(self.min_delay_seconds, "RetryPolicy: min_delay_seconds", zero=True)
        check_seconds(self.max_delay_seconds, "RetryPolicy: max_delay_seconds", zero=True)
        if self.min_delay_seconds > self.max_delay_seconds:
            raise DeclarationError(
                f"RetryPolicy: min_delay_seconds ({self.min_delay_seconds}) is above "
                f"max_delay_seconds ({self.max_delay_seconds}); lower it or raise the other"
            )

    def delay_seconds(self, attempt: int, random: float) -> float:
        """The pause after the failed attempt number `attempt` (from 1): exponential, with full jitter.

        `random` is drawn by the caller from [0, 1), so that this stays a pure function.
        """
        # A float overflows at 2**1024, and max_delay_seconds is reached long before.
        return min(self.max_delay_seconds, self.min_delay_seconds * 2.0 ** min(attempt - 1, 1000)) * random


class _Named(msgspec.Struct, metaclass=PolicyMeta, frozen=True):
    # A base of its own since the name may be given by position and all else only by keyword.
    name: str


class CircuitBreaker(_Named, frozen=True, kw_only=True):
    """A breaker's settings, by the name that handlers use: `async with ctx.breaker("payments"):`.

    It opens after `fail_max` failures in a row, of all cells that share it, and lets one trial through after
    `reset_timeout_seconds`; `success_threshold` trials in a row that succeed close it.

    `timeout_seconds`, where given, bounds the guarded call, and running into it is a failure. In a thread a
    call can't be cut short: one that took longer counts as a failure though it has returned.

    `max_concurrent`, where given, is how many guarded calls a cell makes at once. One more waits for
    `timeout_seconds` at most (as long as its handler may, without), and then raises BulkheadFull.

    `excluded` are exception types, and functions of an exception that return whether it is excluded: what the
    service answers on purpose, such as "no such customer". Such a call counts neither as failure nor as
    success, and a trial that ends so is made again by the next delivery.
    """

    fail_max: int = 5
    reset_timeout_seconds: float = 30.0
    timeout_seconds: float | None = None
    max_concurrent: int | None = None
    success_threshold: int = 1
    # Of `type[Exception] | Callable[[Exception], bool]`, which msgspec couldn't tell apart in a field.
    excluded: Sequence[Any] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "CircuitBreaker")
        where = f"CircuitBreaker {self.name!r}"
        check_integer(self.fail_max, f"{where}: fail_max", minimum=1)
        check_seconds(self.reset_timeout_seconds, f"{where}: reset_timeout_seconds")
        if self.timeout_seconds is not None:
            check_seconds(self.timeout_seconds, f"{where}: timeout_seconds")
        if self.max_concurrent is not None:
            check_integer(self.max_concurrent, f"{where}: max_concurrent", minimum=1)
        check_integer(self.success_threshold, f"{where}: success_threshold", minimum=1)
        # Their own types are no safeguard where nobody runs a type checker.
        excluded: object = self.excluded
        if not isinstance(excluded, list | tuple) or not all(map(_is_exclusion, excluded)):
            raise DeclarationError(
                f"{where}: excluded is {excluded!r}; give a list of exception classes, and of functions that "
                "take an exception"
            )
        msgspec.structs.force_setattr(self, "excluded", tuple(excluded))

    def is_excluded(self, error: Exception) -> bool:
        """Returns whether `error` says nothing of the service."""
        return any(isinstance(error, one) if isinstance(one, type) else one(error) for one in self.excluded)


def _is_exclusion(value: object) -> bool:
    return issubclass(value, Exception) if isinstance(value, type) else callable(value)
