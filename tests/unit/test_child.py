"""What a supervisor makes of a child's ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.tree import cell
from understudy.config.connection import ConnectionSpec
from understudy.runtime.cell.start import RunSpec
from understudy.runtime.cell.status import boottime
from understudy.runtime.specs import CellSpec
from understudy.runtime.supervision import child as children
from understudy.runtime.supervision.child import ABORT_SECONDS, Child
from understudy.runtime.supervision.processes import read_process


class Ended:
    """A process that has ended with status 9."""

    pid = 2**22 + 1
    exitcode = 9


def child_of(spec: CellSpec, directory: Path) -> Child:
    """Return a child that hasn't been started yet."""
    run = RunSpec(
        app="test",
        target="none:none",
        run_id="0123456789abcdef",
        run_directory=str(directory),
        launcher_pid=1,
        revision=0,
        connection=ConnectionSpec(servers=("nats://127.0.0.1:4222",)),
        log_level="info",
        log_format="json",
        shutdown_timeout_seconds=1,
    )
    return Child(spec, run)


def end(child: Child, *, seconds_up: float | None, suspect: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Have a child die after it was up for so long, and return whether that counts."""
    process: Any = Ended()
    assert read_process(process.pid) is None
    child.process, child.pidfd = process, os.open("/dev/null", os.O_RDONLY)
    child.up_since = None if seconds_up is None else boottime() - seconds_up
    monkeypatch.setattr(Child, "_left_a_delivery_in_handling", lambda _: suspect)
    counts = child.ended().counts
    monkeypatch.undo()
    return counts


@pytest.mark.parametrize(("max_crashes", "counted"), [(1, [True] * 4), (2, [False, True] * 2)])
def test_every_death_that_uses_up_a_deliverys_crashes_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_crashes: int, counted: list[bool]
) -> None:
    """As many are borne as the actor's own policy lets a delivery cause, less one."""
    child = child_of(cell("steady", max_crashes=max_crashes), tmp_path)
    ends = [end(child, seconds_up=1.0, suspect=True, monkeypatch=monkeypatch) for _ in range(4)]
    assert ends == counted


def test_a_death_with_nothing_at_hand_counts_if_the_cell_was_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that never was says nothing about its siblings."""
    child = child_of(cell("steady"), tmp_path)
    assert end(child, seconds_up=0.0, suspect=False, monkeypatch=monkeypatch)
    assert not end(child, seconds_up=None, suspect=False, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ({"exitcode": -9}, "signal"),
        ({"exitcode": 9}, "exit"),
        ({"exitcode": 0}, "exit"),
        ({"exitcode": 0, "says_stopped": True}, "stopped_itself"),
        ({"exitcode": 0, "says_stopped": True, "stopped_for": "restarted with other/0 (exit)"}, "strategy"),
        ({"exitcode": 0, "says_stopped": True, "stopped_for": "restarted by the operator"}, "operator"),
        ({"exitcode": 1, "failure": "no database"}, "exception"),
        ({"exitcode": 1, "failure": "no database", "up_since": None}, "start_failed"),
        ({"exitcode": -9, "killed_for": "hang: …", "killed_because": "hang"}, "hang"),
        ({"exitcode": -9, "killed_for": "late", "killed_because": "stop_timeout"}, "stop_timeout"),
    ],
)
def test_an_end_has_a_cause_that_restarts_are_counted_by(
    tmp_path: Path, what: dict[str, Any], cause: str
) -> None:
    """The first start is no restart; a successor of its supervisor goes on counting."""
    child = child_of(cell("steady"), tmp_path)
    child.begins()
    assert child.restarts_by == {}
    process: Any = Ended()
    child.process, child.pidfd = process, os.open("/dev/null", os.O_RDONLY)
    process.exitcode = what.pop("exitcode")
    child.up_since = 1.0
    for name, value in what.items():
        setattr(child, name, value)
    child.ended()
    assert child.last_cause == cause
    child.begins()
    assert child.restarts_by == {cause: 1}
    assert child.restarts == (cause != "operator")
    successor = child_of(cell("steady"), tmp_path)
    successor.inherit(child.status(), "killed by SIGKILL")
    successor.begins()
    assert successor.restarts_by == {cause: 2}


@pytest.mark.parametrize(("seconds_up", "failures"), [(9.0, 3), (11.0, 0)])
def test_failures_in_a_row_end_with_a_healthy_time(tmp_path: Path, seconds_up: float, failures: int) -> None:
    """The tree shows none once the next backoff would begin anew."""
    child = child_of(cell("steady"), tmp_path)
    child.backoff.failures = 3
    process: Any = Ended()
    child.process, child.up_since = process, boottime() - seconds_up
    assert child.status().failures == failures


@pytest.mark.parametrize(
    ("data", "control", "hang"),
    [
        (0.5, 2.7, ""),
        (8.5, 0.5, "hang: no heartbeat for 8.5 s"),
        (0.5, 8.5, "hang: no heartbeat of its control thread for 8.5 s"),
        # Both have stood still since the younger one.
        (6.1, 8.5, ""),
        (8.1, 10.5, "hang: no heartbeat for 8.1 s"),
    ],
)
def test_a_part_that_stands_still_is_named_and_all_of_it_has_its_whole_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: float, control: float, hang: str
) -> None:
    """Threads beat at different times: what stops both has not lasted since the older heartbeat."""
    child = child_of(cell("steady", hang_timeout_seconds=8.0), tmp_path)
    ages = {"no heartbeat": 100.0 - data, "no heartbeat of its control thread": 100.0 - control}
    monkeypatch.setattr(Child, "_heartbeats", lambda _: ages)
    assert child.hang(now=100.0) == hang


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which signals are sent to a child; nobody hears them."""
    sent: list[int] = []
    monkeypatch.setattr(children, "kill", lambda _, number: sent.append(number))
    return sent


def running(tmp_path: Path) -> Child:
    """Return a child that has come up long ago."""
    child = child_of(cell("steady", hang_timeout_seconds=1.0), tmp_path)
    process: Any = Ended()
    child.process, child.state, child.up_since = process, "up", 1.0
    return child


def test_what_is_told_to_abort_has_its_time_to_say_where_it_is(tmp_path: Path, signals: list[int]) -> None:
    """However often its supervisor looks meanwhile; then it is killed, and looked at again only then."""
    child = running(tmp_path)
    child.abort("hang: …", "hang", 100.0)
    assert signals == [signal.SIGABRT, signal.SIGCONT]
    assert child.hangs_at == 100.0 + ABORT_SECONDS
    for seconds in (0.05, 0.5, ABORT_SECONDS - 0.01):
        child.abort("hang: …", "hang", 100.0 + seconds)
    assert signals == [signal.SIGABRT, signal.SIGCONT]
    for seconds in (ABORT_SECONDS, ABORT_SECONDS + 0.05):
        child.abort("hang: later", "hang", 100.0 + seconds)
    assert signals[2:] == [signal.SIGKILL, signal.SIGKILL]
    assert child.killed_for == "hang: …"


def test_what_was_told_to_abort_is_killed_though_it_runs_again(
    tmp_path: Path, signals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that was stopped and takes no SIGABRT: what it is told to do is to end."""
    child = running(tmp_path)
    child.abort("hang: no heartbeat for 1.1 s", "hang", 100.0)
    monkeypatch.setattr(Child, "_heartbeats", lambda _: {"no heartbeat": 102.0})
    assert child.hang(102.0) == "hang: no heartbeat for 1.1 s"
    assert child.hangs_at == 100.0 + ABORT_SECONDS
    child.abort(child.hang(102.0), "hang", 102.0)
    assert signals == [signal.SIGABRT, signal.SIGCONT, signal.SIGKILL]


def test_a_stop_does_not_wait_for_who_was_told_to_abort(tmp_path: Path, signals: list[int]) -> None:
    """It has its own deadline, which has passed by then."""
    child = running(tmp_path)
    child.abort("hang: …", "hang", 100.0)
    child.kill("did not stop in time", "stop_timeout")
    assert signals == [signal.SIGABRT, signal.SIGCONT, signal.SIGKILL]


def test_each_generation_that_hangs_is_told_to_abort(
    tmp_path: Path, signals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the one before it was told a moment ago."""
    monkeypatch.setattr(os, "pidfd_open", lambda _: os.open("/dev/null", os.O_RDONLY))
    child = running(tmp_path)
    child.abort("hang: …", "hang", 100.0)
    process: Any = Ended()
    child.began(process, None, 100.5)
    os.close(child.pidfd)
    assert child.hangs_at < 100.0
    child.abort("hang: …", "hang", 101.0)
    child.abort("hang: …", "hang", 100.0 + ABORT_SECONDS)
    assert signals == [signal.SIGABRT, signal.SIGCONT] * 2
