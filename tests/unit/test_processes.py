"""What the kernel tells of processes, on those that are hard to read, and of their ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from understudy.runtime.supervision.processes import descendants, describe_exit, read_process


@pytest.mark.parametrize("name", [b"half-\xc3", b"a) S 1 (b c", b"\xff\xfe"])
def test_a_process_of_any_name_can_be_read(tmp_path: Path, name: bytes) -> None:
    """Whoever runs on the machine names it: the kernel cuts a name off within a character, for example."""
    program = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    try:
        read = read_process(process.pid)
        assert read is not None
        assert (read.pid, read.parent_pid) == (process.pid, os.getpid())
        assert process.pid in {below.pid for below in descendants(os.getpid())}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-35, "killed by signal 35"),
        (None, "ended, nobody saw how"),
    ],
)
def test_an_end_is_told_in_words(code: int | None, text: str) -> None:
    """The signal by its name."""
    assert describe_exit(code) == text
