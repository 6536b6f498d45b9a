"""The peer in C: compiled when it is wanted, where a compiler and the library are."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "peers" / "nats_c.c"
PROGRAM = "nats-c-peer"
NEEDED = "it needs a C compiler and libnats; on Debian and Ubuntu: apt install gcc libc6-dev libnats-dev"


def compile_peer(directory: Path) -> str:
    """Compile the peer, unless it is compiled already.

    Args:
        directory: where to.

    Returns:
        What has to be installed first; empty if the program is there.
    """
    program = directory / PROGRAM
    if program.exists():
        return ""
    name = os.environ.get("CC", "cc")
    compiler = shutil.which(name)
    if compiler is None:
        return f"{NEEDED} (there is no {name})"
    result = subprocess.run(
        (compiler, "-O2", "-Wall", "-o", program, SOURCE, "-lnats"),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
        return f"{NEEDED} ({first})"
    return ""


def library_version() -> str:
    """Return the version of libnats; empty if it isn't there."""
    path = ctypes.util.find_library("nats")
    if path is None:
        return ""
    get_version = ctypes.CDLL(path).nats_GetVersion
    get_version.restype = ctypes.c_char_p
    return str(get_version().decode())
