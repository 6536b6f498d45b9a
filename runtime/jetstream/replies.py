"""Replies on their way: written, and again where nobody was there to take them, or the connection broke.

No stream has a reply. While the asker's connection is away, the server has no subscriber for it, and says so
to whoever names a subject for that; what a broken connection takes with it nobody says anything of.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.asked import Reply, repeated
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.publish_lanes import NO_RESPONDERS
from understudy.runtime.telemetry.logger import get_logger

# So long after it was written the server has said it if nobody was there.
REMEMBER_SECONDS = 2.0
# So long it is tried, if the asker doesn't say how long it waits, or for longer.
TRY_SECONDS = 30.0
FIRST_REPEAT_SECONDS = 0.2
MAX_REPEAT_SECONDS = 1.0
SWEEP_SECONDS = 0.2
MAX_REMEMBERED = 1024
MAX_BYTES = 8 * 1024 * 1024
_log = get_logger("understudy.ask")


class _OnItsWay(msgspec.Struct, eq=False):
    reply: Reply
    # All by the clock of `time.monotonic`.
    until: float
    written_at: float
    # Once the server has said that nobody was there; 0 if it hasn't.
    repeat_at: float = 0.0
    wait_seconds: float = FIRST_REPEAT_SECONDS


class Replies:
    """Writes replies over a connection that is somebody else's.

    Args:
        client: a connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = ""
        self._number = 0
        self._remembered: dict[int, _OnItsWay] = {}
        self._bytes = 0
        self._reconnects: int = client.stats["reconnects"]
        self._timer: asyncio.TimerHandle | None = None
        self._repeating: asyncio.Task[None] | None = None

    async def send(self, reply: Reply, until: float | None) -> None:
        """Write a reply; one that can't be written is the asker's timeout.

        Args:
            reply: as `asked` encodes it.
            until: when the asker waits no longer, in seconds since 1970; None if it doesn't say.
        """
        now = time.monotonic()
        left = TRY_SECONDS if until is None else min(until - time.time(), TRY_SECONDS)
        way = _OnItsWay(reply, now + left, now)
        self._number += 1
        number = self._number
        self._remembered[number] = way
        self._bytes += len(reply[1])
        while len(self._remembered) > 1 and (
            len(self._remembered) > MAX_REMEMBERED or self._bytes > MAX_BYTES
        ):
            self._forget(next(iter(self._remembered)))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        # Else the sweep writes it, when there is a connection.
        if self._client.is_connected and self._client.stats["reconnects"] == self._reconnects:
            await self._write(number, way)

    async def _write(self, number: int, way: _OnItsWay) -> None:
        subject, body, block = way.reply
        client, size = self._client, len(block) + len(body)
        try:
            if size > client.max_payload:
                # The server may be another one now; it would end the connection.
                raise nats.errors.MaxPayloadError
            if not self._inbox:
                self._inbox = client.new_inbox()
                await client.subscribe(f"{self._inbox}.*", cb=self._on_status)
            back = f"{self._inbox}.{number}"
            if isinstance(client, FastClient):
                await client.send(
                    b"HPUB %b %b %d %d\r\n%b%b\r\n"
                    % (subject.encode(), back.encode(), len(block), size, block, body)
                )
            else:
                await client.publish(subject, body, reply=back, headers=headers.parse(block))
        except nats.errors.Error as error:
            _log.warning("reply not written", error=str(error) or type(error).__name__)
            self._forget(number)

    async def _on_status(self, message: Msg) -> None:
        if (message.headers or {}).get("Status") != NO_RESPONDERS:
            return
        way = self._remembered.get(int(message.subject.rpartition(".")[2]))
        if way is not None:
            _log.debug("nobody took the reply", subject=way.reply[0])
            way.repeat_at = time.monotonic() + way.wait_seconds
            way.wait_seconds = min(way.wait_seconds * 2, MAX_REPEAT_SECONDS)

    def _forget(self, number: int) -> None:
        way = self._remembered.pop(number, None)
        if way is not None:
            self._bytes -= len(way.reply[1])

    def _sweep(self) -> None:
        """Forget what was taken or is late, and have written again what nobody took, or a connection lost."""
        self._timer = None
        client = self._client
        if client.is_closed:
            return
        now = time.monotonic()
        is_connected, reconnects = client.is_connected, client.stats["reconnects"]
        is_new = is_connected and reconnects != self._reconnects
        again = []
        for number, way in list(self._remembered.items()):
            is_taken = is_connected and not way.repeat_at and now - way.written_at >= REMEMBER_SECONDS
            if now >= way.until or (is_taken and not is_new):
                self._forget(number)
            elif is_new or (is_connected and way.repeat_at and now >= way.repeat_at):
                if not way.repeat_at:
                    # Perhaps it was taken.
                    way.reply = repeated(way.reply, client.max_payload)
                way.written_at, way.repeat_at = now, 0.0
                again.append((number, way))
        if is_connected:
            self._reconnects = reconnects
        if again:
            self._repeating = asyncio.get_running_loop().create_task(self._write_again(again))
        if self._remembered:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    async def _write_again(self, ways: list[tuple[int, _OnItsWay]]) -> None:
        for number, way in ways:
            await self._write(number, way)
