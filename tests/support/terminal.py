"""A directory with an app in it, where a user types commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import psutil

from support.commands import run_command

APP = """
from understudy import Actor, App, Event, Stream, handles

class Departed(Event, subject="flights.departed"):
    carrier: str

class Monitor(Actor):
    @handles
    async def departed(self, event: Departed) -> None:
        print("handled", event.carrier, flush=True)

app = App("cli-run", streams=[Stream("FLIGHTS", subjects=["flights.>"])], children=[Monitor])
"""


class Terminal:
    """A working directory with the app above in it; what was started there is killed at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "flights.py").write_text(APP)
        mine = ("UNDERSTUDY_", "NATS_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        self.environment |= {
            "XDG_CONFIG_HOME": str(directory),
            "UNDERSTUDY_RUN_DIRECTORY": str(directory / "run"),
        }
        self.running: list[subprocess.Popen[str]] = []

    def type(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, environment=self.environment, directory=self.directory)

    def start(
        self, *arguments: str, own_session: bool = False, wrapped: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*wrapped, sys.executable, "-m", "understudy.runtime", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment,
            start_new_session=own_session,
        )
        self.running.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
        # What should have died with them, and would keep their output open.
        for left in psutil.wait_procs(self.processes(), timeout=5)[1]:
            left.kill()
        for process in self.running:
            process.communicate()

    def processes(self) -> list[psutil.Process]:
        """Every process that works here, whoever its parent is."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.directory):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def entries_until(process: subprocess.Popen[str], event: str) -> list[dict[str, Any]]:
    """Read the log up to the event, that included; the test's timeout bounds it."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        # Shown if the test fails, as by its timeout.
        print(line, end="")
        seen.append(json.loads(line))
        if seen[-1]["event"] == event:
            return seen
    raise AssertionError(f"{event!r} was never logged: {seen}")


def until(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Read the log up to the event, and return that."""
    return entries_until(process, event)[-1]
