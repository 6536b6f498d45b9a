"""A pull subscription whose demand is what its mailbox can hold, and never more.

One pull request is open at a time, sent when at least half of the mailbox is free: what it asks for arrives
while the other half is handled, and what is outstanding, in messages and bytes, is known exactly. Deliveries
come under their stream's subject; a status frame comes under the request's own reply subject, and ends it.
Protocol: NATS ADR-13, ADR-37.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.settlement import parse_ack_subject

# Short, because a drain waits until every request is filled or has expired.
EXPIRES_SECONDS = 1.0
# A request that the server never answers was lost on the way: its expiry is long past.
LOST_AFTER_SECONDS = 2.0
RETRY_SECONDS = 0.25
_EXPIRES_NANOSECONDS = round(EXPIRES_SECONDS * 1_000_000_000)
_log = structlog.get_logger("understudy.subscription")

Deliver = Callable[[str, str, bytes, Mapping[str, str] | None], None]


class Room(Protocol):
    """What a mailbox can still take."""

    def free(self) -> int:
        """Return how many more messages it can hold."""

    def free_bytes(self) -> int:
        """Return how many more bytes it can hold."""

    def capacity(self) -> int:
        """Return how many messages it holds at most."""

    def is_empty(self) -> bool:
        """Return whether it holds nothing."""


class PullSubscription:
    """Asks a durable consumer for as much as there is room for.

    Args:
        client: a connection; the subscription must hear of its reconnects by `reconnected`.
        stream, durable: the consumer.
        room: the mailbox's free space.
        deliver: called in the event loop with each delivery's subject, reply subject, body and headers; may
            not block or raise.
        failed: called if the consumer is gone for good.
        before_first_pull: run before the first request of each inbox, so at the start and after each
            reconnect, when nothing is on its way to us. Returns how many redeliveries are to be fetched
            first, and delivered sorted by stream sequence.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        durable: str,
        room: Room,
        deliver: Deliver,
        failed: Callable[[BrokerError], None],
        before_first_pull: Callable[[], Awaitable[int]],
    ) -> None:
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._stream = stream
        self._durable = durable
        self._room = room
        self._deliver = deliver
        self._failed = failed
        self._before_first_pull = before_first_pull
        self._inbox = ""
        self._epoch = 0
        self._unanswered = False
        self._subscription: Subscription | None = None
        self._request = 0
        self._outstanding = 0
        self._lost_at = 0.0
        self._not_before = 0.0
        # A message is known to need more than so many bytes.
        self._too_few_bytes = 0
        self._gathered: list[tuple[str, str, bytes, Mapping[str, str] | None]] | None = None
        self._gathering = 0
        self._gathering_ends: asyncio.Future[None] | None = None
        self._paused = False
        self._stopping = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Subscribe and send the first request, or wait for the connection to do so.

        Returns:
            What goes on sending requests; it ends only by failing or by `stop`.
        """
        self._task = asyncio.create_task(self._refill_loop(), name="understudy-pull")
        return self._task

    def settled(self) -> None:
        """Hear that the mailbox has more room; cheap enough for every settled delivery."""
        if self._outstanding == 0 and self._room.free() * 2 >= self._room.capacity():
            self._changed.set()

    def pause(self) -> None:
        """Ask for nothing more; what was asked for may still arrive."""
        self._paused = True

    def resume(self) -> None:
        """Ask again."""
        self._paused = False
        self._changed.set()

    def reconnected(self) -> None:
        """Begin again under a new inbox: the old one's requests may live on in the server."""
        self._inbox = ""
        self._epoch += 1
        self._changed.set()

    def quiesce(self) -> None:
        """Ask for nothing more, for good; what was asked for may still arrive."""
        self._stopping = True

    async def stop(self) -> None:
        """Ask for nothing more, and return when every request is filled or has expired.

        Unsubscribing earlier strands messages that are on their way until `ack_wait`.
        """
        self.quiesce()
        deadline = time.monotonic() + EXPIRES_SECONDS + LOST_AFTER_SECONDS
        while self._outstanding > 0 and self._client.is_connected:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                _log.warning(
                    "pull requests were not answered", durable=self._durable, messages=self._outstanding
                )
                break
            self._changed.clear()
            await self._wait_for_change(remaining)
        if self._task is not None:
            self._task.cancel()
        await self._close_inbox()

    async def _refill_loop(self) -> None:
        while True:
            # Cleared before looking, so that what happens while the request is sent isn't missed.
            self._changed.clear()
            try:
                wait = await self._refill()
            except (nats.errors.Error, BrokerError, TimeoutError) as error:
                # Disconnected: the next epoch begins when the connection is back.
                _log.debug("pull request not sent", durable=self._durable, error=str(error))
                wait = RETRY_SECONDS
            await self._wait_for_change(wait)

    async def _wait_for_change(self, seconds: float) -> None:
        # Not wait_for: Python 3.11's swallows a cancellation that comes together with the change.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _refill(self) -> float:
        """Send a request if there is demand, and return when to look again at the latest, in seconds."""
        if self._stopping:
            return LOST_AFTER_SECONDS
        now = time.monotonic()
        if self._outstanding > 0 and now > self._lost_at:
            _log.warning("a pull request was lost", durable=self._durable, messages=self._outstanding)
            self._inbox = ""
            self._unanswered = True
        if not self._client.is_connected:
            return RETRY_SECONDS
        if self._unanswered:
            # A consumer that doesn't exist doesn't answer; nor does one that has no leader for a moment.
            if await api.consumer_info(self._client, self._stream, self._durable) is None:
                self._gone()
                return LOST_AFTER_SECONDS
            self._unanswered = False
        if not self._inbox:
            await self._close_inbox()
            await self._open_inbox()
        if not self._inbox:
            return 0.0
        if now < self._not_before:
            return self._not_before - now
        request = self._demand()
        if request is None:
            return LOST_AFTER_SECONDS
        self._request += 1
        self._outstanding = request["batch"]
        self._lost_at = now + EXPIRES_SECONDS + LOST_AFTER_SECONDS
        payload = json.dumps(request | {"expires": _EXPIRES_NANOSECONDS}).encode()
        await self._client.publish(self._next, payload, reply=f"{self._inbox}.{self._request}")
        return LOST_AFTER_SECONDS

    def _demand(self) -> dict[str, int] | None:
        """Return what to ask for, or None if nothing is to be asked for now."""
        free, size = self._room.free(), self._room.free_bytes()
        if self._paused or self._outstanding > 0 or free <= 0 or free * 2 < self._room.capacity():
            return None
        if size > self._too_few_bytes:
            return {"batch": free, "max_bytes": size}
        # A message larger than the byte bound is fetched alone, into an empty mailbox.
        return {"batch": 1} if self._room.is_empty() else None

    async def _on_message(self, message: Msg) -> None:
        if not message.reply.startswith("$JS.ACK."):
            self._on_status(message)
        elif self._gathered is not None:
            self._gathered.append((message.subject, message.reply, message.data, message.headers))
            if len(self._gathered) >= self._gathering:
                self._end_gathering()
        else:
            if self._outstanding > 0:
                self._outstanding -= 1
                if self._outstanding == 0:
                    self._changed.set()
            self._too_few_bytes = 0
            self._deliver(message.subject, message.reply, message.data, message.headers)

    def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        # nats-py leaves further headers of a status frame in it.
        description = headers.get("Description", "").partition("\n")[0]
        if status == "100":
            return
        if self._gathered is not None:
            self._end_gathering()
            return
        if message.subject != f"{self._inbox}.{self._request}":
            return
        self._outstanding = 0
        if description == "Consumer Deleted":
            self._gone()
        elif description.startswith("Message Size Exceeds"):
            self._too_few_bytes = self._room.free_bytes()
        elif status not in ("404", "408") and description != "Batch Completed":
            _log.warning("pull request ended", durable=self._durable, status=status, description=description)
            # Nobody heard it.
            self._unanswered = status == "503"
            self._not_before = time.monotonic() + RETRY_SECONDS
        self._changed.set()

    def _gone(self) -> None:
        self._stopping = True
        self._failed(
            BrokerError(
                f"consumer {self._durable} is gone from the server; 'understudy run' makes it again, "
                "and a new one starts where the actor's 'start' says"
            )
        )

    async def _open_inbox(self) -> None:
        epoch = self._epoch
        redeliveries = await self._before_first_pull()
        inbox = self._client.new_inbox()
        # The mailbox bounds what arrives, so nats-py's own limits would only add silent drops.
        self._subscription = await self._client.subscribe(
            f"{inbox}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        if redeliveries > 0:
            await self._gather(inbox, redeliveries)
        self._outstanding = 0
        if epoch != self._epoch:
            # Reconnected meanwhile: what was just asked and given back may be lost.
            return
        self._inbox = inbox
        self._not_before = 0.0

    async def _gather(self, inbox: str, redeliveries: int) -> None:
        """Fetch what the server is to deliver again, and deliver it in stream order.

        The server puts what is given back behind what already waits for redelivery, so after two deaths in
        a row its order is not the stream's.
        """
        self._gathered = []
        self._gathering = redeliveries
        self._gathering_ends = asyncio.get_running_loop().create_future()
        request = json.dumps({"batch": redeliveries, "no_wait": True}).encode()
        try:
            await self._client.publish(self._next, request, reply=f"{inbox}.0")
            async with asyncio.timeout(LOST_AFTER_SECONDS):
                await self._gathering_ends
        except TimeoutError:
            _log.warning("redeliveries did not come", durable=self._durable, messages=redeliveries)
        finally:
            gathered, self._gathered = self._gathered, None
        for delivery in sorted(gathered, key=lambda delivery: parse_ack_subject(delivery[1])[1]):
            self._deliver(*delivery)

    def _end_gathering(self) -> None:
        if self._gathering_ends is not None and not self._gathering_ends.done():
            self._gathering_ends.set_result(None)

    async def _close_inbox(self) -> None:
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except nats.errors.Error as error:
                _log.debug("inbox not closed", durable=self._durable, error=str(error))
            self._subscription = None
