"""Pull requests: one that is open, and what the next one is to ask for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from understudy.runtime.jetstream.inbox import Inbox

# A request that the server never answers was lost on the way: its expiry is long past.
LOST_AFTER_SECONDS = 2.0
REQUESTS = 2
_NO_LIMIT = 1 << 30


class Room(Protocol):
    """What a mailbox can still take."""

    def free(self) -> int:
        """Return how many more messages it can hold."""

    def free_bytes(self) -> int:
        """Return how many more bytes it can hold."""

    def capacity(self) -> int:
        """Return how many messages it holds at most."""

    def is_empty(self) -> bool:
        """Return whether it holds nothing."""


class PullRequest:
    """One of the pull requests that may be open at once, under an inbox of its own."""

    __slots__ = (
        "asked",
        "expires_at",
        "inbox",
        "number",
        "opened_at",
        "outstanding",
        "reserved",
    )

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.number = 0
        self.asked = 0
        self.outstanding = 0
        self.reserved = 0
        self.opened_at = self.expires_at = 0.0

    @property
    def lost_at(self) -> float:
        """When its answer is long overdue."""
        return self.expires_at + LOST_AFTER_SECONDS

    @property
    def reply(self) -> str:
        """Where its status frames come, which differs from request to request: one may come late."""
        return f"{self.inbox.subject}.{self.number}"

    def open(self, messages: int, size: int, seconds: float) -> None:
        """Begin anew.

        Args:
            messages: how many are asked for.
            size: how many bytes they may have, 0 without a bound.
            seconds: how long it may wait for them.
        """
        self.number += 1
        self.asked = self.outstanding = messages
        self.reserved = size
        self.opened_at = time.monotonic()
        self.expires_at = self.opened_at + seconds

    def end(self) -> None:
        """Expect nothing more."""
        self.outstanding = self.reserved = 0


class Demand:
    """What may be asked for: what the mailbox has room for, less what is asked for already.

    Args:
        room: the mailbox's free space.
        lanes: how many deliveries may be handled at once; as long as they have no more, any room is worth a
            request.

    Attributes:
        requests: all that may be open.
        max_batch, max_bytes: what the consumer's configuration allows a request at most.
        too_few_bytes: a message is known to need more than so many; 0 if none is.
    """

    def __init__(self, room: Room, lanes: int) -> None:
        self._room = room
        self._lanes = lanes
        self.requests: Sequence[PullRequest] = ()
        self.max_batch = self.max_bytes = _NO_LIMIT
        self.too_few_bytes = 0

    def allow(self, max_batch: int | None, max_bytes: int | None) -> None:
        """Hear what the consumer's configuration allows; None or 0 is no limit."""
        self.max_batch = max_batch or _NO_LIMIT
        self.max_bytes = max_bytes or _NO_LIMIT

    def outstanding(self) -> int:
        """Return how many messages are asked for and have not come."""
        return sum(request.outstanding for request in self.requests)

    def is_worth_it(self) -> bool:
        """Return whether there is enough room for another request."""
        return self._free() >= self._least()

    def of_many(self) -> dict[str, Any] | None:
        """Return what to ask for, or None if nothing is to be asked for now."""
        free = self._free()
        if free < self._least():
            return None
        batch = min(free, self.max_batch)
        size = self._room.free_bytes() - sum(request.reserved for request in self.requests)
        # A share of it, so that the other request has something to ask for.
        for share in (-(-size // len(self.requests)), size):
            allowed = min(share, self.max_bytes)
            if allowed > self.too_few_bytes:
                return {"batch": batch, "max_bytes": allowed}
        return self._alone()

    def of_one(self) -> dict[str, Any] | None:
        """Return what a candidate asks for, which may still hold what it had as the owner."""
        allowed = min(self._room.free_bytes(), self.max_bytes)
        if self._room.is_empty() or self._free() <= 0 or allowed <= self.too_few_bytes:
            return self._alone()
        return {"batch": 1, "max_bytes": allowed}

    def of_so_many(self, messages: int, in_hand_bytes: int | None) -> dict[str, Any]:
        """Return what a new owner asks for, which knows how many there are.

        Args:
            messages: so many at most.
            in_hand_bytes: what is here and not in the mailbox yet; None to ask whatever the mailbox can take.
        """
        size = 0 if in_hand_bytes is None else self._room.free_bytes() - in_hand_bytes
        bound = {"max_bytes": min(size, self.max_bytes)} if size > 0 else {}
        return {"batch": min(messages, self.max_batch)} | bound

    def _free(self) -> int:
        return self._room.free() - self.outstanding()

    def _least(self) -> int:
        """Return how much room is worth a request."""
        return max(1, (self._room.capacity() - self._lanes) // (2 * REQUESTS))

    def _alone(self) -> dict[str, Any] | None:
        """Return what to ask for where a message may be larger than the bytes that it can have."""
        return {"batch": 1} if self._room.is_empty() and self.outstanding() == 0 else None
