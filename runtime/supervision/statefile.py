"""Each supervisor's view of its children, in a file that anyone may read at any time.

The launcher, the probes and the tree are made of these files, so watching costs no messages and works while
a process hangs. A restarted supervisor goes on from its predecessor's file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

SupervisorState = Literal["starting", "up", "stopping", "stopped", "escalated"]
ChildState = Literal["starting", "up", "backoff", "stopping", "stopped"]
# Why something was started again, in one word.
Cause = Literal[
    "exception",
    "start_failed",
    "start_timeout",
    "exit",
    "signal",
    "hang",
    "stop_timeout",
    "escalated",
    "stopped_itself",
    "strategy",
    "supervisor",
    "operator",
]


class ChildStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One child as its supervisor sees it.

    Args:
        name: such as `delay-monitor/0`.
        kind: what it is.
        state: what it does; `backoff` while it waits to be started again, `stopped` when it ended for good.
        pid: its process; None while it has none.
        start_ticks: when that process was started, which tells it from a later one with its pid.
        generation: how often it was started in this run.
        restarts: how often it was started again.
        last_reason: why it last ended; empty if it never did.
        crashed: whether it then died of itself.
        cell_file: the name of a cell's file in the run directory; empty for a supervisor.
        starts_at: when it is started again, in seconds of CLOCK_BOOTTIME; None unless it waits for that.
        failures: how often it has ended in a row without ten healthy seconds between.
        last_cause: `last_reason` in one word; None if it never ended.
        restarts_by: how often it was started again, by cause; those by the operator too, which `restarts`
            leaves out.
    """

    name: str
    kind: Literal["cell", "supervisor"]
    state: ChildState
    pid: int | None
    start_ticks: int
    generation: int
    restarts: int
    last_reason: str
    crashed: bool
    cell_file: str
    starts_at: float | None = None
    failures: int = 0
    last_cause: Cause | None = None
    restarts_by: dict[str, int] = {}


class SupervisorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A supervisor at one moment.

    Args:
        name: the supervisor's.
        pid: its process.
        generation: how often it was started in this run.
        state: what it does; `escalated` from the moment it gave up, also while it stops its children.
        reason: why it gave up.
        heartbeat: when it last ran, in seconds of CLOCK_BOOTTIME.
        not_drained: what didn't stop in time and was killed, or left settlements to the next start, from the
            whole subtree.
        children: in start order.
    """

    name: str
    pid: int
    generation: int
    state: SupervisorState
    reason: str
    heartbeat: float
    not_drained: tuple[str, ...]
    children: tuple[ChildStatus, ...]


# A view is padded to whole pages, so that a later one mostly fits where it stands.
PAGE = 4096
READ_ATTEMPTS = 5
_decoder = msgspec.json.Decoder(SupervisorStatus)


def state_path(run_directory: Path, supervisor: str) -> Path:
    """Return where a supervisor keeps its view."""
    return run_directory / f"{supervisor}.supervisor.json"


def write_state(run_directory: Path, status: SupervisorStatus) -> None:
    """Replace the supervisor's file; who reads meanwhile sees the old one or the new one.

    Where the file system is full, the view is written over the old one, which needs no room.

    Args:
        run_directory: the run's.
        status: the whole view.

    Raises:
        OSError: there is no room for it either way.
    """
    path = state_path(run_directory, status.name)
    new = path.with_suffix(".new")
    body = msgspec.json.encode(status)
    body += b" " * (-len(body) % PAGE)
    try:
        new.write_bytes(body)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        if not _overwrite(path, body):
            raise


def read_state(run_directory: Path, supervisor: str) -> SupervisorStatus | None:
    """Return a supervisor's view, or None if it has written none yet.

    Args:
        run_directory: the run's.
        supervisor: its name.
    """
    path = state_path(run_directory, supervisor)
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return _decoder.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            # It is just being written over.
            if attempt == READ_ATTEMPTS:
                raise
    return None


def _overwrite(path: Path, body: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        return len(body) <= size and os.pwrite(descriptor, body.ljust(size), 0) == size
    finally:
        os.close(descriptor)
