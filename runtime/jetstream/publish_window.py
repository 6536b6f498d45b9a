"""The window of publishes that no stream has confirmed yet: bounded, repeated when unanswered, in order."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache

from nats.aio.client import Client

from understudy.actors.errors import EncodeError, PublishError
from understudy.actors.subjects import check_literal
from understudy.runtime.jetstream.api import NO_JETSTREAM
from understudy.runtime.jetstream.envelope import header_block
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.headers import status
from understudy.runtime.jetstream.puback import PubAck, Refused, read_answer
from understudy.runtime.jetstream.publish_lanes import NO_RESPONDERS, FastLane, Message, PublicLane

WINDOW = 1024
MAX_BYTES = 8 * 1024 * 1024
TOTAL_TIMEOUT_SECONDS = 10.0
# How long an answer is waited for before the first repeat; each further one waits twice as long.
ACK_TIMEOUT_SECONDS = 2.0
# A stream whose leader is being elected answers no more than one that isn't there, and a subject that no
# stream takes has to be an error soon: so it is tried for a moment.
NO_STREAM_SECONDS = 1.0
NO_STREAM_REPEAT_SECONDS = 0.25
# A stream whose ingest queue is full (its description: "too many requests") takes it when it has caught up.
TOO_MANY_REQUESTS = 10167
BUSY_REPEAT_SECONDS = 0.25
SWEEP_SECONDS = 0.1
# The server counts them in 16 bits (10097).
MAX_HEADER_BYTES = 64 * 1024 - 1


class _Unconfirmed(Message, eq=False, kw_only=True):
    confirmed: asyncio.Future[PubAck]
    # Who waits for a place in the window, if somebody does.
    entered: asyncio.Future[None] | None = None
    since: float = 0.0
    wait_seconds: float = ACK_TIMEOUT_SECONDS
    repeat_at: float = 0.0
    no_stream_since: float | None = None
    unconfirmed_because: str = ""


class PublishWindow:
    """Publishes with acknowledgement over a connection that is somebody else's.

    Messages are written in the order in which they are given. One whose answer doesn't come is written
    again under its id and its reply subject, so that any of its answers will do. After a reconnect all are,
    in order and before anything new, so that on the fast lane a lost connection costs no order; nats-py's
    public API first writes what it still has. One timer looks after all of them.

    Args:
        client: a connection.
        size: how many messages may be unconfirmed at once; a further one waits.
        max_bytes: how many bytes they may have together; a larger one goes alone.
        timeout_seconds: how long one message is tried, under one id, before it counts as not published.
        confirmed: called with each message's seconds from its place in the window to its confirmation.
    """

    def __init__(
        self,
        client: Client,
        *,
        size: int = WINDOW,
        max_bytes: int = MAX_BYTES,
        timeout_seconds: float = TOTAL_TIMEOUT_SECONDS,
        confirmed: Callable[[float], None] | None = None,
    ) -> None:
        self._client = client
        self._lane: FastLane | PublicLane = (
            FastLane(client, self._answered)
            if isinstance(client, FastClient)
            else PublicLane(client, self._answered, self._unwritten)
        )
        self._size = size
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._confirmed = confirmed
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[bytes, _Unconfirmed] = {}
        self._bytes = 0
        self._queued: deque[_Unconfirmed] = deque()
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reconnects = client.stats["reconnects"]
        self._has_jetstream = True
        self._looked_at = -math.inf

    def __len__(self) -> int:
        """Return how many messages are unconfirmed, those included that wait for a place."""
        return len(self._in_flight) + len(self._queued)

    async def open(self) -> None:
        """Subscribe to the inbox on which streams confirm."""
        await self._lane.open()

    def close(self) -> None:
        """Give up what is unconfirmed: to be called when the connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unconfirmed = [*self._in_flight.values(), *self._queued]
        self._in_flight.clear()
        self._queued.clear()
        for message in unconfirmed:
            self._fail(message, _CLOSED)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | bytes) -> PubAck:
        """Publish one message and wait until its stream has it.

        Args:
            subject: a literal subject.
            body: at most the server's `max_payload`, headers included.
            headers: should hold `Nats-Msg-Id`, so that a repeat after a lost answer isn't stored twice. As
                bytes, a block that the envelope made.

        Returns:
            Which stream has it, and where.

        Raises:
            EncodeError: nothing can be published to such a subject; a line break in one would be a command.
            PublishError: its headers can't be written, it is too large, no stream takes the subject, the
                broker has no JetStream, the stream refused it, the connection is closed, or nothing was
                confirmed in time. Only in the last two cases may it be stored all the same.
        """
        # If this is cancelled, so is the future, and the sweep takes the message out.
        return await self._take(subject, body, headers).confirmed

    async def enqueue(
        self, subject: str, body: bytes, headers: Mapping[str, str] | bytes
    ) -> asyncio.Future[PubAck]:
        """Publish one message and return when it has a place in the window.

        Args:
            subject: as of `publish`, and so are the others.
            body: the message.
            headers: as a mapping, or as a block.

        Returns:
            What `publish` would return or raise, once it is known. A message whose future is cancelled isn't
            repeated any more.

        Raises:
            EncodeError, PublishError: as `publish`, where it shows before anything is written.
        """
        message = self._take(subject, body, headers)
        if message.token not in self._in_flight:
            message.entered = self._loop.create_future()
            try:
                await message.entered
            except asyncio.CancelledError:
                message.confirmed.cancel()
                raise
        return message.confirmed

    def submit(self, subject: str, body: bytes, headers: bytes) -> asyncio.Future[PubAck]:
        """Publish one message, or have it wait for a place in the window; as `enqueue` otherwise.

        Who calls this keeps what waits bounded: see `is_full`.
        """
        return self._take(subject, body, headers).confirmed

    @property
    def is_full(self) -> bool:
        """Whether something waits for a place."""
        return bool(self._queued)

    async def entered(self) -> None:
        """Return when all that waits now has a place."""
        if self._queued:
            last = self._queued[-1]
            if last.entered is None:
                last.entered = self._loop.create_future()
            # Others may wait for it too, and it must not be cancelled with one of them.
            await asyncio.wait([last.entered])

    async def settled(self) -> None:
        """Return when every message is confirmed or given up."""
        while waiting := [
            message.confirmed
            for message in [*self._in_flight.values(), *self._queued]
            if not message.confirmed.done()
        ]:
            await asyncio.wait(waiting)

    def check(self, subject: str, body: bytes, headers: bytes) -> None:
        """Raise what `publish` would, as far as it shows before anything is written.

        Args:
            subject: where to.
            body: the message.
            headers: their block.

        Raises:
            EncodeError: nothing can be published to the subject.
            PublishError: body or headers are larger than the server takes.
        """
        _checked(subject)
        size = len(body) + len(headers)
        if size > self._client.max_payload:
            raise PublishError(
                f"{subject}: body and headers are {size} bytes, the server takes {self._client.max_payload}; "
                "publish less, or raise the server's max_payload",
                subject=subject,
            )
        if len(headers) > MAX_HEADER_BYTES:
            raise PublishError(
                f"{subject}: headers are over {MAX_HEADER_BYTES} bytes; shorten them", subject=subject
            )

    def _take(self, subject: str, body: bytes, headers: Mapping[str, str] | bytes) -> _Unconfirmed:
        """Write a message, or queue it while the window is full."""
        wire_subject = _checked(subject)
        if not isinstance(headers, bytes):
            try:
                headers = header_block(headers)
            except EncodeError as error:
                raise PublishError(f"{subject}: {error}", subject=subject) from error
        size = len(body) + len(headers)
        if size > self._client.max_payload or len(headers) > MAX_HEADER_BYTES:
            self.check(subject, body, headers)
        if self._client.is_closed:
            raise PublishError(f"{subject}: {_CLOSED}", subject=subject)
        self._number += 1
        token = b"%d" % self._number
        message = _Unconfirmed(
            subject, wire_subject, body, headers, token, confirmed=self._loop.create_future()
        )
        if self._queued or not self._has_room(size):
            self._queued.append(message)
        else:
            self._enter(message, size)
        return message

    def _has_room(self, size: int) -> bool:
        held = len(self._in_flight)
        return held == 0 or (held < self._size and self._bytes + size <= self._max_bytes)

    def _enter(self, message: _Unconfirmed, size: int) -> None:
        self._in_flight[message.token] = message
        self._bytes += size
        # The event loop's clock may show only when its turn began.
        message.since = time.monotonic()
        if self._client.is_connected and self._client.stats["reconnects"] == self._reconnects:
            message.repeat_at = message.since + ACK_TIMEOUT_SECONDS
            self._lane.write(message)
        # Else the sweep writes it, after those that came before it.
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _leave(self, message: _Unconfirmed) -> None:
        """Take a message out of the window, and let in what now has room."""
        if self._in_flight.pop(message.token, None) is None:
            return
        self._bytes -= message.size
        while self._queued:
            message = self._queued[0]
            if not message.confirmed.done():
                size = message.size
                if not self._has_room(size):
                    break
                self._enter(message, size)
            if message.entered is not None and not message.entered.done():
                message.entered.set_result(None)
            self._queued.popleft()

    def _answered(self, token: bytes, block: bytes, body: bytes) -> None:
        message = self._in_flight.get(token)
        if message is None:
            if token == _LOOK.token:
                self._has_jetstream = not block or status(block)[0] != NO_RESPONDERS
            return
        if block and status(block)[0] == NO_RESPONDERS:
            self._no_stream(message)
            return
        try:
            ack = read_answer(body)
        except Refused as refused:
            if refused.code == TOO_MANY_REQUESTS:
                message.no_stream_since = None
                message.unconfirmed_because = f": {refused}"
                message.repeat_at = self._loop.time() + BUSY_REPEAT_SECONDS
            else:
                self._fail(message, str(refused), refused.code)
            return
        if self._confirmed is not None:
            self._confirmed(time.monotonic() - message.since)
        if not message.confirmed.done():
            message.confirmed.set_result(ack)
        self._leave(message)

    def _unwritten(self, token: bytes, problem: str) -> None:
        message = self._in_flight.get(token)
        if message is None:
            return
        if problem:
            self._fail(message, problem)
        else:
            # Disconnected: the sweep writes it again after the reconnect, or gives it up.
            message.repeat_at = 0.0

    def _no_stream(self, message: _Unconfirmed) -> None:
        now = self._loop.time()
        if message.no_stream_since is None:
            message.no_stream_since = now
        if now - message.no_stream_since >= NO_STREAM_SECONDS:
            self._fail(message, self._why_no_stream())
        else:
            message.repeat_at = now + NO_STREAM_REPEAT_SECONDS
            self._look_for_jetstream(now)

    def _look_for_jetstream(self, now: float) -> None:
        """Ask for JetStream if the server itself has none: one that it is joined to may have it."""
        # Not of one that has it: that would be denied to who may publish events and nothing else.
        if self._client._server_info.get("jetstream"):
            self._has_jetstream = True
        elif now - self._looked_at >= NO_STREAM_REPEAT_SECONDS:
            self._looked_at = now
            self._lane.write(_LOOK)

    def _why_no_stream(self) -> str:
        return f"{_NO_STREAM}; {_DECLARE}" if self._has_jetstream else f"{_NO_STREAM}, and {NO_JETSTREAM}"

    def _fail(self, message: _Unconfirmed, problem: str, code: int | None = None) -> None:
        if not message.confirmed.done():
            message.confirmed.set_exception(
                PublishError(f"{message.subject}: {problem}", subject=message.subject, code=code)
            )
        if message.entered is not None and not message.entered.done():
            message.entered.set_result(None)
        self._leave(message)

    def _sweep(self) -> None:
        """Repeat what is unanswered, and give up what is out of time."""
        self._timer = None
        if self._client.is_closed:
            self.close()
            return
        now = self._loop.time()
        if self._client.is_connected:
            self._repeat(now)
        # Only now, since it lets in others, which are written after what is repeated.
        for message in list(self._in_flight.values()):
            if message.confirmed.done():
                self._leave(message)
            elif self._is_late(message, now):
                self._fail(
                    message,
                    f"no stream confirmed the event within {self._timeout_seconds:g} s"
                    f"{message.unconfirmed_because}"
                    if message.no_stream_since is None
                    else self._why_no_stream(),
                )
        if self._in_flight and self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _repeat(self, now: float) -> None:
        reconnects = self._client.stats["reconnects"]
        reconnected, self._reconnects = reconnects != self._reconnects, reconnects
        if reconnected:
            self._lane.forget()
        for message in self._in_flight.values():
            if message.confirmed.done() or self._is_late(message, now):
                continue
            if reconnected:
                message.wait_seconds = ACK_TIMEOUT_SECONDS
            elif now < message.repeat_at:
                continue
            elif message.no_stream_since is None:
                message.wait_seconds *= 2
            message.repeat_at = now + message.wait_seconds
            self._lane.write(message)

    def _is_late(self, message: _Unconfirmed, now: float) -> bool:
        return now - message.since >= self._timeout_seconds


_CLOSED = "the connection is closed"
_NO_STREAM = "no stream takes this subject"
_DECLARE = "declare a Stream with it, or correct the subject"
_LOOK = Message("$JS.API.INFO", b"$JS.API.INFO", b"", b"", b"jetstream")


@lru_cache(maxsize=4096)
def _checked(subject: str) -> bytes:
    check_literal(subject)
    return subject.encode()
