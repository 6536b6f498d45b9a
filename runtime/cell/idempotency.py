"""The step that skips what was handled before: look up an event's mark, and make it after its handler.

What runs in this cell is known here, and what this cell has marked is remembered. For the rest the bucket is
asked, each time for many that come next, so that one answer lets many go on. A delivery that was handled
waits for its mark and its ack without a lane; this cell and its replacement don't handle it again, however
long the bucket is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial

import structlog

from understudy.actors.errors import BrokerError, DecodeError, PublishError
from understudy.actors.idempotency import Idempotency
from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.delivery import DeliveryMark, HeldDelivery
from understudy.runtime.cell.failures import error_text
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.marking import Marking, again_of, mark_of
from understudy.runtime.cell.outcomes import (
    SETTLED,
    Again,
    Finishing,
    Outcome,
    Settled,
)
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.stores.idempotency import (
    KvMarks,
    MarkMemory,
    mark_name,
)

# What has waited longer since it was looked up is looked up again: another cell may have marked it.
FRESH_SECONDS = 0.1
# So many are looked up together.
AHEAD = 256


class Marks:
    """Knows which events were handled before, and marks those that are.

    Args:
        policy: the actor's.
        store: the app's bucket; None where the cell's memory is all.
        identity: whose deliveries these are.
        mailbox, ledger, status: what the cell holds and says.
        acknowledge: acks and returns when the server has confirmed it, where that is asked for.
        settle, skip: let go of a delivery that was handled, now or before, and ack it, unless `acknowledge`
            has done so.
        away_changed: called with why the bucket doesn't answer, and with nothing when it does again.
    """

    def __init__(
        self,
        *,
        policy: Idempotency,
        store: KvMarks | None,
        identity: Identity,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        acknowledge: Callable[[HeldDelivery], Awaitable[None]] | None,
        settle: Callable[[HeldDelivery], None],
        skip: Callable[[HeldDelivery], Awaitable[None]],
        away_changed: Callable[[str], None],
    ) -> None:
        self._key = policy.key_function()
        by = f"{identity.cell} {identity.run_id} {identity.generation}"
        self._marking = (
            None
            if store is None
            else Marking(store, by=by, mailbox=mailbox, status=status, away_changed=away_changed)
        )
        self._memory = MarkMemory(policy.capacity, policy.window_seconds)
        # By the mark's name, what is handled and whose mark isn't confirmed. The memory might forget them,
        # and the bucket not know them yet.
        self._unmarked: dict[str, HeldDelivery] = {}
        self._mailbox = mailbox
        self._ledger = ledger
        self._acknowledge = acknowledge
        self._settle = settle
        self._let_go = skip
        self._loop = asyncio.get_running_loop()
        # By the mark's name; None as long as nobody waits for the end of its run.
        self._running: dict[str, asyncio.Future[None] | None] = {}
        # What has not begun yet, by sequence and in the order in which it came.
        self._coming: dict[int, HeldDelivery] = {}
        self._log = structlog.get_logger("understudy.idempotency")

    @property
    def needs_event(self) -> bool:
        """Whether the key is of the event, which has to be decoded for it."""
        return self._key is not None

    @property
    def gate(self) -> Again | None:
        """When to try what needs the bucket, if it is away."""
        return None if self._marking is None else self._marking.gate

    def postpone(self, error: BrokerError) -> Again:
        """Hold deliveries until the bucket answers, which `claim` has said that it doesn't."""
        assert self._marking is not None
        return self._marking.postpone(error)

    def prepare(self, delivery: HeldDelivery) -> None:
        """Find a delivery's key; never raises.

        Args:
            delivery: decoded, if the key is of the event.
        """
        if self._key is None:
            key = delivery.idempotency_key
        elif delivery.decode_error is not None:
            return
        else:
            try:
                key = self._key(delivery.event, lambda: delivery.headers)
            except DecodeError as error:
                delivery.decode_error = error
                return
            except Exception as error:  # noqa: BLE001, a user's key function may raise anything
                problem = f"the idempotency key can't be computed: {error_text(error)}"
                delivery.decode_error = DecodeError(problem)
                return
        delivery.mark = DeliveryMark(key, mark_name(key))
        if self._marking is not None and not delivery.is_handled:
            self._coming[delivery.sequence] = delivery

    async def begin(self, delivery: HeldDelivery) -> Outcome | None:
        """Find out whether a delivery is to be handled now; another one of its key that runs is waited for.

        Returns:
            None if it is: then `failed` or `handled` has to follow.
        """
        if again := self.gate:
            return again
        try:
            known = await self.claim([delivery])
        except BrokerError as error:
            return self.postpone(error)
        if not known:
            return None
        await self.skip(delivery)
        return SETTLED

    def close(self) -> None:
        """End what still runs in the background."""
        if self._marking is not None:
            self._marking.close()

    def failed(self, delivery: HeldDelivery) -> None:
        """Hear that a delivery was not handled: there is no mark, and another one of its key may run."""
        self._end(mark_of(delivery))

    async def handled(self, delivery: HeldDelivery) -> Finishing | Settled | Again:
        """Hear that a delivery is handled and its outputs are confirmed: mark it, then have it acked."""
        self._note_handled(delivery)
        marking = self._marking
        if marking is None:
            await self.settle(delivery)
            return SETTLED
        if again := marking.gate:
            return again
        try:
            confirmed = await marking.make(delivery)
        except PublishError as error:
            return marking.postpone(error)
        if self._acknowledge is not None:
            return await self._finish(marking, delivery, confirmed)
        settled: asyncio.Future[Settled | Again] = self._loop.create_future()
        confirmed.add_done_callback(partial(self._confirmed, marking, delivery, settled))
        return Finishing(settled)

    async def mark_all(self, members: Sequence[HeldDelivery]) -> Sequence[HeldDelivery]:
        """Hear that members of a batch are handled, mark them, and return those that may be acked."""
        for member in members:
            self._note_handled(member)
        marking = self._marking
        if marking is None:
            return members
        making: list[asyncio.Future[PubAck] | PublishError] = []
        for member in members:
            try:
                making.append(await marking.make(member))
            except PublishError as error:
                making.append(error)
        marked = [
            member
            for member, confirmed in zip(members, making, strict=True)
            if await marking.is_made(member, confirmed)
        ]
        for member in marked:
            self._note_marked(member)
        return marked

    def is_claimed(self, delivery: HeldDelivery) -> bool:
        """Return whether something of a delivery's key runs."""
        return mark_of(delivery).name in self._running

    async def claim(self, deliveries: Iterable[HeldDelivery]) -> Collection[HeldDelivery]:
        """Claim the keys of what wasn't handled before, when nothing of these keys runs.

        Args:
            deliveries: each of another key.

        Returns:
            Those that were handled before; theirs aren't claimed.

        Raises:
            BrokerError: the server did not answer; nothing is claimed.
        """
        marks = {delivery: mark_of(delivery) for delivery in deliveries}
        for delivery in marks:
            self._coming.pop(delivery.sequence, None)
        # Claimed all at once, so that two batches don't wait for each other.
        while busy := next((mark for mark in marks.values() if mark.name in self._running), None):
            await self._end_of(busy)
        now = self._loop.time()
        known = {
            delivery
            for delivery, mark in marks.items()
            if mark.name in self._unmarked or self._memory.has(mark.name, now)
        }
        unknown = {delivery: mark for delivery, mark in marks.items() if delivery not in known}
        for mark in unknown.values():
            self._running[mark.name] = None
        marking = self._marking
        if marking is None:
            return known
        try:
            stale = [
                mark
                for mark in unknown.values()
                if mark.answer is None or (mark.answer.done() and now - mark.asked_at > FRESH_SECONDS)
            ]
            if stale:
                self._ask(marking, stale, now)
            for mark in unknown.values():
                # It was asked for before we made a mark that we know no more, perhaps this one.
                if mark.asked_at <= self._memory.forgotten_until:
                    mark.answer, mark.asked_at = marking.look_up(mark.name), now
            for delivery, mark in unknown.items():
                assert mark.answer is not None
                if await mark.answer:
                    known.add(delivery)
                    self._end(mark)
        except BrokerError:
            for mark in unknown.values():
                mark.answer = None
                self._end(mark)
            raise
        marking.answered()
        return known

    async def is_marked_now(self, delivery: HeldDelivery, since: float) -> bool:
        """Look a claimed key up again if the answer is of an earlier time; if it is marked, its claim ends.

        Args:
            delivery: its.
            since: when that time began, by the event loop's clock.

        Raises:
            BrokerError: the server did not answer.
        """
        mark = mark_of(delivery)
        if self._marking is None or mark.asked_at >= since:
            return False
        self._ask(self._marking, [mark], self._loop.time())
        assert mark.answer is not None
        try:
            is_marked = bool(await mark.answer)
        except BrokerError:
            mark.answer = None
            raise
        if is_marked:
            self._end(mark)
        return is_marked

    def _ask(self, marking: Marking, marks: Sequence[DeliveryMark], now: float) -> None:
        """Look marks up, and with them those of what comes next."""
        asking = list(marks)
        gone = []
        for sequence, delivery in self._coming.items():
            if len(asking) >= AHEAD:
                break
            if self._mailbox.get(sequence) is delivery:
                asking.append(mark_of(delivery))
            else:
                gone.append(sequence)
        for sequence in gone:
            del self._coming[sequence]
        for mark in asking:
            mark.answer = marking.look_up(mark.name)
            mark.asked_at = now

    def _end(self, mark: DeliveryMark) -> None:
        ended = self._running.pop(mark.name, None)
        if ended is not None:
            ended.set_result(None)

    async def _end_of(self, mark: DeliveryMark) -> None:
        """Wait until what runs of a key has ended."""
        ended = self._running[mark.name]
        if ended is None:
            ended = self._running[mark.name] = self._loop.create_future()
        # Others may wait for it too, and it must not be cancelled with one of them.
        await asyncio.wait([ended])

    def _note_handled(self, delivery: HeldDelivery) -> None:
        mark = mark_of(delivery)
        if not delivery.is_handled:
            delivery.is_handled = True
            self._ledger.handled(delivery.slot)
        # From now on a repeat may be acked: what is missing is this delivery's own, which stays until then.
        if self._marking is None:
            self._memory.add(mark.name, self._loop.time())
        else:
            self._unmarked[mark.name] = delivery
        self._end(mark)

    def _note_marked(self, delivery: HeldDelivery) -> None:
        name = mark_of(delivery).name
        self._unmarked.pop(name, None)
        self._memory.add(name, self._loop.time())

    def _confirmed(
        self,
        marking: Marking,
        delivery: HeldDelivery,
        settled: asyncio.Future[Settled | Again],
        confirmed: asyncio.Future[PubAck],
    ) -> None:
        if confirmed.exception() is None:
            marking.answered()
            self._note_marked(delivery)
            self._settle(delivery)
            settled.set_result(SETTLED)
            return

        async def finish() -> None:
            settled.set_result(await self._finish(marking, delivery, confirmed))

        marking.keep(finish())

    async def _finish(
        self, marking: Marking, delivery: HeldDelivery, confirmed: asyncio.Future[PubAck]
    ) -> Settled | Again:
        if not await marking.is_made(delivery, confirmed):
            return again_of(delivery)
        self._note_marked(delivery)
        await self.settle(delivery)
        return SETTLED

    async def skip(self, delivery: HeldDelivery) -> None:
        """Let go of a delivery that was handled before, and ack it."""
        self._log.debug("handled before", key=mark_of(delivery).key, sequence=delivery.sequence)
        if self._acknowledge is not None:
            await self._acknowledge(delivery)
        await self._let_go(delivery)

    async def settle(self, delivery: HeldDelivery) -> None:
        """Let go of a delivery that is handled and marked, and ack it."""
        if self._acknowledge is not None:
            await self._acknowledge(delivery)
        self._settle(delivery)
