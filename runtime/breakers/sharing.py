"""Telling the other cells what becomes of a breaker, and hearing it from them.

What happens here is written behind; only the claim of a trial is waited for. A bucket that is gone, or that
doesn't answer, is never an error: the cell then goes by what it sees itself, and looks for the bucket now and
then. When it is back, the record that has come further counts, and the other is brought up to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.breakers.breaker import Breaker
from understudy.runtime.breakers.record import Record, decode, encode

# How long a handler's trial waits for its claim.
CLAIM_SECONDS = 1.0
# How often a lost bucket is looked for.
LOOK_SECONDS = 1.0
# A forgiven failure is told with some delay, since many may be forgiven in a row.
FORGIVE_SECONDS = 0.05
CLOSE_SECONDS = 1.0
# How long a call that has failed waits until the others know of it.
TOLD_SECONDS = 0.1
_log = structlog.get_logger("understudy.breaker")


class Store(Protocol):
    """Keeps one value for each key, and says of each change."""

    async def read(self, key: str) -> tuple[bytes | None, int]:
        """Return a key's value, None if it has none, and its revision, 0 if it never had one.

        Raises:
            BrokerError: there was no answer.
        """
        ...

    async def write(self, key: str, value: bytes, revision: int) -> int | None:
        """Write a key's value if it still has this revision.

        Returns:
            The new revision; None if it has another one.

        Raises:
            BrokerError: there was no answer.
        """
        ...

    @property
    def is_connected(self) -> bool:
        """Whether there can be an answer."""
        ...


class Sharing:
    """Shares one breaker; used in the cell's event loop, but for `tell`.

    Args:
        breaker: which.
        key: its record's in the store.
        store: where all have it.
    """

    def __init__(self, breaker: Breaker, key: str, store: Store) -> None:
        self._breaker = breaker
        self._key = key
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._revision = 0
        self._is_lost = False
        # Whether the log has it, once until a write succeeds.
        self._is_said = False
        self._to_tell = asyncio.Event()
        self._look = asyncio.Event()
        self._writing = asyncio.Lock()
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._claiming: asyncio.Task[bool] | None = None

    async def start(self) -> None:
        """Read what is known, or don't; and share from now on."""
        # What is read may have to be answered.
        self._breaker.peers = self
        try:
            # Nobody knows when it was written; else it was just now, or as good as that.
            await self._read(live=False)
        except BrokerError as error:
            self._lose(error)
        self._task = asyncio.create_task(self._run(), name=f"understudy-breaker-{self._key}")

    async def close(self) -> None:
        """Tell what is to be told, if that takes no time, and share no more."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._is_lost and self._store.is_connected:
                    await self._read()
                # Also until what is just being written is, be it a claim that nobody waits for.
                while self._store.is_connected and (self._writing.locked() or not self._breaker.is_told()):
                    await self._write()
        self._breaker.peers = None
        self._task.cancel()
        if self._claiming is not None:
            self._claiming.cancel()

    def tell(self) -> None:
        """Hear that there is something to write; from any thread."""
        self._loop.call_soon_threadsafe(self._to_tell.set)

    async def told(self) -> None:
        """Return when everything is written, or can't be just now."""
        if self._is_lost or not self._store.is_connected:
            return
        waiting: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiting)
        self._to_tell.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOLD_SECONDS):
                await waiting

    def hear(self, value: bytes, revision: int) -> None:
        """Hear of a new record."""
        # What we have written ourselves comes back; a lower one is that of a new bucket.
        if revision != self._revision:
            self._revision = revision
            self._take_in(value, live=True)

    def look(self) -> None:
        """Look at the bucket now: what was written meanwhile may not have been heard of."""
        self._is_lost = True
        self._look.set()
        self._to_tell.set()

    async def claim(self, record: Record) -> bool:
        """Write the claim of a trial, if nobody else was first; True too if nobody can be asked."""
        if not self._store.is_connected:
            return True
        # It goes on when nobody waits for it any more, so that what it has written is known and given back:
        # the others would wait for its result in vain.
        self._claiming = asyncio.create_task(self._claim(record, self._breaker.record))
        return await asyncio.shield(self._claiming)

    async def _claim(self, record: Record, before: Record) -> bool:
        try:
            async with asyncio.timeout(CLAIM_SECONDS), self._writing:
                revision = None
                if not self._is_lost and self._breaker.record.age == before.age:
                    revision = await self._store.write(self._key, encode(record), self._revision)
                if revision is None:
                    # Others may have come further meanwhile; if not, only the revision was an old one.
                    await self._read()
                    if self._breaker.record.age != before.age:
                        return False
                    revision = await self._store.write(self._key, encode(record), self._revision)
                    if revision is None:
                        return False
                self._revision = max(self._revision, revision)
                self._breaker.hear(record, live=True)
        except (BrokerError, TimeoutError) as error:
            self._lose(error)
        return True

    async def _run(self) -> None:
        while True:
            if self._is_lost:
                await self._find()
            await self._to_tell.wait()
            if self._is_lost:
                continue
            self._to_tell.clear()
            await self._until_urgent()
            try:
                while not self._breaker.is_told():
                    await self._write()
            except (BrokerError, TimeoutError) as error:
                self._lose(error)
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()

    async def _until_urgent(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FORGIVE_SECONDS):
                while not self._breaker.is_urgent():
                    await self._to_tell.wait()
                    self._to_tell.clear()

    async def _write(self) -> None:
        """Write what is to be told, or read what others have written since.

        Raises:
            BrokerError, TimeoutError: there was no answer.
        """
        async with self._writing:
            record = self._breaker.take()
            if record is None:
                return
            try:
                revision = await self._store.write(self._key, encode(record), self._revision)
            except BaseException:
                # Cancelled or unanswered, or whatever else: what isn't written counts as untold.
                self._breaker.put_back()
                raise
            if revision is None:
                self._breaker.put_back()
                await self._read()
            else:
                self._revision = max(self._revision, revision)
                self._is_said = False

    async def _read(self, *, live: bool = True) -> None:
        value, revision = await self._store.read(self._key)
        # Also backwards: the bucket may be a new one.
        self._revision = revision
        self._take_in(value, live=live)

    def _take_in(self, value: bytes | None, *, live: bool) -> None:
        record = Record() if value is None else decode(value)
        if record is None:
            _log.warning("the record of a breaker can't be read", breaker=self._breaker.policy.name)
            record = Record()
        self._breaker.hear(record, live=live)

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        if not self._is_said:
            self._is_said = True
            _log.warning(
                "breaker is local for now",
                breaker=self._breaker.policy.name,
                error=str(error) or type(error).__name__,
            )
        self._to_tell.set()

    async def _find(self) -> None:
        """Wait until the bucket answers; not at once, since it may take no writes and yet answer."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look.wait()
            self._look.clear()
            if self._store.is_connected:
                with contextlib.suppress(BrokerError, TimeoutError):
                    await self._read()
                    break
        self._is_lost = False
        if not self._breaker.is_told():
            self._to_tell.set()
