"""What comes before a handler that may use a state: claim the event's mark, look back, take the state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from understudy.actors.errors import BrokerError, StateError
from understudy.runtime.cell.asks import is_expired
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import Failures
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.line_work import LineWork
from understudy.runtime.cell.outcomes import BACK, SETTLED, Again, Back, Outcome
from understudy.runtime.cell.state import States

# What can't be read waits for another version of the code.
UNREADABLE_SECONDS = 10.0


class Admission:
    """Decides of the members of a line whether their handlers are to be run.

    Args:
        is_ready: whether a delivery's handler is to be run, as far as that is known without asking anybody.
        open_: settles a delivery that has no handler to run, or says that it stays; None if it is to be run.
        expire: settles what somebody has asked for who waits no longer.
        marks: knows what was handled before; None if the actor isn't idempotent.
        states: the actor's.
        failures: settles what has failed.
    """

    def __init__(
        self,
        *,
        is_ready: Callable[[HeldDelivery], bool],
        open_: Callable[[HeldDelivery], Awaitable[Outcome | None]],
        expire: Callable[[HeldDelivery], Awaitable[Outcome]],
        marks: Marks | None,
        states: States,
        failures: Failures,
    ) -> None:
        self._is_ready = is_ready
        self._open = open_
        self._expire = expire
        self._marks = marks
        self._states = states
        self._failures = failures
        self._log = structlog.get_logger("understudy.actor").bind()

    def is_admitted(self, work: LineWork, delivery: HeldDelivery) -> bool:
        """Do for a member what `admit` does, if that takes no waiting; nearly always it doesn't."""
        if delivery.mark is not None or not self._is_ready(delivery):
            return False
        name = delivery.state_name
        if work.state is not None:
            return not name or work.state.name == name
        if name:
            work.state = self._states.cached(name)
            return work.state is not None
        return True

    async def admit(self, work: LineWork, delivery: HeldDelivery) -> Outcome | Back | None:
        """Settle a member that has no handler to run, or say that it stays; None if it is to be run."""
        if delivery.mark is not None:
            assert self._marks is not None
            outcome = await self._claim(self._marks, work, delivery)
            if outcome is not None:
                return outcome
        if not self._is_ready(delivery):
            outcome = await self._open(delivery)
            if outcome is not None:
                return outcome
        name = delivery.state_name
        if work.state is not None:
            if name and work.state.name != name:
                # Python holds keys for equal, (1,) and (True,), that are stored under different names.
                return BACK
        elif name:
            try:
                work.state = await self._states.take(name)
            except (BrokerError, StateError) as error:
                return self.postpone(delivery, error)
        if delivery.is_lost:
            # Its new owner may have applied it before this state was read, and taken its sequence out.
            return BACK
        if delivery.mark is not None:
            assert self._marks is not None
            outcome = await self._skip_known(self._marks, work, delivery)
            if outcome is not None:
                return outcome
        # What is applied isn't run, and what it has published has to go out.
        is_applied = work.state is not None and delivery.sequence in work.state.applied
        return await self._expire(delivery) if is_expired(delivery) and not is_applied else None

    async def _claim(self, marks: Marks, work: LineWork, delivery: HeldDelivery) -> Outcome | Back | None:
        """Claim a member's mark, unless it is made already; or say that the member stays."""
        if marks.gate is not None:
            return marks.gate
        if work.line.members[0] is not delivery and marks.is_claimed(delivery):
            # By this line, or by one that may wait for a key of ours: it waits when this line is settled.
            return BACK
        try:
            if delivery not in await marks.claim([delivery]):
                work.claimed.add(delivery)
        except BrokerError as error:
            return marks.postpone(error)
        return None

    async def _skip_known(
        self, marks: Marks, work: LineWork, delivery: HeldDelivery
    ) -> Outcome | Back | None:
        """Settle a member that was handled before, or say that it stays; None if it is to be run."""
        state = work.state
        if state is not None and delivery in work.claimed:
            # Of what another cell has applied and marked the state may say nothing any more: an answer that
            # is older than the state wouldn't know of it either.
            try:
                if await marks.is_marked_now(delivery, state.read_at):
                    work.claimed.discard(delivery)
            except BrokerError as error:
                return marks.postpone(error)
        if not work.is_known(delivery):
            return None
        await marks.skip(delivery)
        return SETTLED

    def postpone(self, delivery: HeldDelivery, error: BaseException) -> Again:
        """Return when a delivery is to be handled again whose state couldn't be read or stored."""
        if isinstance(error, BrokerError):
            return self._failures.postpone(delivery, error)
        self._log.error("state can't be read", error=str(error), sequence=delivery.sequence)
        return Again(UNREADABLE_SECONDS)
