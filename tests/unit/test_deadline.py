"""One timer per lane: cancels a coroutine past its time, and kills what goes on all the same."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from understudy.runtime.cell.deadline import Deadline

HANGING = """
import asyncio, sys, time
from understudy.runtime.cell.deadline import Deadline

async def swallow():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("cancelled", flush=True)

async def lane():
    deadline = Deadline(asyncio.current_task(), 0.1)
    deadline.arm(0.05, cancels=sys.argv[1] == "coroutine", name="placed")
    if sys.argv[1] == "coroutine":
        await swallow()
    else:
        await asyncio.to_thread(time.sleep, 60)

asyncio.run(lane())
"""


def lane_deadline(hang_timeout_seconds: float = 60.0) -> Deadline:
    """Return a deadline of the running test."""
    task = asyncio.current_task()
    assert task is not None
    return Deadline(task, hang_timeout_seconds)


async def test_a_coroutine_past_its_timeout_is_cancelled() -> None:
    """The lane can tell that from other cancellations, and goes on."""
    deadline = lane_deadline()
    deadline.arm(0.01, cancels=True, name="placed")
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert deadline.expired
    deadline.disarm()
    task = asyncio.current_task()
    assert task is not None
    assert task.uncancel() == 0
    deadline.arm(60, cancels=True, name="placed")
    assert not deadline.expired


async def test_one_that_ends_in_time_is_left_alone() -> None:
    """The timer stays and finds nothing to do."""
    deadline = lane_deadline()
    deadline.arm(0.01, cancels=True, name="placed")
    deadline.disarm()
    await asyncio.sleep(0.03)
    assert not deadline.expired


async def test_a_later_delivery_has_its_whole_time() -> None:
    """A timer that is left from an earlier delivery moves instead of cancelling."""
    deadline = lane_deadline()
    deadline.arm(0.02, cancels=True, name="first")
    deadline.disarm()
    started = time.monotonic()
    deadline.arm(0.1, cancels=True, name="second")
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert time.monotonic() - started >= 0.09
    deadline.disarm()
    asyncio.current_task().uncancel()  # type: ignore[union-attr]


async def test_a_shorter_time_than_the_last_one_is_kept() -> None:
    """A timer that would come too late is set anew."""
    deadline = lane_deadline()
    deadline.arm(60, cancels=True, name="first")
    deadline.disarm()
    deadline.arm(0.01, cancels=True, name="second")
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        assert deadline.expired
        asyncio.current_task().uncancel()  # type: ignore[union-attr]
    deadline.disarm()


async def test_a_thread_isn_t_cancelled() -> None:
    """A def handler keeps its lane past its timeout, and may still end by itself."""
    deadline = lane_deadline()
    deadline.arm(0.01, cancels=False, name="placed")
    await asyncio.sleep(0.05)
    assert deadline.expired
    deadline.disarm()


async def test_the_time_to_end_begins_when_the_cancellation_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop that was blocked for long, or a machine that slept, doesn't cost the handler its grace."""
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: killed.append(number))
    deadline = lane_deadline(hang_timeout_seconds=30)
    deadline.arm(0.01, cancels=True, name="placed")
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + 60)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    # A cleanup that takes a few turns of the loop.
    for _ in range(5):
        await asyncio.sleep(0)
    deadline.disarm()
    asyncio.current_task().uncancel()  # type: ignore[union-attr]
    assert killed == []


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_what_still_runs_after_the_hang_timeout_takes_its_process_with_it(kind: str) -> None:
    """One that swallows its cancellation, or a thread; the log names the handler."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, kind], capture_output=True, timeout=60, check=False, text=True
    )
    assert ended.returncode == -signal.SIGABRT
    lines = ended.stdout.splitlines()
    assert lines.count("cancelled") == (1 if kind == "coroutine" else 0)
    assert "handler still runs after its timeout, killing the cell" in lines[-1]
    assert "placed" in lines[-1]
