"""Cells run inside a test's own event loop, against a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from understudy.actors.actor import Actor
from understudy.config.connection import ConnectionSpec
from understudy.runtime.app import App
from understudy.runtime.cell.cell import Cell
from understudy.runtime.cell.start import CellStart, RunSpec
from understudy.runtime.cell.status import CellStatus, read_status
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.api import consumer_info
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.jetstream.topology import Backlog, backlog, dead_letter_stream, ensure_topology
from understudy.runtime.specs import CellSpec
from understudy.runtime.stream import Stream

TIMEOUT_SECONDS = 30.0
LANES = {"fast lane": True, "public API": False}
# Decorates a fixture: each of its tests runs with and without the fast lane, which `request.param` says.
both_lanes = pytest.fixture(params=list(LANES.values()), ids=list(LANES))
# Decorates a test that uses `orders`. The lanes differ in how they pull, settle, publish and look up: what is
# above that runs on the fast one only.
in_both_lanes = pytest.mark.parametrize("orders", list(LANES.values()), ids=list(LANES), indirect=True)


def app_of(actor: type[Actor], **options: Any) -> App:
    """Return the app shop with one actor, and the stream ORDERS."""
    return App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[actor], **options)


async def until(
    condition: Callable[[], Awaitable[bool] | bool], timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Return when the condition holds; fail if it doesn't within the timeout."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {condition}")
        await asyncio.sleep(0.01)


async def reconnected(client: Client) -> None:
    """Return when the server that runs now has answered.

    A client is connected, for all that it knows, until it has read that the connection is gone; what is
    asked for meanwhile is lost with it.
    """

    async def answers() -> bool:
        try:
            await client.jetstream(timeout=1).account_info()
        except nats.errors.Error:
            return False
        return True

    await until(answers)


class CellRun:
    """One cell of an app, started and stopped by the test."""

    def __init__(self, app: App, url: str, directory: Path, *, fast_lane: bool = True) -> None:
        self.app = app
        self.url = url
        self.directory = directory
        self.fast_lane = fast_lane
        # As a run directory is named: cells with directories of their own are on nodes of their own.
        self.run_id = directory.name
        self.generation = 0
        self.cell: Cell | None = None
        self.task: asyncio.Task[str] | None = None

    def start_message(
        self, *, reason: str = "", crashed: bool = False, shutdown_timeout_seconds: float = 10
    ) -> CellStart:
        """Return the start of the next generation of the app's first cell."""
        spec = self.app.spec().root.children[0]
        assert isinstance(spec, CellSpec)
        self.generation += 1
        return CellStart(
            run=RunSpec(
                app=self.app.name,
                target="",
                run_id=self.run_id,
                run_directory=str(self.directory),
                launcher_pid=0,
                revision=0,
                connection=ConnectionSpec(servers=(self.url,), fast_lane=self.fast_lane),
                log_level="info",
                log_format="console",
                shutdown_timeout_seconds=shutdown_timeout_seconds,
            ),
            spec=spec,
            generation=self.generation,
            reason=reason,
            crashed=crashed,
        )

    async def start(self, **options: Any) -> None:
        """Start a generation and return when it is ready."""
        start = self.start_message(**options)
        self.path = start.cell_file_path()
        self.cell = Cell(start, self.app)
        ready = asyncio.Event()
        self.task = asyncio.create_task(self.cell.run(ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self.task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_SECONDS)
        if not waiting.done():
            waiting.cancel()
            self.task.result()

    async def stop(self) -> None:
        """Drain the cell."""
        if self.cell is not None and self.task is not None:
            self.cell.stop()
            await asyncio.wait_for(self.task, TIMEOUT_SECONDS)
            self.cell = self.task = None

    async def die(self) -> None:
        """End its tasks wherever they are and its connection, as the end of its process would."""
        assert self.cell is not None
        assert self.task is not None
        doomed = [self.task, *self.cell._lanes.workers, *self.cell._background]
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        await self.vanish()

    async def vanish(self) -> None:
        """Close a failed cell's connection, as the end of its process would."""
        assert self.cell is not None
        assert self.cell._client is not None
        await self.cell._client.close()

    @property
    def status(self) -> CellStatus:
        """What the cell file's status area says."""
        status = read_status(self.path)
        assert status is not None
        return status


class Bench:
    """A broker, a client, a publisher and the cells of a test.

    Attributes:
        tasks: what is cancelled at the end.
    """

    def __init__(
        self, url: str, directory: Path, client: Client, publisher: Publisher, *, fast_lane: bool
    ) -> None:
        self.url = url
        self.directory = directory
        self.client = client
        self.publisher = publisher
        self.fast_lane = fast_lane
        self.cells: list[CellRun] = []
        self.clients = [client]
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self, url: str = "", on_state: Callable[[str], None] | None = None) -> Client:
        """Return a connection of its own, which the bench closes.

        Args:
            url: where to, if not to the broker directly.
            on_state: as of `runtime.jetstream.connection.connect`.
        """
        spec = ConnectionSpec(servers=(url or self.url,), fast_lane=self.fast_lane)
        client = await connection.connect(spec, name="test", on_state=on_state)
        self.clients.append(client)
        return client

    def cell_run(self, app: App, url: str = "") -> CellRun:
        """Return an app's first cell, which the test starts and stops itself.

        Args:
            app: its streams and consumers exist.
            url: where the cell connects, if not to the broker directly.
        """
        return CellRun(app, url or self.url, self.directory, fast_lane=self.fast_lane)

    async def cell(self, app: App, **options: Any) -> CellRun:
        """Make the app's streams and consumers, and start its first cell."""
        await ensure_topology(self.client, app.spec(), apply=True)
        run = self.cell_run(app)
        self.cells.append(run)
        await run.start(**options)
        return run

    async def backlog(self, app: App, index: int = 0) -> Backlog:
        """Return what an actor's consumer has before it."""
        consumer = app.spec().consumers[index]
        return await backlog(self.client, consumer.stream, consumer.durable)

    async def settled(self, app: App, index: int = 0) -> None:
        """Wait until an actor's consumer has everything acked that was published for it so far."""
        consumer = app.spec().consumers[index]
        js = self.client.jetstream()
        # The pending count lags behind a publish; the ack floor doesn't.
        last = max(
            [(await js.get_last_msg(consumer.stream, subject)).seq or 0 for subject in consumer.filters]
        )

        async def is_settled() -> bool:
            info = await consumer_info(self.client, consumer.stream, consumer.durable)
            assert info is not None
            return bool(info["ack_floor"]["stream_seq"] >= last)

        await until(is_settled)

    async def dead_letters(self, app: App, most: int = 1000) -> list[Any]:
        """Return the first dead letters as nats-py messages."""
        stream = dead_letter_stream(app.name)
        js = self.client.jetstream()
        info = await js.stream_info(stream)
        return [await js.get_msg(stream, seq=seq) for seq in range(1, min(info.state.last_seq, most) + 1)]


@asynccontextmanager
async def bench(url: str, directory: Path, *, fast_lane: bool = True) -> AsyncIterator[Bench]:
    """Connect to the broker for the length of a test, and stop what cells still run at its end.

    Args:
        url: the broker.
        directory: for the cell files.
        fast_lane: whether client and cells read past nats-py's public interface.
    """
    spec = ConnectionSpec(servers=(url,), fast_lane=fast_lane)
    client = await connection.connect(spec, name="test")
    async with Publisher.connect(spec, source="test") as publisher:
        made = Bench(url, directory, client, publisher, fast_lane=fast_lane)
        try:
            yield made
        finally:
            # Together: each waits for its last pull requests to expire.
            running = [cell for cell in made.cells if cell.task is not None and not cell.task.done()]
            await asyncio.gather(*(cell.stop() for cell in running))
            for task in made.tasks:
                task.cancel()
            for opened in made.clients:
                await connection.close(opened)
