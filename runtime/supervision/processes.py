"""What the kernel tells about processes: who descends from whom, what a pid still means, how one ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One process as /proc shows it.

    `start_ticks` (since boot) tells a process from a later one that got its pid.
    """

    pid: int
    parent_pid: int
    state: str
    start_ticks: int

    @property
    def is_zombie(self) -> bool:
        """Whether the process has ended and only waits for its parent to reap it."""
        return self.state in "ZX"


def read_process(pid: int) -> Process | None:
    """Return the process with this pid, or None if there is none.

    Args:
        pid: a process id.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may itself hold any byte: spaces, parentheses, half a
    # character of UTF-8 where the kernel cut it off.
    fields = stat[stat.rindex(b")") + 2 :].decode("ascii").split()
    return Process(pid=pid, parent_pid=int(fields[1]), state=fields[0], start_ticks=int(fields[19]))


def is_alive(pid: int, start_ticks: int) -> bool:
    """Return whether the process that had this pid and start time still runs.

    Args:
        pid: its process id.
        start_ticks: when it was started, as `Process.start_ticks`.
    """
    process = read_process(pid)
    return process is not None and process.start_ticks == start_ticks and not process.is_zombie


def descendants(pid: int) -> list[Process]:
    """Return every process below this one, parents before their children, zombies too.

    Args:
        pid: the process to begin below; it isn't returned itself.
    """
    children: dict[int, list[Process]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (process := read_process(int(path.name))):
            children.setdefault(process.parent_pid, []).append(process)
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def children_of(pid: int) -> set[int]:
    """Return the pids of this process' living children.

    Args:
        pid: the parent.
    """
    return {
        process.pid for process in descendants(pid) if process.parent_pid == pid and not process.is_zombie
    }


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process, if it is still there.

    Args:
        pid: its process id.
        number: the signal.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_group(leader: int) -> None:
    """Send SIGKILL to what is left of a process group, if anything is.

    Args:
        leader: the pid of the process that the group is named after, which may be gone.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def reap_children(spare: Collection[int] = ()) -> None:
    """Collect our zombies, which as a subreaper include orphans that we never forked.

    Args:
        spare: pids whose exit status somebody else waits for.
    """
    # Asked several times a second: only if there is a zombie at all is it worth to read all of /proc.
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
    except ChildProcessError:
        return
    own = os.getpid()
    for process in descendants(own):
        if process.parent_pid == own and process.is_zombie and process.pid not in spare:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def kill_descendants(*, spare: Collection[int] = (), timeout_seconds: float = 2.0) -> list[int]:
    """SIGKILL everything below this process, reap it, and return the pids that are left.

    Repeated until nothing remains, since a process may fork while it is being killed.

    Args:
        spare: pids that are left alone, with all below them.
        timeout_seconds: after which what is left is returned.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        reap_children(spare)
        spared = set(spare)
        left: list[int] = []
        for process in descendants(os.getpid()):
            if process.pid in spared or process.parent_pid in spared:
                spared.add(process.pid)
            elif not process.is_zombie:
                left.append(process.pid)
        if not left or time.monotonic() > deadline:
            return left
        for pid in left:
            kill(pid)
        time.sleep(0.005)


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
