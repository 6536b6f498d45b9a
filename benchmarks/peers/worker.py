"""How a consuming peer runs: it says when it is subscribed, and how many it acked when SIGTERM ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


def run_worker(
    start: Coroutine[Any, Any, Callable[[], Awaitable[int]]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    """Run a consumer until SIGTERM, and print how many messages it acknowledged.

    Args:
        start: subscribes, and returns what ends it.
        loop_factory: makes its event loop; None for asyncio's own.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        print(runner.run(_run(start)))


async def _run(start: Coroutine[Any, Any, Callable[[], Awaitable[int]]]) -> int:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    stop = await start
    print("ready", flush=True)
    await stopped.wait()
    return await stop()
