"""`understudy run` as a process of its own, and what a test asks about it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import nats

from support.lines import read_lines
from support.processes import GONE_SECONDS
from support.tree import wait_until
from understudy.runtime.supervision.processes import Process, descendants, is_alive
from understudy.runtime.supervision.self_check import listening_sockets

TESTS = Path(__file__).parent.parent
UP_SECONDS = 60.0


class Launched:
    """One launcher with all below it; killed at the end if the test didn't end it."""

    def __init__(
        self,
        directory: Path,
        target: str,
        *,
        servers: str,
        port: int = 0,
        log: str = "log",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.handled_path = directory / "handled"
        self.log_path = directory / log
        self.runs = directory / "runs"
        self._seen: dict[int, Process] = {}
        with self.log_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "understudy.runtime", "run", target),
                    *("--servers", servers, "--http-port", str(port), "--log-format", "json"),
                ],
                cwd=TESTS,
                stderr=stderr,
                env={
                    **os.environ,
                    "HANDLED": str(self.handled_path),
                    "UNDERSTUDY_RUN_DIRECTORY": str(self.runs),
                    **(environment or {}),
                },
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.note_processes()
            self.process.kill()
        self.process.wait()
        self.assert_nobody_left()

    @property
    def url(self) -> str:
        """Where HTTP is served, as the log says."""
        return str(self.log("starting")[-1]["http"])

    def wait_until_ready(self) -> Self:
        """Return when the launcher says that everything is up."""
        wait_until(lambda: self.log("ready") or self.process.poll() is not None, UP_SECONDS, "ready")
        assert self.process.poll() is None, self.log_path.read_text()
        self.note_processes()
        return self

    def note_processes(self) -> None:
        """Remember what runs now, so that it can be asked later whether it is gone."""
        self._seen |= {process.pid: process for process in descendants(self.process.pid)}

    def processes(self) -> list[Process]:
        """Return everything below the launcher that runs."""
        self.note_processes()
        return [process for process in descendants(self.process.pid) if not process.is_zombie]

    def assert_nobody_left(self) -> None:
        """Fail unless every process that was ever seen is gone soon."""
        deadline = time.monotonic() + GONE_SECONDS
        while left := [pid for pid, seen in self._seen.items() if is_alive(pid, seen.start_ticks)]:
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"still there after {GONE_SECONDS:g} s: {left}")
            time.sleep(0.01)

    def wait(self, timeout_seconds: float = UP_SECONDS) -> int:
        """Return the exit status."""
        return self.process.wait(timeout=timeout_seconds)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.note_processes()
        self.process.terminate()
        return self.wait()

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the log's entries, or those with this event."""
        entries = [json.loads(line) for line in read_lines(self.log_path) if line[:1] == "{"]
        return [entry for entry in entries if event is None or entry["event"] == event]

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Ask over HTTP."""
        return httpx.get(self.url + path, headers=headers, timeout=UP_SECONDS)

    def tree(self) -> dict[str, Any]:
        """Return the tree as the API tells it."""
        tree: dict[str, Any] = self.get("/api/tree").json()
        return tree

    def child(self, name: str) -> dict[str, Any]:
        """Return what its supervisor says of a cell or supervisor."""

        def search(node: dict[str, Any]) -> dict[str, Any] | None:
            for child in node["children"]:
                if child["name"] == name:
                    found: dict[str, Any] = child["supervision"]
                    return found
                if "children" in child and (deeper := search(child)):
                    return deeper
            return None

        found = search(self.tree())
        assert found is not None, f"no child {name}"
        return found

    def wait_for_child(self, name: str, generation: int) -> dict[str, Any]:
        """Return a child once it is up in this generation or a later one."""

        def reached() -> dict[str, Any] | None:
            child = self.child(name)
            return child if child["state"] == "up" and child["generation"] >= generation else None

        child: dict[str, Any] = wait_until(reached, what=f"{name} up in generation {generation}")
        self.note_processes()
        return child

    def control_plane(self) -> tuple[int, int, int]:
        """Return the pids of admin, logger and root."""
        (admin,) = [process.pid for process in self.processes() if process.parent_pid == self.process.pid]
        root = int(self.tree()["status"]["pid"])
        (logger,) = [
            process.pid for process in self.processes() if process.parent_pid == admin and process.pid != root
        ]
        return admin, logger, root

    def sockets(self) -> dict[int, list[tuple[str, int]]]:
        """Return what each of our processes listens on, the launcher's included."""
        pids = [self.process.pid, *(process.pid for process in self.processes())]
        return {pid: listening_sockets(pid) for pid in pids}

    def handled(self) -> list[tuple[int, int, float]]:
        """Return value, pid and time of everything that was handled so far."""
        lines = (line.split() for line in read_lines(self.handled_path))
        return [(int(value), int(pid), float(at)) for value, pid, at in lines]


def publish(url: str, *bodies: dict[str, Any], subject: str = "tests.numbers") -> None:
    """Publish events as a plain client would, each confirmed."""

    async def send() -> None:
        client = await nats.connect(url)
        for body in bodies:
            await client.jetstream().publish(subject, json.dumps(body).encode())
        await client.close()

    asyncio.run(send())
