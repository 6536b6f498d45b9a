"""The launcher's HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from understudy.runtime.admin.port import bind

GRACE_SECONDS = 1
# The Date header's resolution.
TICK_SECONDS = 1.0


class _QuietServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Have `serve` return."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """Wait for the end; uvicorn's own would look for it ten times a second."""
        # On each of its counted looks that is divisible by ten it renews the Date header.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the launcher, which drains on them."""
        yield


class HttpServer:
    """Serves until it is stopped, in the launcher's event loop.

    Args:
        host: name or address to listen on.
        port: port to listen on; 0 takes any free one.

    Raises:
        ConfigurationError: the port is taken, or the address isn't this machine's.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = bind(host, port)
        self._server: _QuietServer | None = None
        self._task: asyncio.Task[None] | None = None
        address, number = self._socket.getsockname()[:2]
        self.url = f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"

    def start(self, app: ASGIApp) -> None:
        """Begin to answer; needs a running event loop.

        Args:
            app: the application.
        """
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = _QuietServer(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="understudy-http")

    async def stop(self) -> None:
        """Stop answering; may be called without `start`."""
        if self._server is not None and self._task is not None:
            self._server.end()
            await self._task
        self._socket.close()
