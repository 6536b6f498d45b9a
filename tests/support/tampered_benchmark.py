"""The benchmarks with a server that seems to have one message more than were published."""

from __future__ import annotations

import sys

from benchmarks import __main__, streams
from benchmarks.feeds import PLAIN

count_messages = streams.count_messages


async def one_more(client: object, stream: str) -> int:
    stored: int = await count_messages(client, stream)  # type: ignore[arg-type]
    return stored + 1 if stream == PLAIN.stream else stored


if __name__ == "__main__":
    streams.count_messages = one_more
    sys.exit(__main__.main())
