"""A program that publishes and knows nothing of logs: `python -m support.logging_publisher URL`.

It prints the sequence of each event to stdout, one before and one after its standard input has a line.
"""

from __future__ import annotations

import asyncio
import sys

from understudy.runtime.jetstream.publisher import Publisher


async def main(url: str) -> None:
    """Publish twice."""
    async with Publisher.connect(url, timeout_seconds=60) as publisher:
        print((await publisher.publish_raw("orders.first", b"{}")).seq, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print((await publisher.publish_raw("orders.second", b"{}")).seq, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
