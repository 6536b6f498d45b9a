"""What a node is called, in log entries and wherever else it is named."""

from __future__ import annotations

import os
import socket


def node_name(launcher_pid: int | None = None) -> str:
    """Return what people call a node of this machine: host and pid.

    Args:
        launcher_pid: its launcher's process; this process if None.
    """
    return f"{socket.gethostname()}:{os.getpid() if launcher_pid is None else launcher_pid}"
