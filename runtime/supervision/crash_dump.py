"""What a process says when a signal ends it: where each of its threads was, by Python's faulthandler.

It is written by a signal handler, which can't make an entry of it. So each process has a file for it in the
run's directory, and whoever supervises the process logs what is there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".crash"
# Many threads with deep stacks make a long one.
MAX_BYTES = 64 * 1024


def dump_crashes_into(run_directory: Path) -> None:
    """Have this process write its dump there; where that can't be, it stays with stderr.

    Args:
        run_directory: the run's.
    """
    with contextlib.suppress(OSError):
        # Open for life: there may be no way to open anything when it is needed.
        descriptor = os.open(
            _path(run_directory, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        faulthandler.enable(file=descriptor)


def take_crash_dump(run_directory: Path, pid: int) -> str:
    """Return what a process that has ended left, and delete it; empty if it left nothing.

    Args:
        run_directory: the run's.
        pid: the process's.
    """
    path = _path(run_directory, pid)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8", "backslashreplace")
        path.unlink()
    except OSError:
        return ""
    return text.strip()


def take_crash_dumps(run_directory: Path) -> Iterator[tuple[int, str]]:
    """Yield pid and dump of each process that nobody has asked for, and delete the files.

    Args:
        run_directory: the run's, in which nothing runs any more.
    """
    for path in sorted(run_directory.glob(f"*{SUFFIX}")):
        pid = int(path.name.removesuffix(SUFFIX))
        if dump := take_crash_dump(run_directory, pid):
            yield pid, dump


def drop_empty_dumps(run_directory: Path) -> None:
    """Delete the files of processes that are gone and left nothing to say.

    A supervisor that dies right after a fork has told nobody of that process, which dies with it.

    Args:
        run_directory: the run's.
    """
    for path in run_directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == 0 and not Path("/proc", path.stem).exists():
                path.unlink()


def _path(run_directory: Path, pid: int) -> Path:
    return run_directory / f"{pid}{SUFFIX}"
