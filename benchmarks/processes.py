"""The processes that are measured: started with a clean environment, their CPU time read from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Self

from benchmarks.errors import BenchmarkFailed
from understudy.runtime.cli.demo_processes import stop_process
from understudy.runtime.lifeline import die_with_us

ROOT = Path(__file__).parents[1]
# Cell files belong on tmpfs, where the runtime puts them too.
TMPFS = Path("/dev/shm")
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0


class Program:
    """A process of its own that dies with ours.

    Usable as a context manager, which kills it if it still runs at the end. Only the main thread may start
    one.

    Args:
        command: its command line.
        log: where it says what went wrong.
        stdout: where its results go; a pipe unless given.
        environment: added to our own, from which all that configures understudy, NATS or traces is
            taken away.
    """

    def __init__(
        self,
        *command: str,
        log: Path,
        stdout: int | IO[str] = subprocess.PIPE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._log = log
        with log.open("w", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
                env=_clean_environment() | {"XDG_CONFIG_HOME": str(log.parent)} | dict(environment or {}),
                # Ctrl-C reaches only us, and we stop it in order.
                start_new_session=True,
                preexec_fn=die_with_us(),  # noqa: PLW1509 - no other thread exists yet
            )

    @staticmethod
    def module(name: str, *arguments: str) -> list[str]:
        """Return the command that runs a Python module.

        Args:
            name: as `python -m` takes it.
            arguments: its command line.
        """
        return [sys.executable, "-m", name, *arguments]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def log(self) -> str:
        """What it has said on stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def check_alive(self) -> None:
        """Raise if it has ended though nobody stopped it."""
        if self.process.poll() is not None:
            raise self._failed(f"ended by itself with status {self.process.returncode}")

    def read_line(self) -> str:
        """Return the next line that it prints; blocks."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed(f"ended without a result, with status {self.process.wait()}")
        return line.strip()

    def stop(self) -> None:
        """Send SIGTERM and wait for the end, which has to be a clean one."""
        status = stop_process(self.process, STOP_TIMEOUT_SECONDS)
        if status != 0:
            raise self._failed(f"was stopped and ended with status {status}")

    def _failed(self, what: str) -> BenchmarkFailed:
        end = "\n".join(self.log.splitlines()[-10:])
        return BenchmarkFailed(f"{' '.join(self._command)} {what}; its log ends with:\n{end}")


@contextlib.contextmanager
def directory_in_memory(otherwise: Path) -> Iterator[Path]:
    """Make a directory on tmpfs, for the time of the block.

    Args:
        otherwise: a directory where it is made if there is no tmpfs.
    """
    base = TMPFS if TMPFS.is_dir() else otherwise
    # Killed, a cell may still write there for a moment.
    with tempfile.TemporaryDirectory(
        prefix="understudy-bench-", dir=base, ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, user and system, all its threads, to the nanosecond."""
    # clock_getcpuclockid(3): the id of a process's clock is made from its pid; /proc has only ticks of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size: its own memory, and its part of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkFailed(f"the kernel doesn't say how much memory process {pid} has")


def _clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name == "UNDERSTUDY_NATS_SERVER" or not name.startswith(("UNDERSTUDY_", "NATS_", "OTEL_"))
    }
