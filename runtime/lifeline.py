"""A subprocess whose life is bound to ours, by the kernel's parent-death signal."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec nothing may take the import lock or the allocator's.
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_us() -> Callable[[], None]:
    """Return a `preexec_fn` by which a subprocess gets SIGKILL when the thread that starts it ends.

    What the subprocess starts in turn isn't bound. A program with more rights than ours escapes.
    """
    parent = os.getpid()

    def bind() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl took effect
            os._exit(1)

    return bind
