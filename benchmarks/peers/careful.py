"""A consumer with a pull window.

Run as `python -m benchmarks.peers.careful nothing|latencies|times URL STREAM DURABLE SUBJECT`: what its
handler does with an event.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from benchmarks.peers.pull_window import PullWindow, connect
from benchmarks.peers.worker import run_worker
from benchmarks.readings import Ping, Reading
from benchmarks.records import Latencies, open_record


async def do_nothing(_event: Reading) -> None:
    """Do nothing."""


def latency_handler() -> Callable[[Ping], Awaitable[None]]:
    """Return a handler that writes down how long an event was on its way."""
    latencies = Latencies(open_record())

    async def handle(event: Ping) -> None:
        latencies.add(event.sent_nanoseconds)

    return handle


def time_handler() -> Callable[[Reading], Awaitable[None]]:
    """Return a handler that writes down when it handled an event."""
    times = open_record()

    async def handle(event: Reading) -> None:
        times[event.index] = time.monotonic_ns()

    return handle


async def start(
    what: str, url: str, stream: str, durable: str, _subject: str
) -> Callable[[], Awaitable[int]]:
    """Subscribe; what is returned ends it and says how many messages were acknowledged."""
    client = await connect(url)
    window: PullWindow[Any]
    if what == "latencies":
        window = PullWindow(client, stream, durable, Ping, latency_handler())
    else:
        handle = time_handler() if what == "times" else do_nothing
        window = PullWindow(client, stream, durable, Reading, handle)
    await window.start()
    return window.stop


if __name__ == "__main__":
    run_worker(start(*sys.argv[1:]), uvloop.new_event_loop)
