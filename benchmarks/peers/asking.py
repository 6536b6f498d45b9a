"""A program that asks: one by one at first, then many at once.

Run as `python -m benchmarks.peers.asking URL SUBJECT ASKS HOW`: so many asks by 64 tasks, before them a tenth
one by one. HOW is `understudy`, `understudy-public` (without the fast lane), or `nats-py`, whose requests
are core NATS.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from statistics import quantiles

import msgspec

from benchmarks.peers.pull_window import connect
from benchmarks.readings import Reading, reading
from understudy import Publisher
from understudy.config.connection import ConnectionSpec

IN_FLIGHT = 64
TIMEOUT_SECONDS = 60.0
Ask = Callable[[Reading], Awaitable[Reading]]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What it prints.

    Args:
        answered: how many asks were, one by one and at once together.
        seconds: how long those at once took.
        cpu_seconds: what the asker used meanwhile.
        p50_milliseconds, p99_milliseconds: of those one by one.
    """

    answered: int
    seconds: float
    cpu_seconds: float
    p50_milliseconds: float
    p99_milliseconds: float


@asynccontextmanager
async def asking(url: str, subject: str, how: str) -> AsyncIterator[Ask]:
    """Connect, and yield what asks."""
    if how == "nats-py":
        client = await connect(url)
        encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Reading).decode

        async def request(event: Reading) -> Reading:
            answer = await client.request(subject, encode(event), timeout=TIMEOUT_SECONDS)
            return decode(answer.data)

        yield request
        await client.close()
        return
    spec = ConnectionSpec(servers=(url,), fast_lane=how == "understudy")
    async with Publisher.connect(spec) as publisher:

        async def ask(event: Reading) -> Reading:
            return await publisher.ask(event, expects=Reading, timeout_seconds=TIMEOUT_SECONDS)

        yield ask


async def ask_all(ask: Ask, numbers: Iterator[int]) -> list[float]:
    """Ask until no number is left; return how long each took, in milliseconds."""
    taken = []
    for number in numbers:
        began = time.perf_counter()
        answer = await ask(reading(number))
        taken.append((time.perf_counter() - began) * 1e3)
        assert answer.index == number
    return taken


async def main(url: str, subject: str, asks: int, how: str) -> None:
    """Ask them all and print the result."""
    few = asks // 10
    async with asking(url, subject, how) as ask:
        # The first makes its inbox.
        await ask(reading(0))
        alone = await ask_all(ask, iter(range(1, few)))
        numbers = iter(range(few, few + asks))
        began, cpu = time.perf_counter(), time.process_time()
        together = await asyncio.gather(*(ask_all(ask, numbers) for _ in range(IN_FLIGHT)))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    percentiles = quantiles(alone, n=100, method="inclusive")
    result = Result(
        answered=1 + len(alone) + sum(map(len, together)),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        p50_milliseconds=percentiles[49],
        p99_milliseconds=percentiles[98],
    )
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
