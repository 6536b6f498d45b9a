"""The asker's side: one inbox, in which answers find who waits for them by their correlation id."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from understudy.actors.codec import Decoder, decoder
from understudy.actors.errors import AskFailed, AskRejected, AskTimeout, PublishError
from understudy.runtime.jetstream import asked, headers
from understudy.runtime.jetstream.event_id import ORIGINAL_ID
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.telemetry.logger import get_logger

# So many are under way at once; a further one waits for its turn.
MAX_OUTSTANDING = 1024
# Publishes the request under a message id, with headers of ours; returns when it is written.
Publish = Callable[[str, Sequence[tuple[str, str]]], Awaitable[asyncio.Future[PubAck]]]
# Its outcome, its content type and its body.
_Answer: TypeAlias = tuple[str, str | None, bytes]
_CORRELATION_ID, _OUTCOME = asked.CORRELATION_ID.encode(), asked.OUTCOME.encode()
_REPEATED = asked.REPEATED.encode()
_log = get_logger("understudy.ask")


class _UnderWay:
    """An ask, and how far it has come."""

    __slots__ = ("confirmed", "correlation", "has_begun")

    def __init__(self, correlation: str) -> None:
        self.correlation = correlation
        self.has_begun = False
        self.confirmed: asyncio.Future[PubAck] | None = None

    def says(self, bound: str) -> str:
        """Return what it has come to within its time."""
        if not self.has_begun:
            return f"not asked within {bound}, since {MAX_OUTSTANDING} others wait for their answers"
        # It was cancelled with us if the stream hadn't confirmed it.
        if self.confirmed is None or self.confirmed.cancelled():
            return f"no stream has confirmed the request within {bound}"
        return f"no answer within {bound}"


class Asking:
    """Asks over a connection that is somebody else's.

    Args:
        client: a connection.
        late: called with each answer that nobody waits for any more.
    """

    def __init__(self, client: Client, late: Callable[[], None] = lambda: None) -> None:
        self._client = client
        self._late = late
        self._room = asyncio.Semaphore(MAX_OUTSTANDING)
        self._waiting: dict[str, asyncio.Future[_Answer]] = {}
        # What is made of a random prefix and a count is as unique as a UUID, and costs a twentieth.
        self._prefix = secrets.token_urlsafe(12)
        self._count = 0
        self._inbox = ""
        self._is_closed = False
        #: How many answers came late.
        self.late_replies = 0

    async def ask(
        self,
        subject: str,
        publish: Publish,
        decode: Decoder,
        *,
        timeout_seconds: float,
        until: float | None = None,
        idempotency_key: str = "",
    ) -> Any:
        """Publish a request and return its answer; whoever is cancelled forgets it.

        Args:
            subject: where it is published, for errors.
            publish: does that.
            decode: reads the answer.
            timeout_seconds: how long to wait at most.
            until: when the deadline of what this is asked for is, in seconds since 1970.
            idempotency_key: by which its receivers know it; by default, its message id.

        Raises:
            AskTimeout, AskRejected, AskFailed: there is no answer.
            EncodeError, PublishError: it can't be published.
            DecodeError: the answer isn't what is expected.
        """
        now = time.time()
        deadline = now + timeout_seconds if until is None else min(now + timeout_seconds, until)
        left = deadline - now
        bound = "the deadline of what it is asked for" if deadline == until else f"{left:.3g} s"
        if left <= 0:
            raise AskTimeout(f"{subject}: not asked, {bound} has passed", subject=subject)
        self._count += 1
        under_way = _UnderWay(f"{self._prefix}.{self._count}")
        try:
            async with asyncio.timeout(left) as timeout, self._room:
                outcome, content_type, body = await self._exchange(
                    under_way, deadline, publish, idempotency_key
                )
        except TimeoutError as error:
            if timeout.expired():
                what = under_way.says(bound)
            elif self._is_closed:
                what = "no answer before the connection was closed"
            else:
                raise
            raise AskTimeout(f"{subject}: {what}", subject=subject) from error
        except nats.errors.ConnectionClosedError as error:
            raise PublishError(f"{subject}: the connection is closed", subject=subject) from error
        if outcome == asked.ANSWERED:
            return decode(body, content_type)
        text = body.decode(errors="replace")
        if outcome == "rejected":
            raise AskRejected(text, subject=subject)
        raise AskFailed(f"{subject}: {outcome}: {text}", subject=subject, reason=outcome)

    def close(self) -> None:
        """End the asks that are under way: no answer can come any more."""
        self._is_closed = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TimeoutError())

    async def _exchange(
        self, under_way: _UnderWay, deadline: float, publish: Publish, idempotency_key: str
    ) -> _Answer:
        under_way.has_begun = True
        correlation = under_way.correlation
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = answer
        try:
            if not self._inbox:
                await self._open()
            lines = [
                (asked.REPLY_TO, self._inbox),
                (asked.CORRELATION_ID, correlation),
                (asked.DEADLINE, str(int(deadline * 1000))),
            ]
            if idempotency_key:
                lines.append((ORIGINAL_ID, idempotency_key))
            under_way.confirmed = confirmed = await publish(correlation, lines)
            confirmed.add_done_callback(partial(_published, answer))
            try:
                return await answer
            except asyncio.CancelledError:
                # It isn't repeated any more.
                confirmed.cancel()
                raise
        finally:
            del self._waiting[correlation]

    async def _open(self) -> None:
        # On both lanes it is written before the request, so that no answer comes before it, and nothing has
        # to be confirmed: an ask that begins while the broker is away waits for it.
        self._inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        if isinstance(self._client, FastClient):
            self._client.receive(subscription, self._on_frame)

    def _on_frame(self, _subject: bytes, _reply: bytes, block: bytes, body: bytes) -> None:
        self._take(partial(headers.find, block), body)

    async def _on_message(self, message: Msg) -> None:
        found = {name.encode(): value for name, value in (message.headers or {}).items()}
        self._take(found.get, message.data)

    def _take(self, header: Callable[[bytes], str | None], body: bytes) -> None:
        correlation = header(_CORRELATION_ID) or ""
        answer = self._waiting.get(correlation)
        if answer is not None and not answer.done():
            answer.set_result((header(_OUTCOME) or asked.ANSWERED, header(b"Content-Type"), body))
        elif header(_REPEATED) is None:
            self.late_replies += 1
            self._late()
            _log.debug("late reply dropped", correlation_id=correlation[:64])


def _published(answer: asyncio.Future[_Answer], confirmed: asyncio.Future[PubAck]) -> None:
    if confirmed.cancelled():
        return
    problem = confirmed.exception()
    if problem is not None and not answer.done():
        answer.set_exception(problem)


def decoder_of(expects: Any) -> Decoder:
    """Return what reads answers of a type, made once."""
    return _decoder(expects)


@lru_cache(maxsize=256)
def _decoder(expects: Any) -> Decoder:
    return decoder(expects)
