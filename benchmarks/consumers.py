"""How each consuming process is started, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from nats.aio.client import Client

from benchmarks import streams
from benchmarks.apps import DURABLE, app
from benchmarks.errors import BenchmarkFailed
from benchmarks.harness import Stage
from benchmarks.processes import START_TIMEOUT_SECONDS, Program
from benchmarks.readings import STREAM
from understudy.runtime.cell.status import CellStatus, read_status
from understudy.runtime.jetstream.topology import dead_letter_stream, ensure_topology

# Cell files belong on tmpfs, where the runtime puts them too.
TMPFS = Path("/dev/shm")


class Running(msgspec.Struct, frozen=True):
    """A consuming process that is subscribed and waits.

    Args:
        pid: the process whose CPU time is counted.
        check_alive: raises if it has ended.
        stop: ends it in good order and returns how many messages it acknowledged by its own count.
    """

    pid: int
    check_alive: Callable[[], None]
    stop: Callable[[], int]


class RunningApp:
    """`understudy run benchmarks.apps:app`: a real launcher, supervisor and cell; the cell is measured."""

    name = "understudy run"
    durable = DURABLE

    async def make_durable(self, client: Client) -> None:
        """Make streams and durable just as `understudy run` would, which then finds them."""
        await streams.delete_stream(client, dead_letter_stream(app.name))
        await ensure_topology(client, app.spec(), apply=True)

    async def count_dead(self, client: Client) -> int:
        """Return how many messages were given up."""
        return await streams.count_messages(client, dead_letter_stream(app.name))

    @contextlib.contextmanager
    def started(self, stage: Stage) -> Iterator[Running]:
        """Run the app, until the block ends at the latest."""
        base = TMPFS if TMPFS.is_dir() else stage.directory
        log = stage.directory / "understudy.log"
        with (
            # Killed, the cell may still write there for a moment.
            tempfile.TemporaryDirectory(
                prefix="understudy-bench-", dir=base, ignore_cleanup_errors=True
            ) as run_directory,
            Program(
                *("understudy.runtime", "run", "benchmarks.apps:app"),
                *("--servers", stage.url, "--http-port", "0", "--log-format", "json"),
                log=log,
                environment={"UNDERSTUDY_RUN_DIRECTORY": run_directory},
            ) as program,
        ):
            _wait_for(lambda: _is_ready(program), program, "ready")

            def status() -> CellStatus:
                (path,) = Path(run_directory).rglob("*.cell")
                status = read_status(path)
                assert status is not None
                return status

            def stop() -> int:
                # The cell counts an ack when it has written it, and the server's look may come before.
                _wait_for(lambda: status().held == 0, program, "done")
                acked = status().counters["acked"]
                program.stop()
                return acked

            yield Running(status().pid, program.check_alive, stop)


class FetchLoop:
    """The loop that people write with nats-py.

    Args:
        loop: whose event loop it runs on: `asyncio` or `uvloop`.
    """

    def __init__(self, loop: str) -> None:
        self.name = "nats-py fetch(256) loop" + ("" if loop == "asyncio" else f", {loop}")
        self.durable = f"bench-fetch-{loop}"
        self._loop = loop

    async def make_durable(self, client: Client) -> None:
        """Make the durable with nats-py's defaults."""
        await streams.make_plain_consumer(client, self.durable)

    async def count_dead(self, _client: Client) -> int:
        """Return 0: it gives nothing up."""
        return 0

    @contextlib.contextmanager
    def started(self, stage: Stage) -> Iterator[Running]:
        """Run the loop, until the block ends at the latest."""
        log = stage.directory / "fetch-loop.log"
        arguments = (stage.url, STREAM, self.durable, self._loop)
        with Program("benchmarks.peers.fetch_loop", *arguments, log=log) as program:
            program.read_line()

            def stop() -> int:
                program.stop()
                return int(program.read_line())

            yield Running(program.process.pid, program.check_alive, stop)


def _is_ready(program: Program) -> bool:
    entries = (json.loads(line) for line in program.log.splitlines() if line.endswith("}"))
    return any(entry["event"] == "ready" for entry in entries)


def _wait_for(condition: Callable[[], bool], program: Program, what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not condition():
        program.check_alive()
        if time.monotonic() > deadline:
            raise BenchmarkFailed(
                f"understudy run wasn't {what} within {START_TIMEOUT_SECONDS:g} s:\n{program.log}"
            )
        time.sleep(0.01)
