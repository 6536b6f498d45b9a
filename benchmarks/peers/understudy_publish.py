"""A program that is no actor and publishes with understudy's Publisher.

Run as `python -m benchmarks.peers.understudy_publish URL MESSAGES AT_ONCE`: so many tasks share the work, and
each waits for its publish to be confirmed before its next.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

from benchmarks.peers.clock import Clock
from benchmarks.readings import reading
from understudy import Publisher


async def publish(publisher: Publisher, numbers: Iterator[int]) -> int:
    """Publish until no number is left; return how many were confirmed as new messages."""
    confirmed = 0
    for number in numbers:
        confirmation = await publisher.publish(reading(number))
        confirmed += not confirmation.duplicate
    return confirmed


async def main(url: str, messages: int, at_once: int) -> None:
    """Publish them all and say how long it took."""
    async with Publisher.connect(url) as publisher:
        clock = Clock()
        numbers = iter(range(messages))
        confirmed = await asyncio.gather(*(publish(publisher, numbers) for _ in range(at_once)))
        clock.print_result(sum(confirmed))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
