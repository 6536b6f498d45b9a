"""A real nats-server for one test or one module: its own port, its own store."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from support.cells import until
from understudy.runtime.broker.binary import find_nats_server
from understudy.runtime.broker.embedded import EmbeddedServer


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Return whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.asynccontextmanager
async def configured_server(*arguments: str) -> AsyncIterator[str]:
    """Run a nats-server with these arguments too, without JetStream, and yield its URL."""
    port = free_port()
    server = subprocess.Popen(
        [find_nats_server(), "-a", "127.0.0.1", "-p", str(port), *arguments], stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: accepts(port))
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


class NatsServer:
    """A nats-server that a test may stop, kill and start again on the same port and store.

    Usable as a context manager. Synchronous throughout: start it from the main thread.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._port = 0
        self._server: EmbeddedServer | None = None

    @property
    def url(self) -> str:
        """The server's URL, which stays the same over restarts."""
        assert self._port, "the server was never started"
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._server is not None
        assert self._server.pid is not None
        return self._server.pid

    def start(self) -> NatsServer:
        """Start it, on the port that it had before if it had one."""
        assert self._server is None, "the server already runs"
        self._server = EmbeddedServer.start(self.directory, join=False, port=self._port)
        self._port = int(self._server.url.rpartition(":")[2])
        return self

    def stop(self) -> None:
        """Stop it in good order; does nothing if it doesn't run."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def kill(self) -> None:
        """SIGKILL it; does nothing if it doesn't run."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def restart(self) -> None:
        """Stop it in good order and start it again on the same port and store."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
