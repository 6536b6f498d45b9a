"""Handles of a batch only those members that weren't handled before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from understudy.actors.errors import BrokerError
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.marking import again_of, mark_of
from understudy.runtime.cell.outcomes import BACK, SETTLED, Back, BatchOutcome, Held, Outcome, Settled


class BatchMarks:
    """Does for batches what `Marks` does for deliveries.

    Args:
        marks: the actor's.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    async def handle(
        self, batch: HeldBatch, run: Callable[[HeldBatch], Awaitable[BatchOutcome]]
    ) -> BatchOutcome:
        """Handle those members of a batch that weren't handled before.

        Args:
            batch: it is closed.
            run: handles a batch, and has `mark_all` told of what it is done with.
        """
        if again := self._marks.gate:
            return [again] * len(batch.members)
        outcomes = await self._mark_again([member for member in batch.members if member.is_handled])
        # Of those that have one key, the first is handled and stands for the others.
        first: dict[str, HeldDelivery] = {}
        for member in batch.members:
            if member not in outcomes:
                first.setdefault(mark_of(member).name, member)
        try:
            known = await self._marks.claim(first.values())
        except BrokerError as error:
            again = self._marks.postpone(error)
            return [outcomes.get(member, again) for member in batch.members]
        outcomes |= await self._run([one for one in first.values() if one not in known], batch.handler, run)
        for member in batch.members:
            if member in outcomes:
                continue
            leader = first[mark_of(member).name]
            if leader in known or leader.is_handled:
                await self._marks.skip(member)
                outcomes[member] = SETTLED
            else:
                outcomes[member] = BACK
        if all(outcome is SETTLED for outcome in outcomes.values()):
            return SETTLED
        return [outcomes[member] for member in batch.members]

    async def _mark_again(self, handled: Sequence[HeldDelivery]) -> dict[HeldDelivery, Outcome | Back]:
        """Try once more to mark what was handled; return what becomes of each."""
        if not handled:
            return {}
        outcomes: dict[HeldDelivery, Outcome | Back] = {}
        marked = await self._marks.mark_all(handled)
        for member in handled:
            if member in marked:
                await self._marks.settle(member)
                outcomes[member] = SETTLED
            else:
                outcomes[member] = again_of(member)
        return outcomes

    async def _run(
        self,
        chosen: Sequence[HeldDelivery],
        handler: HandlerSpec,
        run: Callable[[HeldBatch], Awaitable[BatchOutcome]],
    ) -> dict[HeldDelivery, Outcome | Back]:
        """Run the handler on what is claimed; return what becomes of each."""
        if not chosen:
            return {}
        batch = HeldBatch(handler)
        for member in chosen:
            batch.add(member)
        outcome = await run(batch)
        each = [outcome] * len(chosen) if isinstance(outcome, Settled | Held) else outcome
        outcomes: dict[HeldDelivery, Outcome | Back] = {}
        for member, one in zip(chosen, each, strict=True):
            if member.is_handled:
                # What could not be marked stays, although the batch is done with it.
                outcomes[member] = mark_of(member).again or one
            else:
                self._marks.failed(member)
                outcomes[member] = one
        return outcomes
