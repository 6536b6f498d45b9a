"""Several cells of one sole owner in a test's event loop, as if each ran on a node of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.cells import Bench, CellRun, until
from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.supervision import Child
from understudy.runtime.app import App
from understudy.runtime.jetstream import api, pinning
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.stream import Stream

STREAM, DURABLE = "NOTES", "notes-recorder"
# With these the pin of who is silent is taken after so long. A third of it goes by between two signs of life,
# and the rest is for a machine that stands still.
PIN_SECONDS = 5.0
SHORT = {"ack_wait_seconds": PIN_SECONDS / pinning.TIMEOUT_ACK_WAITS, "hang_timeout_seconds": 1.5}


class Noted(Event, subject="notes.noted"):
    """Something to write down."""

    number: int
    customer: str = "c"


class Run:
    """One run of the handler."""

    def __init__(self, node: str, event: Noted, ctx: Context) -> None:
        self.node = node
        self.number = event.number
        self.customer = event.customer
        self.sequence = ctx.delivery.sequence
        self.headers = dict(ctx.delivery.headers)
        self.breaker = ctx.breaker


class Owners:
    """Nodes that share one stream, and what their actors have handled.

    Attributes:
        runs: all handler runs, in the order of their beginning.
        counts: how often each number was handled.
        running, overlaps: how many handlers of a customer run, and how often one began while another ran.
        handler: what a handler does, given its run.
    """

    def __init__(self, bench: Bench, *, fast_lane: bool = True, **options: Any) -> None:
        self.bench = bench
        self.fast_lane = fast_lane
        self.options = {"key": "customer"} | options
        self.runs: list[Run] = []
        self.counts: Counter[int] = Counter()
        self.running: Counter[str] = Counter()
        self.overlaps = 0
        self.handler: Callable[[Run], Awaitable[None]] | None = None
        self.nodes: dict[str, CellRun] = {}

    def app(self, node: str) -> App:
        """Return the app as a node runs it."""
        owners = self

        class Recorder(Actor):
            @handles
            async def noted(self, event: Noted, ctx: Context) -> None:
                run = Run(node, event, ctx)
                owners.overlaps += owners.running[run.customer] > 0
                owners.running[run.customer] += 1
                owners.runs.append(run)
                owners.counts[run.number] += 1
                try:
                    if owners.handler is not None:
                        await owners.handler(run)
                finally:
                    owners.running[run.customer] -= 1

        return App(
            "notes",
            streams=[Stream(STREAM, subjects=["notes.>"])],
            children=[Child(Recorder, **self.options)],
        )

    async def start(self, node: str, url: str = "", **options: Any) -> CellRun:
        """Start a node's cell, or its next generation."""
        if node not in self.nodes:
            app = self.app(node)
            await ensure_topology(self.bench.client, app.spec(), apply=True)
            directory = self.bench.directory / node
            directory.mkdir()
            self.nodes[node] = CellRun(app, url or self.bench.url, directory, fast_lane=self.fast_lane)
            self.bench.cells.append(self.nodes[node])
        await self.nodes[node].start(**options)
        return self.nodes[node]

    async def note(self, numbers: range, customers: int = 1, prefix: str = "c") -> None:
        """Publish numbered events, in order for each customer."""
        for first in range(numbers.start, numbers.stop, 5000):
            await asyncio.gather(
                *(
                    self.bench.publisher.publish(Noted(number=n, customer=f"{prefix}{n % customers}"))
                    for n in range(first, min(first + 5000, numbers.stop))
                )
            )

    async def all_handled(self, count: int, timeout_seconds: float = 25.0) -> None:
        """Wait until so many different numbers were handled; by default not as long as a pin lasts."""
        await until(lambda: len(self.counts) == count, timeout_seconds)

    def forget(self) -> None:
        """Forget what was handled so far."""
        self.runs.clear()
        self.counts.clear()

    def repeats(self) -> int:
        """Return how many runs were not a number's first."""
        return len(self.runs) - len(self.counts)

    def by(self, node: str) -> list[int]:
        """Return what a node has handled, in order."""
        return [run.number for run in self.runs if run.node == node]

    def in_order(self, *nodes: str) -> bool:
        """Return whether each customer's events were first handled in stream order, by some nodes or all."""
        last: dict[str, int] = {}
        seen: set[int] = set()
        for run in self.runs:
            if run.sequence in seen or (nodes and run.node not in nodes):
                continue
            seen.add(run.sequence)
            if run.sequence < last.get(run.customer, 0):
                return False
            last[run.customer] = run.sequence
        return True

    def state(self, node: str) -> str:
        """Return what a node's cell says that it does."""
        return self.nodes[node].status.state

    async def info(self) -> dict[str, Any]:
        """Return the server's description of the consumer."""
        info = await api.consumer_info(self.bench.client, STREAM, DURABLE)
        assert info is not None
        return info

    async def kill_in_handlers(self, count: int, running: int, monkeypatch: pytest.MonkeyPatch) -> CellRun:
        """Have node a die with so many events of as many customers, so many of which it is handling."""
        never = asyncio.Event()

        async def get_stuck(_: Run) -> None:
            await never.wait()

        self.handler = get_stuck
        node = await self.start("a")
        await self.note(range(count), count)
        await until(lambda: node.status.held == count and len(self.runs) == running)
        await self.kill("a", monkeypatch)
        self.handler = None
        self.forget()
        return node

    async def kill(self, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have a node's cell die; what ends a task writes nothing down, as a kill wouldn't."""
        cell = self.nodes[node].cell
        assert cell is not None
        monkeypatch.setattr(cell._ledger, "held", lambda _: None)
        await self.nodes[node].die()

    async def settled(self) -> None:
        """Wait until everything is acked that was published so far."""
        await self.bench.settled(self.app(""))

    async def pin(self) -> str:
        """Return the pin id of the consumer's owner."""
        return pinning.pinned_id(await self.info())

    async def stood_by(self, node: str) -> None:
        """Wait until a node stands by."""
        await until(lambda: self.state(node) == "standby")

    async def connected(self, *nodes: str, yes: bool = True) -> None:
        """Wait until some nodes and the test itself are connected, or none of them."""

        def are() -> bool:
            states = [self.nodes[node].status.connected for node in nodes]
            return all(state is yes for state in (self.bench.client.is_connected, *states))

        await until(are)

    async def unpin(self) -> None:
        """Take the pin from whoever has it."""
        await api.request(self.bench.client, f"CONSUMER.UNPIN.{STREAM}.{DURABLE}", {"group": pinning.GROUP})
