"""A pull subscription whose demand is what its mailbox can hold, and never more.

Pull requests overlap and are refilled at half. Each has its own reply subject below one inbox, so that a
status frame names the request it ends; deliveries come under their stream's subject and are counted
together, since the server fills waiting requests in turn. Protocol: NATS ADR-13, ADR-37.
"""

from __future__ import annotations

import asyncio
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
        self._durable = durable
        self._room = room
        self._deliver = deliver
        self._failed = failed
        self._before_first_pull = before_first_pull
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._requests: dict[str, int] = {}
        self._request_number = 0
        self._outstanding = 0
        self._outstanding_bytes = 0
        self._last_request = 0.0
        self._not_before = 0.0
        self._alone = False
        self._gathered: list[tuple[str, str, bytes, Mapping[str, str] | None]] | None = None
        self._gathering = 0
        self._gathering_ends: asyncio.Future[None] | None = None
        self._paused = False
        self._stopping = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that sends requests, once started; it ends only by failing or by `stop`."""
        return self._task

    def start(self) -> None:
        """Subscribe and send the first request, or wait for the connection to do so."""
        self._task = asyncio.create_task(self._refill_loop(), name="understudy-pull")

    def settled(self) -> None:
        """Hear that the mailbox has more room; cheap enough for every settled delivery."""
        if self._outstanding + self._room.capacity() - self._room.free() <= self._room.capacity() // 2:
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
            try:
                await asyncio.wait_for(self._changed.wait(), remaining)
            except TimeoutError:
                continue
        if self._task is not None:
            self._task.cancel()
        await self._close_inbox()

    async def _refill_loop(self) -> None:
        while True:
            try:
                wait = await self._refill()
            except (nats.errors.Error, BrokerError, TimeoutError) as error:
                # Disconnected: the next epoch begins when the connection is back.
                _log.debug("pull request not sent", durable=self._durable, error=str(error))
                wait = RETRY_SECONDS
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    async def _refill(self) -> float:
        """Send what there is demand for and return when to look again at the latest, in seconds."""
        if self._stopping:
            return LOST_AFTER_SECONDS
        now = time.monotonic()
        if self._outstanding > 0 and now > self._last_request + EXPIRES_SECONDS + LOST_AFTER_SECONDS:
            _log.warning("a pull request was lost", durable=self._durable, messages=self._outstanding)
            self._inbox = ""
        if not self._client.is_connected:
            return RETRY_SECONDS
        if not self._inbox:
            await self._close_inbox()
            await self._open_inbox()
        if self._paused:
            return LOST_AFTER_SECONDS
        if now < self._not_before:
            return self._not_before - now
        messages = self._room.free() - self._outstanding
        capacity = self._room.capacity()
        if messages <= 0 or capacity - messages > capacity // 2:
            return LOST_AFTER_SECONDS
        available = self._room.free_bytes() - self._outstanding_bytes
        request: dict[str, int] = {"batch": messages, "expires": _EXPIRES_NANOSECONDS}
        if self._alone:
            # A message larger than the byte bound is fetched alone, into an empty mailbox.
            if not self._room.is_empty() or self._outstanding:
                return LOST_AFTER_SECONDS
            request["batch"] = messages = 1
            available = 0
            self._alone = False
        elif available <= 0:
            return LOST_AFTER_SECONDS
        else:
            request["max_bytes"] = available
        self._request_number += 1
        name = str(self._request_number)
        if self._outstanding == 0:
            self._requests.clear()
        self._requests[name] = messages
        self._outstanding += messages
        self._outstanding_bytes += available
        self._last_request = now
        await self._client.publish(self._next, json.dumps(request).encode(), reply=f"{self._inbox}.{name}")
        return LOST_AFTER_SECONDS

    async def _on_message(self, message: Msg) -> None:
        if not message.reply.startswith("$JS.ACK."):
            self._on_status(message)
        elif self._gathered is not None:
            self._gathered.append((message.subject, message.reply, message.data, message.headers))
            if len(self._gathered) >= self._gathering:
                self._end_gathering()
        else:
            self._outstanding -= 1
            if self._outstanding <= 0:
                self._outstanding = self._outstanding_bytes = 0
                self._changed.set()
            else:
                size = len(message.data) + len(message.subject) + len(message.reply)
                self._outstanding_bytes = max(0, self._outstanding_bytes - size)
            self._deliver(message.subject, message.reply, message.data, message.headers)

    def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        description = headers.get("Description", "")
        if status == "100":
            return
        if self._gathered is not None:
            self._end_gathering()
            return
        inbox, _, name = message.subject.rpartition(".")
        if inbox != self._inbox:
            return
        requested = self._requests.pop(name, 0)
        pending = headers.get("Nats-Pending-Messages")
        if pending is not None:
            self._give_back(int(pending), int(headers.get("Nats-Pending-Bytes", "0")))
        elif status in ("400", "404", "408", "503") or description.startswith("Exceeded"):
            # The request was refused as a whole.
            self._give_back(requested, 0)
        else:
            # It ended with an unknown rest: count anew.
            self._inbox = ""
        if status == "409" and description.startswith("Message Size Exceeds"):
            self._alone = self._room.is_empty() and self._outstanding == 0
        elif status == "503" or description == "Consumer Deleted":
            self._failed(
                BrokerError(
                    f"consumer {self._durable} is gone from the server; 'understudy run' makes it again, "
                    "and a new one starts where the actor's 'start' says"
                )
            )
        elif status not in ("404", "408") and description != "Batch Completed":
            _log.warning("pull request ended", durable=self._durable, status=status, description=description)
            self._not_before = time.monotonic() + RETRY_SECONDS
        self._changed.set()

    def _give_back(self, messages: int, size: int) -> None:
        self._outstanding = max(0, self._outstanding - messages)
        self._outstanding_bytes = 0 if self._outstanding == 0 else max(0, self._outstanding_bytes - size)

    async def _open_inbox(self) -> None:
        redeliveries = await self._before_first_pull()
        inbox = self._client.new_inbox()
        # The mailbox bounds what arrives, so nats-py's own limits would only add silent drops.
        self._subscription = await self._client.subscribe(
            f"{inbox}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        if redeliveries > 0:
            await self._gather(inbox, redeliveries)
        self._inbox = inbox
        self._requests.clear()
        self._outstanding = self._outstanding_bytes = 0
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
            await asyncio.wait_for(self._gathering_ends, LOST_AFTER_SECONDS)
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
