"""A service with a ledger of its own, which drops repeats by their key and can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

# What becomes of a request: it works; it is refused, or fails, and nothing is done; it hangs before it is
# done; it is done, and then hangs.
WORKS, REFUSES, FAILS, HANGS, LIES = "works", "refuses", "fails", "hangs", "lies"


class Refused(Exception):
    """The service says no, and has done nothing."""


class Service:
    """The service; usable as a context manager.

    Args:
        decide: what becomes of a request, of its key and how many came with that before.

    Attributes:
        ledger: the keys in the order in which their effects were done; none is there twice.
        requests: how often each key was asked for.
        behaved: how often it did what.
    """

    def __init__(self, decide: Callable[[str, int], str] = lambda _key, _number: WORKS) -> None:
        self.ledger: list[str] = []
        self.requests: Counter[str] = Counter()
        self.behaved: Counter[str] = Counter()
        self._done: set[str] = set()
        self._decide = decide
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Who asks may be killed, or give up, at any time.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            status = self.answer(head.split()[1].decode().removeprefix("/"))
            if status:
                writer.write(f"HTTP/1.0 {status} .\r\nContent-Length: 0\r\n\r\n".encode())
            else:
                # For ever: until the other side goes.
                await reader.read()
        writer.close()

    def answer(self, key: str) -> int:
        """Do what a request asks for; return the status, 0 for none ever."""
        with self._lock:
            how = self._decide(key, self.requests[key])
            self.requests[key] += 1
            self.behaved[how] += 1
            if how in (WORKS, LIES) and not self._effect(key):
                how = REFUSES
        return {WORKS: 200, REFUSES: 409, FAILS: 500}.get(how, 0)

    def _effect(self, key: str) -> bool:
        """Do it once; return False if it was undone before it came."""
        name, _, direction = key.rpartition(".")
        if direction == "do" and f"{name}.undo" in self._done:
            return False
        if key not in self._done:
            self._done.add(key)
            self.ledger.append(key)
        return True

    def of(self, saga: str) -> list[str]:
        """The steps and directions in a saga's part of the ledger, in order."""
        with self._lock:
            keys = [key.split(".") for key in self.ledger]
        return [f"{step} {direction}" for _, _, one, step, direction in keys if one == saga]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        hanging = asyncio.all_tasks() - {asyncio.current_task()}
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def call(port: int, key: str) -> None:
    """Have the service do something.

    Raises:
        Refused: it says no.
        ConnectionError: it has failed.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"POST /{key} HTTP/1.0\r\n\r\n".encode())
        status = (await reader.readline()).split()
    finally:
        writer.close()
    if status[1:2] == [b"409"]:
        raise Refused(key)
    if status[1:2] != [b"200"]:
        raise ConnectionError(f"{key}: {status!r}")
