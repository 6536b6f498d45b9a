"""A supervised tree of stand-in cells in processes of its own, and what a test asks about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

from support.lines import read_lines
from support.processes import GONE_SECONDS
from understudy.actors.options import RestartType
from understudy.actors.supervision import Strategy
from understudy.runtime.specs import CellSpec, SupervisorSpec
from understudy.runtime.supervision.processes import descendants, is_alive, read_process
from understudy.runtime.supervision.statefile import ChildStatus, SupervisorStatus, read_state

TESTS = Path(__file__).parent.parent
# Longer than a busy machine takes: who stops at once needs none of it, and whoever must not is killed sooner.
STOP_SECONDS = 60.0


def cell(
    actor: str,
    index: int = 0,
    *,
    hang_timeout_seconds: float = 8.0,
    start_timeout_seconds: float = 30.0,
    restart: RestartType = "permanent",
    max_crashes: int = 3,
) -> CellSpec:
    """Return the spec of a stand-in cell; the actor's name tells what it does."""
    return CellSpec(
        actor=actor,
        index=index,
        durable=f"test-{actor}",
        stream="TEST",
        start_timeout_seconds=start_timeout_seconds,
        hang_timeout_seconds=hang_timeout_seconds,
        ack_wait_seconds=15.0,
        restart=restart,
        max_crashes=max_crashes,
    )


def supervisor(
    name: str,
    *children: CellSpec | SupervisorSpec,
    strategy: Strategy = "one_for_one",
    restart: RestartType = "permanent",
    max_restarts: int = 3,
    max_seconds: float = 5.0,
) -> SupervisorSpec:
    """Return the spec of a supervisor."""
    return SupervisorSpec(
        name=name,
        strategy=strategy,
        restart=restart,
        max_restarts=max_restarts,
        max_seconds=max_seconds,
        children=children,
    )


def wait_until(condition: Callable[[], Any], timeout_seconds: float = 60.0, what: str = "") -> Any:
    """Return the condition's value soon after it is true; fail after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        answered = time.monotonic()
        if answered > deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what or condition}")
        # One that reads much, or starts a process, must not take the cores from what it waits for.
        time.sleep(min(0.25, max(0.005, 3 * (answered - asked))))


class Tree:
    """One launcher with everything below it; ended with it whatever the test did."""

    def __init__(self, directory: Path, root: SupervisorSpec, *, stop_seconds: float = STOP_SECONDS) -> None:
        self.directory = directory
        self.root_name = root.name
        spec_file = directory / "spec.json"
        spec_file.write_bytes(msgspec.json.encode(root))
        self.log_path = directory / "log"
        with self.log_path.open("wb") as log:
            self.launcher = subprocess.Popen(
                [
                    *(sys.executable, "-m", "support.supervised"),
                    *(str(spec_file), str(directory), str(stop_seconds)),
                ],
                cwd=TESTS,
                stderr=log,
            )
        pids = wait_until((directory / "pids").exists) and wait_until((directory / "pids").read_text)
        self.admin, self.logger, self.root, self.port = (int(number) for number in pids.split())
        self.seen = {process.pid: process.start_ticks for process in descendants(self.launcher.pid)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.note_processes()
        if self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGCONT)
            self.launcher.kill()
        self.launcher.wait()
        self.assert_nobody_left()

    def state(self, name: str | None = None) -> SupervisorStatus | None:
        """Return a supervisor's view; the root's without a name."""
        return read_state(self.directory, name or self.root_name)

    def has_looked_since(self, moment: float, name: str) -> bool:
        """Return whether a supervisor has looked at its children since a moment of CLOCK_BOOTTIME."""
        status = self.state(name)
        return status is not None and status.heartbeat > moment

    def child(self, name: str) -> ChildStatus:
        """Return a child of any supervisor."""
        for path in self.directory.glob("*.supervisor.json"):
            status = self.state(path.name.removesuffix(".supervisor.json"))
            for child in status.children if status else ():
                if child.name == name:
                    return child
        raise KeyError(name)

    def wait_for_child(self, name: str, *, state: str = "up", generation: int = 1) -> ChildStatus:
        """Return a child once it is in this state in this generation or a later one."""

        def reached() -> ChildStatus | None:
            try:
                child = self.child(name)
            except KeyError:
                return None
            return child if child.state == state and child.generation >= generation else None

        status: ChildStatus = wait_until(reached, what=f"{name} {state} in generation {generation}")
        self.note_processes()
        return status

    def wait_until_up(self) -> None:
        """Return when the root has started all its children."""
        wait_until(lambda: (status := self.state()) and status.state == "up", what="root up")
        self.note_processes()

    def note_processes(self) -> None:
        """Remember what runs now, so that it can be asked later whether it is gone."""
        self.seen |= {process.pid: process.start_ticks for process in descendants(self.launcher.pid)}

    def assert_nobody_left(self) -> None:
        """Fail unless every process that was ever seen below the launcher is gone soon."""
        deadline = time.monotonic() + GONE_SECONDS
        while left := [pid for pid, started in self.seen.items() if is_alive(pid, started)]:
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"still there after {GONE_SECONDS:g} s: {left}")
            time.sleep(0.01)

    def starts(self) -> list[str]:
        """Return what the stand-in cells were told: name, generation, pid, crashed, reason."""
        return read_lines(self.directory / "starts")

    def history(self) -> list[str]:
        """Return what the stand-in cells were told in which order: `start steady/0`, `stop steady/0`."""
        return read_lines(self.directory / "history")

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the log entries with this event."""
        entries = [json.loads(line) for line in read_lines(self.log_path) if line[:1] == "{"]
        return [entry for entry in entries if entry["event"] == event]

    def restart(self, *cells: str) -> None:
        """Have cells restarted as an operator does."""
        (self.directory / "restart").write_text(" ".join(cells))
        self.launcher.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Ask the launcher to stop its tree, and wait until it has ended."""
        self.launcher.terminate()
        self.wait()

    def wait(self) -> None:
        """Wait until the launcher has ended."""
        self.launcher.wait(timeout=2 * STOP_SECONDS)


def kill(pid: int | None) -> None:
    """SIGKILL a process and return when it is dead."""
    assert pid is not None
    process = read_process(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: process is None or not is_alive(pid, process.start_ticks), what=f"{pid} dead")
