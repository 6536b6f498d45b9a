"""A program that is no actor and publishes with understudy's Publisher.

Run as `python -m benchmarks.peers.understudy_publish URL MESSAGES async|AT_ONCE`: one task that goes on while
its events are unconfirmed, or so many tasks that each wait for the confirmation of one before their next.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

from benchmarks.peers.clock import Clock
from benchmarks.readings import reading
from understudy import Publisher


async def publish_async(publisher: Publisher, messages: int) -> int:
    """Publish within the publisher's window; return how many were confirmed as new messages."""
    futures = [await publisher.publish_async(reading(number)) for number in range(messages)]
    return sum([not (await future).duplicate for future in futures])


async def publish(publisher: Publisher, numbers: Iterator[int]) -> int:
    """Publish until no number is left; return how many were confirmed as new messages."""
    confirmed = 0
    for number in numbers:
        confirmation = await publisher.publish(reading(number))
        confirmed += not confirmation.duplicate
    return confirmed


async def main(url: str, messages: int, how: str) -> None:
    """Publish them all and say how long it took."""
    async with Publisher.connect(url) as publisher:
        clock = Clock()
        if how == "async":
            confirmed = await publish_async(publisher, messages)
        else:
            numbers = iter(range(messages))
            confirmed = sum(await asyncio.gather(*(publish(publisher, numbers) for _ in range(int(how)))))
        clock.print_result(confirmed)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
