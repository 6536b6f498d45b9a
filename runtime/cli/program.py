"""The `understudy` program, apart from its commands, which are imported when garbage is looked for rarely."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from understudy.runtime.cli.garbage import collect_rarely


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, as all that this process does, and return its exit status; see `entry.main`.

    Args:
        arguments: what follows the command's name; `sys.argv` if None.
    """
    collect_rarely()
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        # Nobody is there yet who says "interrupted": it would be a traceback, and status 1.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from understudy.runtime.cli import entry

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return entry.main(arguments)
