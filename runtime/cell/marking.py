"""Makes marks in the app's bucket, and holds everything up while that doesn't answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from understudy.actors.errors import BrokerError, PublishError
from understudy.runtime.cell.delivery import DeliveryMark, HeldDelivery
from understudy.runtime.cell.failures import BROKER_RETRY_SECONDS
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.outcomes import Again
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.stores.idempotency import NOBODYS, WRONG_LAST_SEQUENCE, KvMarks, Mark

MAX_KEY_CHARACTERS = 200


def mark_of(delivery: HeldDelivery) -> DeliveryMark:
    """Return the mark of a delivery that has one."""
    assert delivery.mark is not None
    return delivery.mark


def again_of(delivery: HeldDelivery) -> Again:
    """Return when the mark is to be tried again that could not be made."""
    again = mark_of(delivery).again
    assert again is not None
    return again


class Marking:
    """The marks of one durable, as a cell makes them.

    Args:
        store: the app's bucket.
        by: names the cell in them.
        mailbox, status: what the cell holds and says.
        away_changed: called with why the bucket doesn't answer, and with nothing when it does again.
    """

    def __init__(
        self,
        store: KvMarks,
        *,
        by: str,
        mailbox: Mailbox,
        status: Status,
        away_changed: Callable[[str], None],
    ) -> None:
        self._store = store
        self._by = by
        self._mailbox = mailbox
        self._status = status
        self._away_changed = away_changed
        self._away = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("understudy.idempotency")

    def look_up(self, name: str) -> asyncio.Future[bytes]:
        """Ask for a mark; the answer is empty if there is none, or BrokerError."""
        return self._store.look_up(name)

    async def make(self, delivery: HeldDelivery) -> asyncio.Future[PubAck]:
        """Write a delivery's mark; returns what is for `is_made`, and raises PublishError."""
        mark = mark_of(delivery)
        return await self._store.make(mark.name, self._of(delivery, mark))

    async def is_made(self, delivery: HeldDelivery, confirmed: asyncio.Future[PubAck] | PublishError) -> bool:
        """Return whether there is a mark, this delivery's or another's; else `mark.again` says what to do."""
        mark = mark_of(delivery)
        try:
            if isinstance(confirmed, PublishError):
                raise confirmed
            try:
                await confirmed
            except PublishError as error:
                if error.code not in WRONG_LAST_SEQUENCE:
                    raise
                await self._contest(delivery, mark)
        except BrokerError as error:
            mark.again = self.postpone(error)
            return False
        self.answered()
        mark.again = None
        return True

    @property
    def gate(self) -> Again | None:
        """When to try what needs the bucket, if it is away."""
        return Again(BROKER_RETRY_SECONDS) if self._away else None

    def postpone(self, error: BrokerError) -> Again:
        """Hold deliveries until the bucket answers: nothing is counted, and nothing handled without it."""
        if not self._away:
            self._away = str(error)
            self._log.warning("the idempotency marks are away; deliveries are held", error=self._away)
            self._away_changed(self._away)
            self.keep(self._probe())
        return Again(BROKER_RETRY_SECONDS)

    def answered(self) -> None:
        """Hear that the bucket has answered."""
        if self._away:
            self._away = ""
            self._log.info("the idempotency marks are back")
            self._away_changed("")

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background."""
        task = asyncio.get_running_loop().create_task(work, name="understudy-marks")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """End what still runs in the background."""
        for task in self._tasks:
            task.cancel()

    def _of(self, delivery: HeldDelivery, mark: DeliveryMark) -> Mark:
        return Mark(
            self._by, delivery.sequence, "" if mark.name == mark.key else mark.key[:MAX_KEY_CHARACTERS]
        )

    async def _contest(self, delivery: HeldDelivery, mark: DeliveryMark) -> None:
        other = await self._store.contest(mark.name, self._of(delivery, mark))
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

    async def _probe(self) -> None:
        """Ask until the bucket answers: what is held may be dropped meanwhile, and then nobody would."""
        while self._away:
            await asyncio.sleep(BROKER_RETRY_SECONDS)
            with contextlib.suppress(BrokerError):
                await self._store.look_up(NOBODYS)
                self.answered()
