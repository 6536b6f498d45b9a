"""Which processes a test has left."""

from __future__ import annotations

from pathlib import Path

# They die at once, but on a busy machine each waits for its turn to end.
GONE_SECONDS = 30.0


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that were started with this TMPDIR."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={directory}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
