"""`understudy run`: a real launcher, supervisor and cells; the cells are measured."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nats.aio.client import Client

from benchmarks import apps, streams
from benchmarks.consumers import NOTHING, Consumer, Running
from benchmarks.errors import BenchmarkFailed
from benchmarks.feeds import Feed
from benchmarks.harness import Stage
from benchmarks.processes import START_TIMEOUT_SECONDS, Program, directory_in_memory
from understudy.runtime.app import App
from understudy.runtime.cell.status import CellStatus, read_status
from understudy.runtime.jetstream.topology import (
    dead_letter_stream,
    ensure_topology,
    marks_bucket,
    state_bucket,
)

QUIET_SECONDS = 0.05
PUBLIC_LANE = {"UNDERSTUDY_NATS__FAST_LANE": "false"}


class RunningApp(Consumer):
    """An app of `benchmarks.apps`.

    Args:
        app: its name there.
        name: what the table calls it.
        environment: what configures it otherwise.

    Attributes:
        durables: one per actor.
    """

    def __init__(
        self, app: str, name: str = "understudy run", environment: Mapping[str, str] = NOTHING
    ) -> None:
        self.name = name
        self._target = f"benchmarks.apps:{app}"
        self._app: App = getattr(apps, app)
        self._environment = environment
        self.durables = [consumer.durable for consumer in self._app.spec().consumers]
        self.durable = self.durables[0]

    async def make_durable(self, client: Client, _feed: Feed) -> None:
        """Make streams and durable just as `understudy run` would, which then finds them."""
        await streams.delete_stream(client, dead_letter_stream(self._app.name))
        # What an earlier round has handled counts for nothing.
        for bucket in (marks_bucket(self._app.name), state_bucket(self._app.name)):
            await streams.delete_stream(client, f"KV_{bucket}")
        await ensure_topology(client, self._app.spec(), apply=True)

    async def count_dead(self, client: Client) -> int:
        """Return how many messages were given up."""
        return await streams.count_messages(client, dead_letter_stream(self._app.name))

    @contextlib.contextmanager
    def started(
        self, stage: Stage, _feed: Feed, environment: Mapping[str, str] = NOTHING
    ) -> Iterator[Running]:
        """Run the app, until the block ends at the latest."""
        with self.run(stage, environment) as run:

            def stop() -> int:
                cells = run.wait_until_quiet()
                run.program.stop()
                return sum(cell.counters["acked"] for cell in cells)

            yield Running(tuple(cell.pid for cell in run.cells()), run.program.check_alive, stop)

    def run(
        self, stage: Stage, environment: Mapping[str, str] = NOTHING
    ) -> contextlib.AbstractContextManager[Run]:
        """Run the app for who wants to see more of it than `started` shows.

        Args:
            stage: where.
            environment: added to the app's own.
        """
        return run_app(stage, self._target, {**self._environment, **environment})


class Run:
    """One `understudy run` that is ready.

    Args:
        program: the launcher.
        directory: where its cell files are.
    """

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self._directory = directory

    def cells(self) -> list[CellStatus]:
        """Return what each cell says of itself, in the order of actors and replicas."""
        # Not rglob, which fails if a folder goes meanwhile: a run's has another name until it is locked.
        paths = (Path(folder, name) for folder, _, names in os.walk(self._directory) for name in names)
        found = (read_status(path) for path in sorted(paths) if path.suffix == ".cell")
        return [status for status in found if status is not None]

    @property
    def url(self) -> str:
        """Where the launcher answers over HTTP."""
        entries = (json.loads(line) for line in self.program.log.splitlines() if line.endswith("}"))
        return next(str(entry["http"]) for entry in entries if entry["event"] == "ready")

    def wait_until_quiet(self) -> list[CellStatus]:
        """Block until no cell holds or counts anything more, and return what each says then."""
        # A cell counts acks when they are written, and the server's look may come before.
        seen: list[tuple[int, dict[str, int]]] = []

        def is_quiet() -> bool:
            time.sleep(QUIET_SECONDS)
            now = [(cell.held, cell.counters) for cell in self.cells()]
            before, seen[:] = list(seen), now
            return now == before and all(held == 0 for held, _ in now)

        self.wait_for(is_quiet, "done")
        return self.cells()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Block until a condition holds.

        Args:
            condition: looked at every few milliseconds.
            what: says for whom it didn't hold in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not condition():
            self.program.check_alive()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(
                    f"understudy run wasn't {what} within {START_TIMEOUT_SECONDS:g} s:\n{self.program.log}"
                )
            time.sleep(0.005)


@contextlib.contextmanager
def run_app(stage: Stage, target: str, environment: Mapping[str, str]) -> Iterator[Run]:
    """Start `understudy run` and wait until every cell is up.

    Args:
        stage: where.
        target: the app.
        environment: what configures it, beside the server's address.
    """
    with (
        directory_in_memory(stage.directory) as directory,
        Program(
            *Program.module("understudy.runtime", "run", target),
            *("--servers", stage.url, "--http-port", "0", "--log-format", "json"),
            log=stage.directory / "understudy.log",
            environment={"UNDERSTUDY_RUN_DIRECTORY": str(directory), **environment},
        ) as program,
    ):
        run = Run(program, directory)
        run.wait_for(lambda: _is_ready(run), "ready")
        yield run


def _is_ready(run: Run) -> bool:
    program = run.program
    if not program.log:
        # Logs of errors only: a cell is asked.
        return any(cell.state == "up" for cell in run.cells())
    entries = (json.loads(line) for line in program.log.splitlines() if line.endswith("}"))
    return any(entry["event"] == "ready" for entry in entries)
