"""The bounded mailbox: every delivery that the cell has and has not settled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from understudy.actors.policies import Mailbox as MailboxPolicy
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.jetstream.direct import StoredMessage


class Mailbox:
    """Counts what is held against its bounds, and keeps the ledger in step.

    A delivery stays in it while it waits, is handled, waits to be tried again in place, or is held by an
    open breaker; it leaves when it is settled, and only then is there room for another.

    Attributes:
        bound: how many messages it may hold at most, as its policy says.
        limit: how many it may hold for now.
        settled: how many have left it.
    """

    def __init__(self, policy: MailboxPolicy, ledger: Ledger) -> None:
        self.bound = self.limit = policy.capacity
        self._max_bytes = policy.max_bytes
        self._ledger = ledger
        self.settled = 0
        self._held: dict[int, HeldDelivery] = {}
        self._taken_over: set[int] = set()
        self._lost: set[int] = set()
        self._bytes = 0

    def __iter__(self) -> Iterator[HeldDelivery]:
        """Go through everything held, in the order of arrival."""
        return iter(tuple(self._held.values()))

    def __len__(self) -> int:
        """Return how many deliveries are held."""
        return len(self._held)

    def get(self, sequence: int) -> HeldDelivery | None:
        """Return the held delivery of a stream sequence, if there is one."""
        return self._held.get(sequence)

    def holds_any(self, sequences: Iterable[int]) -> bool:
        """Return whether a delivery of one of these stream sequences is held."""
        return not self._held.keys().isdisjoint(sequences)

    def add(self, delivery: HeldDelivery) -> None:
        """Hold a delivery that is in the ledger."""
        self._held[delivery.sequence] = delivery
        self._bytes += len(delivery.body)

    def take_over(self, delivery: HeldDelivery) -> None:
        """Hold a delivery that a dead cell had, and that the server may be about to deliver again."""
        self.add(delivery)
        self._taken_over.add(delivery.sequence)

    def lose(self, delivery: HeldDelivery) -> None:
        """Note that a held delivery is another cell's by now, and may become this one's again."""
        delivery.is_lost = True
        self._lost.add(delivery.sequence)

    def has_settled(self, sequence: int) -> bool:
        """Return whether a delivery was taken over, or lost, and is done: it isn't to be handled again."""
        return (sequence in self._taken_over or sequence in self._lost) and sequence not in self._held

    def is_taken_over(self, sequence: int) -> bool:
        """Return whether a delivery was a dead cell's."""
        return sequence in self._taken_over

    def fill(self, delivery: HeldDelivery, stored: StoredMessage) -> None:
        """Give a delivery that was taken over its subject, body and headers."""
        delivery.subject = stored.subject
        delivery.body = stored.body
        delivery.header_block = stored.header_block
        delivery.stored_at = stored.timestamp
        self._bytes += len(delivery.body)

    def done(self, delivery: HeldDelivery) -> None:
        """Let go of a delivery that only its ack is missing for."""
        self._remove(delivery)
        self._ledger.done(delivery.slot)

    def release(self, delivery: HeldDelivery) -> None:
        """Let go of a delivery that is given back to the server."""
        self._taken_over.discard(delivery.sequence)
        self._lost.discard(delivery.sequence)
        self._remove(delivery)
        self._ledger.release(delivery.slot)

    def _remove(self, delivery: HeldDelivery) -> None:
        del self._held[delivery.sequence]
        self._bytes -= len(delivery.body)
        self.settled += 1

    def free(self) -> int:
        """Return how many more messages it can hold."""
        return self.limit - len(self._held)

    def free_bytes(self) -> int:
        """Return how many more bytes it can hold."""
        return self._max_bytes - self._bytes

    @property
    def bytes(self) -> int:
        """How many bytes of bodies are held."""
        return self._bytes

    def capacity(self) -> int:
        """Return how many messages it may hold for now."""
        return self.limit

    def is_empty(self) -> bool:
        """Return whether it holds nothing."""
        return not self._held
