"""What a supervisor remembers of one child."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from understudy.runtime.cell.cellfile import CellFileError, DeadCellFile
from understudy.runtime.cell.ledger import SlotState
from understudy.runtime.cell.start import CellStart, RunSpec
from understudy.runtime.cell.status import boottime, read_status
from understudy.runtime.specs import CellSpec, SupervisorSpec
from understudy.runtime.supervision.backoff import HEALTHY_SECONDS, Backoff
from understudy.runtime.supervision.crash_dump import take_crash_dump
from understudy.runtime.supervision.messages import StartSupervisor
from understudy.runtime.supervision.processes import (
    describe_exit,
    is_alive,
    kill,
    kill_group,
    read_process,
)
from understudy.runtime.supervision.statefile import (
    Cause,
    ChildState,
    ChildStatus,
    SupervisorStatus,
    read_state,
)

SUPERVISOR_HANG_SECONDS = 10.0
SUPERVISOR_START_SECONDS = 10.0
# How long a process may take to write where its threads are, which a busy machine makes long, and to end.
ABORT_SECONDS = 2.0
STOPPED = "stopped"
STOPPED_BY_ITSELF = "stopped by itself"
BY_THE_OPERATOR = "restarted by the operator"


class End(NamedTuple):
    """How a generation of a child ended.

    Args:
        reason: in words.
        normal: whether it ended as it meant to: because it was told to, or was done. A supervisor that gave
            up did too, as OTP sees it.
        clean: whether nothing went wrong on the way.
        counts: whether it says something about the child, and so uses up a restart.
        crash_dump: where its threads were when a signal ended it; empty if none did, or it left nothing.
    """

    reason: str
    normal: bool
    clean: bool
    counts: bool
    crash_dump: str = ""


class Child:
    """One child over all its generations.

    `state` is what it does now. Of the running generation, `failure` is why it says that it can't go on,
    `killed_for` why its supervisor killed it, `stopped_for` why its supervisor stops it, and `says_stopped`
    whether it has said that it stopped. Times are seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, spec: CellSpec | SupervisorSpec, run: RunSpec) -> None:
        self.spec = spec
        self.run = run
        self.state: ChildState = "starting"
        self.generation = 0
        self.restarts = 0
        self.restarts_by: dict[str, int] = {}
        self.last_reason = ""
        self.last_cause: Cause | None = None
        self.crashed = False
        self.address: Any = None
        self.process: BaseProcess | None = None
        self.pidfd = -1
        self.start_ticks = 0
        self.failure = ""
        self.killed_for = ""
        self.killed_because: Cause | None = None
        self.stopped_for = ""
        self.says_stopped = False
        self.starts_at: float | None = None
        self.up_since: float | None = None
        self.watched_since = 0.0
        self.start_deadline = 0.0
        self.stop_deadline = 0.0
        # Before which one that was told to abort isn't killed.
        self.abort_deadline = 0.0
        self.suspect_deaths = 0
        self.backoff = Backoff()
        # When all of the running generation was last seen to run.
        self._seen_running = 0.0
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

    @property
    def hangs_at(self) -> float:
        """Until when it need not be looked at again."""
        if self.killed_for:
            return self.abort_deadline
        return max(self.watched_since, self._seen_running) + self.hang_timeout_seconds

    def inherit(self, status: ChildStatus, reason: str) -> None:
        """Go on from what the supervisor's dead predecessor knew.

        Args:
            status: the predecessor's last word on this child.
            reason: why the predecessor ended, which took the child with it.
        """
        self.generation = status.generation
        self.restarts = status.restarts
        self.restarts_by = dict(status.restarts_by)
        self.last_reason = status.last_reason if status.pid is None else f"its supervisor ended: {reason}"
        self.last_cause = status.last_cause if status.pid is None else "supervisor"
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
        # Its supervisor took it along.
        take_crash_dump(Path(self.run.run_directory), pid)
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
        self.failure = self.killed_for = self.stopped_for = ""
        self.killed_because = None
        self.abort_deadline = 0.0
        self.says_stopped = False
        self.starts_at = None
        self.up_since = None
        self.start_deadline = now + self.start_timeout_seconds

    def begins(self) -> None:
        """Count the generation that is about to be forked, and the restart if it isn't the first."""
        if self.generation > 0:
            self.restarts += self.stopped_for != BY_THE_OPERATOR
            if self.last_cause is not None:
                self.restarts_by[self.last_cause] = self.restarts_by.get(self.last_cause, 0) + 1
        self.generation += 1

    def came_up(self, now: float) -> None:
        """Note that it is ready."""
        self.state = "up"
        self.up_since = self.watched_since = now
        self._seen_running = 0.0

    def ended(self) -> End:
        """Note that its process is gone, and return how it ended."""
        assert self.process is not None
        assert self.process.pid is not None
        if self.is_cell:
            # Before it is reaped: until then nobody else can have its pid.
            kill_group(self.process.pid)
        os.close(self.pidfd)
        code = self.process.exitcode
        crash_dump = take_crash_dump(Path(self.run.run_directory), self.process.pid)
        self.process, self.address, self.pidfd = None, None, -1
        last_word = self._last_word()
        gave_up = last_word is not None and last_word.state == "escalated"
        has_stopped = self.says_stopped or (last_word is not None and last_word.state == "stopped")
        normal = code == 0 and (has_stopped or gave_up)
        clean = code == 0 and not (self.failure or self.killed_for or gave_up)
        if clean and self.stopped_for:
            reason = self.stopped_for
        elif clean and normal:
            reason = STOPPED if self.state == "stopping" else STOPPED_BY_ITSELF
        elif gave_up:
            assert last_word is not None
            reason = f"escalated: {last_word.reason}"
        else:
            reason = self.failure or self.killed_for or describe_exit(code)
        # What it was handling is suspect only if nobody has ended it on purpose.
        self.crashed = self.is_cell and not normal and not self.failure and self.state != "stopping"
        suspect = self.crashed and self._left_a_delivery_in_handling()
        self.suspect_deaths += suspect
        self.last_reason = reason
        self.last_cause = self._cause(code, clean=clean, normal=normal, gave_up=gave_up)
        return End(reason, normal, clean, self._counts(suspect=suspect), crash_dump)

    def could_not_be_forked(self) -> None:
        """Note that a generation has no process."""
        self.last_reason, self.last_cause = "its process could not be forked", "start_failed"

    def _cause(self, code: int | None, *, clean: bool, normal: bool, gave_up: bool) -> Cause:
        """Return in a word what `ended` says in a sentence."""
        if self.stopped_for == BY_THE_OPERATOR:
            return "operator"
        if clean and self.stopped_for:
            return "strategy"
        if clean and normal:
            return "stopped_itself"
        if gave_up:
            return "escalated"
        if self.failure:
            return "start_failed" if self.up_since is None else "exception"
        if self.killed_because is not None:
            return self.killed_because
        return "signal" if code is not None and code < 0 else "exit"

    def _counts(self, *, suspect: bool) -> bool:
        """Return whether a restart for this end is one towards its supervisor's intensity."""
        if not isinstance(self.spec, CellSpec):
            return True
        # A delivery that kills its process is tried a few times more and then a dead letter.
        by_a_delivery = suspect and self.suspect_deaths % self.spec.max_crashes != 0
        # A cell that can't start says nothing about its siblings, and waits longer and longer instead.
        return self.up_since is not None and not by_a_delivery

    def kill(self, reason: str, cause: Cause, number: int = signal.SIGKILL) -> None:
        """End its process by a signal.

        Args:
            reason: what is then told about its end.
            cause: the same in a word.
            number: the signal.
        """
        if self.process is not None and self.process.pid is not None:
            self.killed_for = self.killed_for or reason
            self.killed_because = self.killed_because or cause
            kill(self.process.pid, number)

    def abort(self, reason: str, cause: Cause, now: float) -> None:
        """End its process by SIGABRT, so that it tells where its threads are; by SIGKILL if it outlasts that.

        Called again and again as long as it is there: one that is killed earlier may not have told all.
        """
        if not self.killed_for:
            self.abort_deadline = now + ABORT_SECONDS
            self.kill(reason, cause, signal.SIGABRT)
            # One that was stopped takes it only then.
            self.kill(reason, cause, signal.SIGCONT)
        elif now >= self.abort_deadline:
            self.kill(reason, cause)

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

    def is_at_work(self) -> bool:
        """Return whether it is a cell that has started, as its cell file says."""
        cell = read_status(Path(self.run.run_directory, self._cell_file())) if self.is_cell else None
        return cell is not None and cell.state not in ("starting", "stopped", "failed")

    def hang(self, now: float) -> str:
        """Return what in it has not run for longer than it may, and how long; empty if all of it runs."""
        if self.killed_for:
            # It may run again since, as one does that was stopped and does not take SIGABRT.
            return self.killed_for
        # Most often it has been seen to run not long ago, and nothing need be read.
        if now - max(self.watched_since, self._seen_running) <= self.hang_timeout_seconds / 2:
            return ""
        if not Path(self.run.run_directory).is_dir():
            # Nobody can show that it runs any more: the launcher drains as soon as it sees that too.
            return ""
        heartbeats = self._heartbeats()
        ages = {what: now - max(heartbeat, self.watched_since) for what, heartbeat in heartbeats.items()}
        if min(ages.values()) > self.hang_timeout_seconds / 2:
            # All of it stands still, as when a handler holds the GIL, and has not before the last heartbeat.
            ages = {"no heartbeat": min(ages.values())}
        for what, age in ages.items():
            if age > self.hang_timeout_seconds:
                return f"hang: {what} for {age:.1f} s"
        self._seen_running = min(heartbeats.values())
        return ""

    def _heartbeats(self) -> dict[str, float]:
        """Return when each part of it last showed that it runs, by what is said if it doesn't."""
        if self.is_cell:
            cell = read_status(Path(self.run.run_directory, self._cell_file()))
            return {
                "no heartbeat": cell.heartbeat if cell else 0.0,
                "no heartbeat of its control thread": cell.control_heartbeat if cell else 0.0,
            }
        supervisor = read_state(Path(self.run.run_directory), self.name)
        return {"no heartbeat": supervisor.heartbeat if supervisor else 0.0}

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
            starts_at=self.starts_at,
            failures=self.failures(),
            last_cause=self.last_cause,
            restarts_by=self.restarts_by,
        )

    def failures(self) -> int:
        """Return how often it has ended in a row without a healthy time between."""
        healthy = self.up_since is not None and boottime() - self.up_since >= HEALTHY_SECONDS
        return 0 if healthy and self.process is not None else self.backoff.failures

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

    def _last_word(self) -> SupervisorStatus | None:
        """Return what a supervisor that has ended wrote of itself at last."""
        if self.is_cell:
            return None
        status = read_state(Path(self.run.run_directory), self.name)
        return status if status is not None and status.generation == self.generation else None


def end_orphans(run_directory: Path, supervisor: str) -> None:
    """End what a supervisor that died, and isn't started again, has left of its subtree.

    Its children die with it; what a handler had forked doesn't.

    Args:
        run_directory: the run's.
        supervisor: its name.
    """
    status = read_state(run_directory, supervisor)
    for child in status.children if status else ():
        if child.kind == "supervisor":
            end_orphans(run_directory, child.name)
        elif child.pid is not None:
            kill_group(child.pid)
        if child.pid is not None:
            take_crash_dump(run_directory, child.pid)


def _start_timeout(spec: CellSpec | SupervisorSpec) -> float:
    if isinstance(spec, CellSpec):
        return spec.start_timeout_seconds
    return SUPERVISOR_START_SECONDS + sum(_start_timeout(child) for child in spec.children)
