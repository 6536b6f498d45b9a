"""The step that skips what was handled before: look up an event's mark, and make it after its handler.

What runs in this cell is known here, and what this cell has marked is remembered. For the rest the bucket is
asked, each time for many that come next, so that one answer lets many go on. A delivery that was handled
waits for its mark and its ack without a lane; this cell and its replacement don't handle it again, however
long the bucket is away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import structlog

from understudy.actors.errors import BrokerError, DecodeError, PublishError
from understudy.actors.handlers import HandlerSpec
from understudy.actors.idempotency import Idempotency
from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.delivery import DeliveryMark, HeldDelivery
from understudy.runtime.cell.failures import BROKER_RETRY_SECONDS, error_text
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.outcomes import (
    BACK,
    SETTLED,
    Again,
    Back,
    BatchOutcome,
    Finishing,
    Held,
    Outcome,
    Settled,
)
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.stores.idempotency import (
    NOBODYS,
    WRONG_LAST_SEQUENCE,
    KvMarks,
    Mark,
    MarkMemory,
    mark_name,
)

# What has waited longer since it was looked up is looked up again: another cell may have marked it.
FRESH_SECONDS = 0.1
# So many are looked up together.
AHEAD = 256
MAX_KEY_CHARACTERS = 200


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
        skip: Callable[[HeldDelivery], None],
        away_changed: Callable[[str], None],
    ) -> None:
        self._key = policy.key_function()
        self._store = store
        self._memory = MarkMemory(policy.capacity, policy.window_seconds)
        self._by = f"{identity.cell} {identity.run_id} {identity.generation}"
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._acknowledge = acknowledge
        self._settle = settle
        self._let_go = skip
        self._away_changed = away_changed
        self._loop = asyncio.get_running_loop()
        # By the mark's name; None as long as nobody waits for the end of its run.
        self._running: dict[str, asyncio.Future[None] | None] = {}
        # What has not begun yet, by sequence and in the order in which it came.
        self._coming: dict[int, HeldDelivery] = {}
        self._away = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("understudy.idempotency")

    @property
    def needs_event(self) -> bool:
        """Whether the key is of the event, which has to be decoded for it."""
        return self._key is not None

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
        if self._store is not None and not delivery.is_handled:
            self._coming[delivery.sequence] = delivery

    async def begin(self, delivery: HeldDelivery) -> Outcome | None:
        """Find out whether a delivery is to be handled now; another one of its key that runs is waited for.

        Returns:
            None if it is: then `failed` or `handled` has to follow.
        """
        if again := self._gate():
            return again
        try:
            known = await self._claim([delivery])
        except BrokerError as error:
            return self._postpone(error)
        if not known:
            return None
        await self._skip(delivery)
        return SETTLED

    def close(self) -> None:
        """End what still runs in the background."""
        for task in self._tasks:
            task.cancel()

    def failed(self, delivery: HeldDelivery) -> None:
        """Hear that a delivery was not handled: there is no mark, and another one of its key may run."""
        self._end(_mark(delivery))

    async def handled(self, delivery: HeldDelivery) -> Finishing | Settled | Again:
        """Hear that a delivery is handled and its outputs are confirmed: mark it, then have it acked."""
        self._note_handled(delivery)
        if self._store is None:
            await self._settled(delivery)
            return SETTLED
        if again := self._gate():
            return again
        try:
            confirmed = await self._make(self._store, delivery)
        except PublishError as error:
            return self._postpone(error)
        if self._acknowledge is not None:
            return await self._finish(self._store, delivery, confirmed)
        settled: asyncio.Future[Settled | Again] = self._loop.create_future()
        confirmed.add_done_callback(partial(self._confirmed, self._store, delivery, settled))
        return Finishing(settled)

    async def handle_batch(
        self, batch: HeldBatch, run: Callable[[HeldBatch], Awaitable[BatchOutcome]]
    ) -> BatchOutcome:
        """Handle those members of a batch that weren't handled before.

        Args:
            batch: it is closed.
            run: handles a batch, and has `mark_all` told of what it is done with.
        """
        if again := self._gate():
            return [again] * len(batch.members)
        outcomes = await self._mark_again([member for member in batch.members if member.is_handled])
        # Of those that have one key, the first is handled and stands for the others.
        first: dict[str, HeldDelivery] = {}
        for member in batch.members:
            if member not in outcomes:
                first.setdefault(_mark(member).name, member)
        try:
            known = await self._claim(first.values())
        except BrokerError as error:
            again = self._postpone(error)
            return [outcomes.get(member, again) for member in batch.members]
        outcomes |= await self._run([one for one in first.values() if one not in known], batch.handler, run)
        for member in batch.members:
            if member in outcomes:
                continue
            leader = first[_mark(member).name]
            if leader in known or leader.is_handled:
                await self._skip(member)
                outcomes[member] = SETTLED
            else:
                outcomes[member] = BACK
        if all(outcome is SETTLED for outcome in outcomes.values()):
            return SETTLED
        return [outcomes[member] for member in batch.members]

    async def mark_all(self, members: Sequence[HeldDelivery]) -> Sequence[HeldDelivery]:
        """Hear that members of a batch are handled, mark them, and return those that may be acked."""
        for member in members:
            self._note_handled(member)
        store = self._store
        if store is None:
            return members
        making: list[asyncio.Future[PubAck] | PublishError] = []
        for member in members:
            try:
                making.append(await self._make(store, member))
            except PublishError as error:
                making.append(error)
        return [
            member
            for member, confirmed in zip(members, making, strict=True)
            if await self._is_made(store, member, confirmed)
        ]

    async def _mark_again(self, handled: Sequence[HeldDelivery]) -> dict[HeldDelivery, Outcome | Back]:
        """Try once more to mark what was handled; return what becomes of each."""
        if not handled:
            return {}
        outcomes: dict[HeldDelivery, Outcome | Back] = {}
        marked = await self.mark_all(handled)
        for member in handled:
            if member in marked:
                await self._settled(member)
                outcomes[member] = SETTLED
            else:
                outcomes[member] = _again(member)
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
                outcomes[member] = _mark(member).again or one
            else:
                self._end(_mark(member))
                outcomes[member] = one
        return outcomes

    async def _claim(self, deliveries: Iterable[HeldDelivery]) -> Collection[HeldDelivery]:
        """Claim the keys of what wasn't handled before, when nothing of these keys runs.

        Args:
            deliveries: each of another key.

        Returns:
            Those that were handled before; theirs aren't claimed.

        Raises:
            BrokerError: the server did not answer; nothing is claimed.
        """
        marks = {delivery: _mark(delivery) for delivery in deliveries}
        for delivery in marks:
            self._coming.pop(delivery.sequence, None)
        # Claimed all at once, so that two batches don't wait for each other.
        while busy := next((mark for mark in marks.values() if mark.name in self._running), None):
            await self._end_of(busy)
        now = self._loop.time()
        known = {delivery for delivery, mark in marks.items() if self._memory.has(mark.name, now)}
        unknown = {delivery: mark for delivery, mark in marks.items() if delivery not in known}
        for mark in unknown.values():
            self._running[mark.name] = None
        if self._store is None:
            return known
        try:
            stale = [
                mark
                for mark in unknown.values()
                if mark.answer is None or (mark.answer.done() and now - mark.asked_at > FRESH_SECONDS)
            ]
            if stale:
                self._ask(self._store, stale, now)
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
        self._answered()
        return known

    def _ask(self, store: KvMarks, marks: Sequence[DeliveryMark], now: float) -> None:
        """Look marks up, and with them those of what comes next."""
        asking = list(marks)
        gone = []
        for sequence, delivery in self._coming.items():
            if len(asking) >= AHEAD:
                break
            if self._mailbox.get(sequence) is delivery:
                asking.append(_mark(delivery))
            else:
                gone.append(sequence)
        for sequence in gone:
            del self._coming[sequence]
        for mark in asking:
            mark.answer = store.look_up(mark.name)
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
        mark = _mark(delivery)
        if not delivery.is_handled:
            delivery.is_handled = True
            self._ledger.handled(delivery.slot)
        # From now on a repeat may be acked: what is missing is this delivery's own, which stays until then.
        self._memory.add(mark.name, self._loop.time())
        self._end(mark)

    async def _make(self, store: KvMarks, delivery: HeldDelivery) -> asyncio.Future[PubAck]:
        mark = _mark(delivery)
        return await store.make(mark.name, self._of(delivery, mark))

    def _of(self, delivery: HeldDelivery, mark: DeliveryMark) -> Mark:
        return Mark(
            self._by, delivery.sequence, "" if mark.name == mark.key else mark.key[:MAX_KEY_CHARACTERS]
        )

    def _confirmed(
        self,
        store: KvMarks,
        delivery: HeldDelivery,
        settled: asyncio.Future[Settled | Again],
        confirmed: asyncio.Future[PubAck],
    ) -> None:
        if confirmed.exception() is None:
            self._answered()
            self._settle(delivery)
            settled.set_result(SETTLED)
            return

        async def finish() -> None:
            settled.set_result(await self._finish(store, delivery, confirmed))

        self._keep(finish())

    async def _finish(
        self, store: KvMarks, delivery: HeldDelivery, confirmed: asyncio.Future[PubAck]
    ) -> Settled | Again:
        if not await self._is_made(store, delivery, confirmed):
            return _again(delivery)
        await self._settled(delivery)
        return SETTLED

    async def _is_made(
        self, store: KvMarks, delivery: HeldDelivery, confirmed: asyncio.Future[PubAck] | PublishError
    ) -> bool:
        """Return whether there is a mark, this delivery's or another's; else `mark.again` says what to do."""
        mark = _mark(delivery)
        try:
            if isinstance(confirmed, PublishError):
                raise confirmed
            try:
                await confirmed
            except PublishError as error:
                if error.code not in WRONG_LAST_SEQUENCE:
                    raise
                await self._contest(store, delivery, mark)
        except BrokerError as error:
            mark.again = self._postpone(error)
            return False
        self._answered()
        mark.again = None
        return True

    async def _contest(self, store: KvMarks, delivery: HeldDelivery, mark: DeliveryMark) -> None:
        other = await store.contest(mark.name, self._of(delivery, mark))
        if other is None:
            return
        # Its confirmation was lost, here or with the cell that we have taken this over from.
        is_ours = other.by == self._by or self._mailbox.is_taken_over(delivery.sequence)
        if is_ours and other.sequence == delivery.sequence:
            return
        self._status.count("mark_conflicts")
        self._log.warning(
            "handled twice: its key was marked while it was handled",
            key=mark.key,
            sequence=delivery.sequence,
            marked_by=other.by,
            marked_sequence=other.sequence,
        )

    async def _skip(self, delivery: HeldDelivery) -> None:
        self._log.debug("handled before", key=_mark(delivery).key, sequence=delivery.sequence)
        if self._acknowledge is not None:
            await self._acknowledge(delivery)
        self._let_go(delivery)

    async def _settled(self, delivery: HeldDelivery) -> None:
        if self._acknowledge is not None:
            await self._acknowledge(delivery)
        self._settle(delivery)

    def _gate(self) -> Again | None:
        return Again(BROKER_RETRY_SECONDS) if self._away else None

    def _postpone(self, error: BrokerError) -> Again:
        """Hold deliveries until the bucket answers: nothing is counted, and nothing handled without it."""
        if not self._away:
            self._away = str(error)
            self._log.warning("the idempotency marks are away; deliveries are held", error=self._away)
            self._away_changed(self._away)
            assert self._store is not None
            self._keep(self._probe(self._store))
        return Again(BROKER_RETRY_SECONDS)

    async def _probe(self, store: KvMarks) -> None:
        """Ask until the bucket answers: what is held may be dropped meanwhile, and then nobody would."""
        while self._away:
            await asyncio.sleep(BROKER_RETRY_SECONDS)
            with contextlib.suppress(BrokerError):
                await store.look_up(NOBODYS)
                self._answered()

    def _answered(self) -> None:
        if self._away:
            self._away = ""
            self._log.info("the idempotency marks are back")
            self._away_changed("")

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name="understudy-marks")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _mark(delivery: HeldDelivery) -> DeliveryMark:
    assert delivery.mark is not None
    return delivery.mark


def _again(delivery: HeldDelivery) -> Again:
    again = _mark(delivery).again
    assert again is not None
    return again
