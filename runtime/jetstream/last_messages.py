"""The last message of a subject, read by direct get (ADR-31), many at a time over one inbox."""

from __future__ import annotations

import asyncio

from nats.aio.client import Client

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.publish_lanes import NO_RESPONDERS, FastLane, Message, PublicLane

TIMEOUT_SECONDS = 2.0
SWEEP_SECONDS = 0.25
_NOT_FOUND = "404"


class _Asked(Message, eq=False, kw_only=True):
    found: asyncio.Future[bytes]
    since: float


class LastMessages:
    """Reads the bodies of the last messages of a stream's subjects, over somebody else's connection.

    A get costs no task and no subscription of its own, and those of one turn of the event loop are written
    together. One whose answer is lost with the connection, or doesn't come, has failed: who needs it asks
    again.

    Args:
        client: a connection.
        stream: its `allow_direct` is on.
    """

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self._stream = stream
        self._lane: FastLane | PublicLane = (
            FastLane(client, self._answered)
            if isinstance(client, FastClient)
            else PublicLane(client, self._answered, self._unwritten)
        )
        self._loop = asyncio.get_running_loop()
        # In the order in which they were asked.
        self._asked: dict[bytes, _Asked] = {}
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reconnects = client.stats["reconnects"]

    async def open(self) -> None:
        """Subscribe to the inbox for the answers; before the first `get`."""
        await self._lane.open()

    def get(self, subject: str) -> asyncio.Future[bytes]:
        """Ask for the last message of a subject.

        Args:
            subject: a literal one.

        Returns:
            Its body, empty if there is no message; or BrokerError, if the server did not answer. Nobody
            need wait for it.
        """
        self._number += 1
        request = f"$JS.API.DIRECT.GET.{self._stream}.{subject}"
        asked = _Asked(
            request,
            request.encode(),
            b"",
            b"",
            b"%d" % self._number,
            found=self._loop.create_future(),
            since=self._loop.time(),
        )
        if not self._client.is_connected:
            self._fail(asked, "the connection is away")
            return asked.found
        self._asked[asked.token] = asked
        self._lane.write(asked)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return asked.found

    def _answered(self, token: bytes, status: str, body: bytes) -> None:
        asked = self._asked.pop(token, None)
        if asked is None:
            return
        if status in ("", _NOT_FOUND):
            if not asked.found.done():
                asked.found.set_result(body)
        elif status == NO_RESPONDERS:
            self._fail(asked, f"there is no stream {self._stream}, or it has no leader")
        else:
            self._fail(asked, f"the server answered with status {status}")

    def _unwritten(self, token: bytes, problem: str) -> None:
        asked = self._asked.pop(token, None)
        if asked is not None:
            self._fail(asked, problem or "the connection is away")

    def _fail(self, asked: _Asked, problem: str) -> None:
        if not asked.found.done():
            asked.found.set_exception(BrokerError(f"{asked.subject} has no answer: {problem}"))
            # Looked at, so that asyncio doesn't complain of those that nobody waits for.
            asked.found.exception()

    def _sweep(self) -> None:
        """Give up what is unanswered for too long, or was asked on a connection that is lost."""
        self._timer = None
        reconnects = self._client.stats["reconnects"]
        lost = not self._client.is_connected or reconnects != self._reconnects
        self._reconnects = reconnects
        if lost:
            self._lane.forget()
        now = self._loop.time()
        while self._asked:
            token, asked = next(iter(self._asked.items()))
            if not lost and now - asked.since < TIMEOUT_SECONDS:
                self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
                return
            del self._asked[token]
            self._fail(asked, "the connection was lost" if lost else f"not within {TIMEOUT_SECONDS:g} s")
