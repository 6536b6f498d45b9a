"""The `understudy` program, apart from its commands, which are imported when garbage is looked for rarely."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.runtime.cli.garbage import collect_rarely


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, as all that this process does, and return its exit status; see `entry.main`.

    Args:
        arguments: what follows the command's name; `sys.argv` if None.
    """
    collect_rarely()
    from understudy.runtime.cli import entry

    return entry.main(arguments)
