"""What comes again to a new owner: gathered until all of it is there, since it comes in no order.

The server puts what is given back behind what already waits for redelivery, and turns it round while it
looks for the owner among others' requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, TypeAlias

from understudy.runtime.jetstream.pull_request import Demand
from understudy.runtime.jetstream.settlement import parse_ack_subject

# A delivery's subject, reply subject, header block and body.
Frame: TypeAlias = tuple[bytes, bytes, bytes, bytes]


class Gathering(Collection[int]):
    """Deliveries in hand, which are in no mailbox yet; as a collection, their stream sequences.

    Args:
        demand: what may be asked for.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        # By stream sequence, since what is given back by two may come twice.
        self._frames: dict[int, Frame] = {}

    def add(self, frame: Frame) -> None:
        """Take one in."""
        self._frames[parse_ack_subject(frame[1])[1]] = frame

    def __contains__(self, sequence: object) -> bool:
        """Return whether this delivery is in hand."""
        return sequence in self._frames

    def __iter__(self) -> Iterator[int]:
        """Yield the sequences in the order of arrival."""
        return iter(self._frames)

    def __len__(self) -> int:
        """Return how many are in hand."""
        return len(self._frames)

    def in_order(self) -> list[Frame]:
        """Return them as they stand in the stream."""
        return [frame for _, frame in sorted(self._frames.items())]

    async def fetch(self, missing: int, ask: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Ask for so many, and return when they are in hand, or don't come.

        Args:
            missing: as many as there are: the server won't serve a request at once (no_wait) while others
                wait.
            ask: makes one request, and returns when it is answered; what it raises, this does.
        """
        bounded = True
        while missing > 0:
            before = len(self)
            size = sum(len(body) for _, _, _, body in self._frames.values())
            demand = self._demand.of_so_many(missing, size if bounded else None)
            await ask(demand)
            if len(self) == before:
                if "max_bytes" not in demand:
                    break
                # What pins us comes on top of what filled another's mailbox, and if one were left out,
                # newer ones of its key would go before it.
                bounded = False
            missing -= len(self) - before
