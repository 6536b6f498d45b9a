"""What the pipeline says of a delivery that was handled: whether it is done with, or stays."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import final

import msgspec

from understudy.actors.errors import CircuitOpen
from understudy.actors.outcomes import Reject


class Settled(msgspec.Struct, frozen=True):
    """The delivery needs nothing more."""


class Again(msgspec.Struct, frozen=True):
    """The delivery is to be handled again in place, its key shut until then.

    Args:
        delay_seconds: when; infinite parks it.
    """

    delay_seconds: float


class Held(msgspec.Struct, frozen=True):
    """The delivery waits for an open breaker.

    Args:
        breaker: its name.
        retry_after_seconds: when it may let a trial through.
    """

    breaker: str
    retry_after_seconds: float


@final
class Finishing(msgspec.Struct, frozen=True, eq=False):
    """The handler is done with the delivery, and what is left to do of it needs no lane.

    Its key stays shut until then, and it counts as running.

    Args:
        settled: what becomes of it; must not raise.
    """

    settled: asyncio.Future[Settled | Again]


class Back(msgspec.Struct, frozen=True):
    """A batch's delivery is to be handled again, at once or after the earlier one of its key that stays."""


Outcome = Settled | Again | Held
SETTLED = Settled()
BACK = Back()
# Of all members alike, or of each in their order.
BatchOutcome = Settled | Held | Sequence[Outcome | Back]


def held_by(error: BaseException, failed_trial: CircuitOpen | None, breakers: Container[str]) -> Held | None:
    """Return what a delivery waits for if its handler met an open breaker, which is no attempt.

    Args:
        error: what the handler raised.
        failed_trial: the breaker's word if one of its calls was a trial and failed.
        breakers: the names of those that the cell has; no trial of another would ever end the wait.
    """
    if isinstance(error, Reject):
        return None
    held = error if isinstance(error, CircuitOpen) and error.breaker in breakers else failed_trial
    return None if held is None else Held(held.breaker, held.retry_after_seconds)
