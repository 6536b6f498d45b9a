"""What `understudy actor` says became of a cell."""

from __future__ import annotations

import pytest

from understudy.runtime.cell.status import CellStatus, boottime
from understudy.runtime.cli.actor_action import judge_cell
from understudy.runtime.supervision.statefile import ChildStatus
from understudy.runtime.supervision.tree import Cell


def restarted(pause: str, *, connected: bool = True) -> Cell:
    """Return a cell in its second generation."""
    now = boottime()
    status = CellStatus(
        pid=1,
        state="paused" if pause != "none" else "up",
        reason="",
        heartbeat=now,
        control_heartbeat=now,
        connected=connected,
        pause=pause,
        held=0,
        capacity=64,
        counters={},
    )
    by_parent = ChildStatus(
        name="prices/0",
        kind="cell",
        state="up",
        pid=1,
        start_ticks=1,
        generation=2,
        restarts=0,
        last_reason="",
        crashed=False,
        cell_file="",
    )
    return Cell(name="prices/0", supervision=by_parent, status=status)


@pytest.mark.parametrize(
    ("pause", "connected", "text"),
    [
        ("none", True, "is up, in generation 2"),
        ("paused", True, "is paused, in generation 2"),
        ("pausing", True, "is pausing, in generation 2"),
        ("paused", False, "is not up: not connected to the broker, in generation 2"),
    ],
)
def test_a_restart_says_that_the_cell_is_still_paused(pause: str, connected: bool, text: str) -> None:
    """It is done all the same: the operator has paused it."""
    assert judge_cell("restart", 1, restarted(pause, connected=connected)) == (True, text)
