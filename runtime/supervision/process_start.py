"""What each forked process of ours does before anything else."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STDERR = 2
ORPHANED = 70
REPARENTING_SECONDS = 1.0
CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


def become_subreaper() -> None:
    """Make orphans below this process its children, so that it can find and end them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def prepare_process(parent_pid: int) -> None:
    """Bind this freshly forked process to its parent and drop what it inherited.

    Called once, in the main thread, before the process opens anything of its own. Ends the process when
    its parent is already gone.

    Args:
        parent_pid: the parent's pid, noted before the fork.
    """
    _die_with(parent_pid)
    _close_inherited_descriptors()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_comes_by_message)
    # It was on in the parent, and would take it that its handlers are still in place.
    faulthandler.disable()
    for number in CRASH_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    # Until it has a file of its own.
    faulthandler.enable(file=STDERR)


def _die_with(parent_pid: int) -> None:
    # The admin is forked twice, and the signal would be bound to the short-lived process between.
    deadline = time.monotonic() + REPARENTING_SECONDS
    while os.getppid() != parent_pid:
        if time.monotonic() > deadline:
            os._exit(ORPHANED)
        time.sleep(0.001)
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # A parent that ended before the line above sends nothing any more.
    if os.getppid() != parent_pid:
        os._exit(ORPHANED)


def _close_inherited_descriptors() -> None:
    # Nothing opened by a parent is of use here, and an inherited socket would stay bound after its owner.
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor > STDERR:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _stop_comes_by_message(number: int, frame: FrameType | None) -> None:
    """Do nothing: a service manager and Ctrl-C signal every process, but stopping goes by Stop.

    A handler rather than SIG_IGN, which the subprocesses of a user's handler would inherit.
    """


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")
