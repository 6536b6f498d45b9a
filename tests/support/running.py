"""`understudy run` as a process of its own, with what a fault test wants to know of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.lines import complete_lines, read_lines
from support.tree import wait_until

# Long enough for a busy machine: what passes needs none of it.
TIMEOUT_SECONDS = 60.0


def until(condition: Callable[[], object], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Return when the condition holds; fail if it doesn't within the timeout."""
    wait_until(condition, timeout_seconds)


class Running:
    """One run of an app, from start to exit."""

    def __init__(self, url: str, directory: Path, target: str, **environment: str) -> None:
        self.record = directory / "record"
        self._log = directory / "log"
        self._arguments = [
            sys.executable, "-m", "understudy.runtime", "run", target,
            "--servers", url, "--http-port", "0", "--log-format", "json",
        ]  # fmt: skip
        self._environment = {
            **os.environ,
            "UNDERSTUDY_RUN_DIRECTORY": str(directory / "run"),
            "RECORD_FILE": str(self.record),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def pid(self) -> int:
        """The launcher's process."""
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait: bool = True, **environment: str) -> None:
        """Start it and, unless told otherwise, return when it says that it is ready.

        Args:
            wait: whether to wait for that.
            environment: what is different from now on.
        """
        self._environment |= environment
        # Not the file's size: what still ends of the run before may be in the middle of a line.
        self._log_offset = self._log.read_bytes().rfind(b"\n") + 1 if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._arguments, stderr=log, env=self._environment)
        if not wait:
            return
        until(lambda: self.events("ready") or self.process.poll() is not None)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.log()
        self._http = str(self.events("ready")[0]["http"])

    @property
    def url(self) -> str:
        """Where HTTP is served, once it is ready."""
        return self._http

    def log(self) -> str:
        """What this run has logged so far."""
        with self._log.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode()

    def entries(self) -> list[dict[str, Any]]:
        """What this run has logged so far, parsed; every line has to be JSON."""
        lines = complete_lines(self.log())
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise AssertionError(f"a line of the log is no JSON: {lines}") from error

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log entries of one event."""
        return [entry for entry in self.entries() if entry["event"] == event]

    def get(self, path: str) -> tuple[int, Any]:
        """Ask the launcher by HTTP; return status and body."""
        try:
            with urllib.request.urlopen(f"{self._http}{path}", timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def cell(self, name: str) -> dict[str, Any]:
        """A cell as /api/tree shows it."""

        def search(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for child in node.get("children", ()):
                if child["name"] == name:
                    yield child
                yield from search(child)

        return next(search(self.get("/api/tree")[1]))

    def kill_cell(self, name: str) -> None:
        """SIGKILL a cell's process, and return when its replacement is up."""
        before = self.cell(name)["supervision"]
        os.kill(before["pid"], signal.SIGKILL)

        def is_up_again() -> bool:
            now = self.cell(name)["supervision"]
            return bool(now["state"] == "up" and now["generation"] > before["generation"])

        until(is_up_again)

    def handled(self) -> list[list[str]]:
        """The record's lines, split."""
        return [line.split() for line in read_lines(self.record)]

    def numbers(self) -> Counter[int]:
        """How often each number was handled."""
        return Counter(int(line[1]) for line in self.handled())

    def terminate(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_seconds)


@contextmanager
def running(
    url: str, directory: Path, target: str = "support.recorder:app", *, wait: bool = True, **environment: str
) -> Iterator[Running]:
    """Run an app for the length of a test, and kill what is left of it."""
    run = Running(url, directory, target, **environment)
    try:
        run.start(wait=wait)
        yield run
    finally:
        if run.process is not None and run.process.poll() is None:
            run.process.kill()
            run.process.wait()
