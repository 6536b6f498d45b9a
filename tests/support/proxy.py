"""A TCP proxy before the broker that a test may cut, and that changes what goes by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on until it is told otherwise.

    Attributes:
        rewrite: what is replaced in what the client sends, and by what of the same length.
        rewrites: how many times at most.
        refusing: whether clients are turned away.
        connections: how many clients have connected so far.
    """

    def __init__(self, port: int) -> None:
        self.rewrite: tuple[bytes, bytes] | None = None
        self.rewrites = 1 << 30
        self.refusing = False
        self.connections = 0
        self._port = port
        # The client's and the broker's side of each connection, and the broker's of those that are half open.
        self._writers: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._half_open: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    def cut(self, *, half: bool = False) -> None:
        """Reset every connection, with whatever is on its way.

        Args:
            half: the broker isn't told, and goes on sending to nobody.
        """
        for client, broker in self._writers:
            if half:
                self._half_open.append(broker)
            else:
                broker.transport.abort()
            client.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        self._server.close()
        self.cut()
        for broker in self._half_open:
            broker.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append((writer, broker_writer))
        for source, target, outward in ((reader, broker_writer, True), (broker_reader, writer, False)):
            task = asyncio.create_task(self._pass_on(source, target, outward))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, outward: bool
    ) -> None:
        try:
            while data := await source.read(65536):
                if outward and self.rewrite is not None:
                    found = min(data.count(self.rewrite[0]), self.rewrites)
                    data = data.replace(*self.rewrite, found)
                    self.rewrites -= found
                self._see(data, outward)
                target.write(data)
                await target.drain()
        except OSError:
            return
        finally:
            if target not in self._half_open:
                target.transport.abort()

    def _see(self, data: bytes, outward: bool) -> None:
        """Hear what goes by; for those who derive from this."""


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """Stand before the broker for the length of a test."""
    made = Proxy(int(url.rpartition(":")[2]))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
