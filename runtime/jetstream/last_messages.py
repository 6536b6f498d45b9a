"""The last messages of subjects, read by direct gets of many at a time (ADR-31, `multi_last`)."""

from __future__ import annotations

import asyncio
import json

from nats.aio.client import Client

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.publish_lanes import NO_RESPONDERS, FastLane, Message, PublicLane

# The server answers no more than 1,024 at once.
MAX_SUBJECTS = 256
TIMEOUT_SECONDS = 2.0
SWEEP_SECONDS = 0.25
_END = "204"
_NONE_FOUND = "404"


class _Request(Message, eq=False, kw_only=True):
    # By subject; what is answered is taken out.
    asked: dict[str, asyncio.Future[bytes]]
    since: float


class LastMessages:
    """Reads the bodies of the last messages of a stream's subjects, over somebody else's connection.

    What is asked for in one turn of the event loop goes in one request, so that what is answered together can
    go on together. If the answer is lost with the connection, or doesn't come, that has failed: who needs it
    asks again.

    Args:
        client: a connection.
        stream: its `allow_direct` is on.
    """

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self._stream = stream
        self._request = f"$JS.API.DIRECT.GET.{stream}"
        self._lane: FastLane | PublicLane = (
            FastLane(client, self._answered)
            if isinstance(client, FastClient)
            else PublicLane(client, self._answered, self._unwritten)
        )
        self._loop = asyncio.get_running_loop()
        self._next: dict[str, asyncio.Future[bytes]] = {}
        # In the order in which they were made.
        self._requests: dict[bytes, _Request] = {}
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
        found = self._next.get(subject)
        if found is None:
            if not self._next:
                self._loop.call_soon(self._ask)
            found = self._next[subject] = self._loop.create_future()
            if len(self._next) == MAX_SUBJECTS:
                self._ask()
        return found

    def _ask(self) -> None:
        asked, self._next = self._next, {}
        if not asked:
            return
        self._number += 1
        request = _Request(
            self._request,
            self._request.encode(),
            json.dumps({"multi_last": list(asked)}).encode(),
            b"",
            b"%d" % self._number,
            asked=asked,
            since=self._loop.time(),
        )
        if not self._client.is_connected:
            self._fail(request, "the connection is away")
            return
        self._requests[request.token] = request
        self._lane.write(request)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _answered(self, token: bytes, block: bytes, body: bytes) -> None:
        request = self._requests.get(token)
        if request is None:
            return
        status, description = headers.status(block)
        if not status:
            found = request.asked.pop(headers.find(block, b"Nats-Subject") or "", None)
            if found is not None:
                found.set_result(body)
            return
        del self._requests[token]
        if status in (_END, _NONE_FOUND):
            for found in request.asked.values():
                found.set_result(b"")
        elif status == NO_RESPONDERS:
            self._fail(request, "it is gone, or has no leader")
        else:
            self._fail(request, f"{description} ({status})")

    def _unwritten(self, token: bytes, problem: str) -> None:
        request = self._requests.pop(token, None)
        if request is not None:
            self._fail(request, problem or "the connection is away")

    def _fail(self, request: _Request, problem: str) -> None:
        for found in request.asked.values():
            found.set_exception(BrokerError(f"stream {self._stream} can't be read: {problem}"))
            # Looked at, so that asyncio doesn't complain of those that nobody waits for.
            found.exception()

    def _sweep(self) -> None:
        """Give up what is unanswered for too long, or was asked on a connection that is lost."""
        self._timer = None
        reconnects = self._client.stats["reconnects"]
        lost = not self._client.is_connected or reconnects != self._reconnects
        self._reconnects = reconnects
        if lost:
            self._lane.forget()
        now = self._loop.time()
        while self._requests:
            token, request = next(iter(self._requests.items()))
            if not lost and now - request.since < TIMEOUT_SECONDS:
                self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
                return
            del self._requests[token]
            self._fail(request, "the connection was lost" if lost else f"not within {TIMEOUT_SECONDS:g} s")
