"""What a supervisor remembers of one child."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from understudy.runtime.cell.cellfile import CellFileError, DeadCellFile
from understudy.runtime.cell.ledger import SlotState
from understudy.runtime.cell.start import CellStart, RunSpec
from understudy.runtime.cell.status import read_status
from understudy.runtime.specs import CellSpec, SupervisorSpec
from understudy.runtime.supervision.backoff import Backoff
from understudy.runtime.supervision.messages import StartSupervisor
from understudy.runtime.supervision.processes import is_alive, kill, kill_group, read_process
from understudy.runtime.supervision.statefile import ChildState, ChildStatus, read_state

SUPERVISOR_HANG_SECONDS = 10.0
SUPERVISOR_START_SECONDS = 10.0
# How `describe_exit` tells of a child that ended as it should.
CLEAN_EXIT = "exit status 0"


class Child:
    """One child over all its generations.

    `state` is what it does now. `failure` is why it says that it can't go on, and `killed_for` why its
    supervisor killed it; both belong to the running generation. Times are seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, spec: CellSpec | SupervisorSpec, run: RunSpec) -> None:
        self.spec = spec
        self.run = run
        self.state: ChildState = "starting"
        self.generation = 0
        self.restarts = 0
        self.last_reason = ""
        self.crashed = False
        self.address: Any = None
        self.process: BaseProcess | None = None
        self.pidfd = -1
        self.start_ticks = 0
        self.failure = ""
        self.killed_for = ""
        self.up_since: float | None = None
        self.watched_since = 0.0
        self.start_deadline = 0.0
        self.suspect_deaths = 0
        self.backoff = Backoff()
        self._predecessor: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The child's name within the app."""
        return self.spec.name

    @property
    def is_cell(self) -> bool:
        """Whether it is a cell, and not a supervisor."""
        return isinstance(self.spec, CellSpec)

    @property
    def kind(self) -> str:
        """What it is, as log entries say it."""
        return "cell" if self.is_cell else "supervisor"

    @property
    def labels(self) -> dict[str, str]:
        """What names it in a log entry."""
        if isinstance(self.spec, CellSpec):
            return {"actor": self.spec.actor, "cell": self.name}
        return {"child": self.name}

    @property
    def start_timeout_seconds(self) -> float:
        """How long a start may take; a supervisor starts its children one after the other."""
        return _start_timeout(self.spec)

    @property
    def hang_timeout_seconds(self) -> float:
        """How old its heartbeat may grow."""
        return self.spec.hang_timeout_seconds if isinstance(self.spec, CellSpec) else SUPERVISOR_HANG_SECONDS

    def inherit(self, status: ChildStatus, reason: str) -> None:
        """Go on from what the supervisor's dead predecessor knew.

        Args:
            status: the predecessor's last word on this child.
            reason: why the predecessor ended, which took the child with it.
        """
        self.generation = status.generation
        self.restarts = status.restarts
        self.last_reason = status.last_reason if status.pid is None else f"its supervisor ended: {reason}"
        # Nobody saw how it ended, so what it was handling isn't suspect.
        self.crashed = status.pid is None and status.crashed
        if status.pid is not None:
            self._predecessor = (status.pid, status.start_ticks)

    def predecessor_is_gone(self) -> bool:
        """Return whether the process of a dead supervisor's child is surely dead; kill it if it isn't."""
        if self._predecessor is None:
            return True
        pid = self._predecessor[0]
        if is_alive(*self._predecessor):
            kill(pid)
            return False
        if self.is_cell:
            kill_group(pid)
        self._predecessor = None
        return True

    def began(self, process: BaseProcess, address: Any, now: float) -> None:
        """Note the process of a new generation, which this supervisor just forked."""
        assert process.pid is not None
        running = read_process(process.pid)
        self.process, self.address = process, address
        # Our own child can't be reaped before we are back in the message loop, so the pid is still its own.
        self.pidfd = os.pidfd_open(process.pid)
        self.start_ticks = running.start_ticks if running else 0
        if self.is_cell:
            # What a handler forks has the cell's sockets. While it runs, the server takes the connection of a
            # dead cell for alive and goes on answering its pull request; so it is to die with the cell.
            with contextlib.suppress(ProcessLookupError):
                os.setpgid(process.pid, process.pid)
        self.state = "starting"
        self.failure = self.killed_for = ""
        self.up_since = None
        self.start_deadline = now + self.start_timeout_seconds

    def came_up(self, now: float) -> None:
        """Note that it is ready."""
        self.state = "up"
        self.up_since = self.watched_since = now

    def ended(self) -> str:
        """Note that its process is gone, and return why."""
        assert self.process is not None
        assert self.process.pid is not None
        if self.is_cell:
            # Before it is reaped: until then nobody else can have its pid.
            kill_group(self.process.pid)
        os.close(self.pidfd)
        code = self.process.exitcode
        self.process, self.address, self.pidfd = None, None, -1
        reason = self.failure or self.killed_for or self._escalation() or describe_exit(code)
        self.crashed = not self.failure and self.is_cell
        self.suspect_deaths += self.crashed and self._left_a_delivery_in_handling()
        self.last_reason = reason
        return reason

    def kill(self, reason: str) -> None:
        """End its process by SIGKILL.

        Args:
            reason: what is then told about its end.
        """
        if self.process is not None and self.process.pid is not None:
            self.killed_for = self.killed_for or reason
            kill(self.process.pid)

    def start_message(self) -> CellStart | StartSupervisor:
        """Return what the new generation is told."""
        if isinstance(self.spec, CellSpec):
            return CellStart(
                run=self.run,
                spec=self.spec,
                generation=self.generation,
                reason=self.last_reason,
                crashed=self.crashed,
            )
        return StartSupervisor(
            run=self.run, spec=self.spec, generation=self.generation, reason=self.last_reason
        )

    def heartbeat(self) -> float:
        """Return when it last showed that it runs; 0 if it never did."""
        if self.is_cell:
            cell = read_status(Path(self.run.run_directory, self._cell_file()))
            return cell.heartbeat if cell else 0.0
        supervisor = read_state(Path(self.run.run_directory), self.name)
        return supervisor.heartbeat if supervisor else 0.0

    def status(self) -> ChildStatus:
        """Return what the state file says of it."""
        return ChildStatus(
            name=self.name,
            kind="cell" if self.is_cell else "supervisor",
            state=self.state,
            pid=self.process.pid if self.process else None,
            start_ticks=self.start_ticks,
            generation=self.generation,
            restarts=self.restarts,
            last_reason=self.last_reason,
            crashed=self.crashed,
            cell_file=self._cell_file(),
        )

    def _cell_file(self) -> str:
        message = self.start_message()
        return message.cell_file_path().name if isinstance(message, CellStart) else ""

    def _left_a_delivery_in_handling(self) -> bool:
        try:
            ledger = DeadCellFile.claim(Path(self.run.run_directory, self._cell_file()))
        except CellFileError:
            return False
        if ledger is None:
            return False
        ledger.release()
        return any(entry.state is SlotState.HANDLING for entry in ledger.entries)

    def _escalation(self) -> str:
        if self.is_cell:
            return ""
        supervisor = read_state(Path(self.run.run_directory), self.name)
        return f"escalated: {supervisor.reason}" if supervisor and supervisor.state == "escalated" else ""


def describe_exit(code: int | None) -> str:
    """Return a process' end in words.

    Args:
        code: as multiprocessing tells it: negative for a signal.
    """
    if code is None:
        return "ended, nobody saw how"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"


def _start_timeout(spec: CellSpec | SupervisorSpec) -> float:
    if isinstance(spec, CellSpec):
        return spec.start_timeout_seconds
    return SUPERVISOR_START_SECONDS + sum(_start_timeout(child) for child in spec.children)
