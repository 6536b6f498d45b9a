"""A pull subscription whose demand is what its mailbox can hold, and never more.

Up to two pull requests are open at a time, each under an inbox of its own, so that every delivery and status
frame says by its subscription which request it answers: what is outstanding, in messages and bytes, is known
exactly. While one request is being filled, the other asks for what has been settled since.

A sole owner's subscription is a candidate first: it asks for one message at a time, without an id, and is the
owner from the delivery on that pins it. Then all that is unsettled comes again before anything newer.
Protocol: NATS ADR-13, ADR-37, ADR-42.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api, headers
from understudy.runtime.jetstream.fast_lane import FastClient, Receiver
from understudy.runtime.jetstream.pinning import (
    KEEP_REQUEST,
    Pin,
    pin_age_seconds,
    pinned_id,
    read_pin,
    unpin,
)
from understudy.runtime.jetstream.settlement import Settlement, parse_ack_subject

# Short, because a drain waits until every request is filled or has expired. It also stands in for idle
# heartbeats: a request is answered within it, or was lost.
EXPIRES_SECONDS = 1.0
# A request that the server never answers was lost on the way: its expiry is long past.
LOST_AFTER_SECONDS = 2.0
RETRY_SECONDS = 0.25
# So often a standby looks whether there is an owner.
LOOK_SECONDS = 2.0
REQUESTS = 2
_EXPIRES_NANOSECONDS = round(EXPIRES_SECONDS * 1_000_000_000)
_log = structlog.get_logger("understudy.subscription")


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


class _Request:
    """One of the pull requests that may be open at once, under an inbox of its own."""

    __slots__ = ("inbox", "lost_at", "number", "outstanding", "reserved", "subscription")

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self.subscription: Subscription | None = None
        self.number = 0
        self.outstanding = 0
        self.reserved = 0
        self.lost_at = 0.0

    @property
    def reply(self) -> str:
        """Where its status frames come, which differs from request to request: one may come late."""
        return f"{self.inbox}.{self.number}"

    def open(self, messages: int, size: int) -> None:
        """Begin anew.

        Args:
            messages: how many are asked for.
            size: how many bytes they may have, 0 without a bound.
        """
        self.number += 1
        self.outstanding = messages
        self.reserved = size
        self.lost_at = time.monotonic() + EXPIRES_SECONDS + LOST_AFTER_SECONDS

    def end(self) -> None:
        """Expect nothing more."""
        self.outstanding = self.reserved = 0


class PullSubscription:
    """Asks a durable consumer for as much as there is room for.

    Args:
        client: a connection; the subscription must hear of its reconnects by `reconnected`.
        stream, durable: the consumer.
        room: the mailbox's free space.
        settlement: whose acks are written before the room that they made is asked for again.
        deliver: called in the event loop with each delivery's subject, reply subject, header block and body;
            may not block or raise.
        failed: called if the consumer is gone for good.
        pin: a sole owner's; None for a consumer that many may share.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        durable: str,
        room: Room,
        settlement: Settlement,
        deliver: Receiver,
        failed: Callable[[BrokerError], None],
        pin: Pin | None = None,
    ) -> None:
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._stream = stream
        self._durable = durable
        self._room = room
        self._settlement = settlement
        self._deliver = deliver
        self._failed = failed
        self._pin = pin
        self._requests: list[_Request] = []
        self._epoch = 0
        self._unanswered = False
        self._not_before = 0.0
        # A message is known to need more than so many bytes, and the server to take no larger batch.
        self._too_few_bytes = 0
        self._max_batch = 1 << 30
        # Of an owner that was just pinned or has reconnected, until all that came again is there.
        self._gathered: list[tuple[bytes, bytes, bytes, bytes]] | None = None
        self._look_at = 0.0
        self._asked_at = 0.0
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
        """Hear that the mailbox has more room."""
        if self._free() >= self._least():
            self._changed.set()

    def pause(self) -> None:
        """Ask for nothing more; what was asked for may still arrive."""
        self._paused = True

    def resume(self) -> None:
        """Ask again."""
        self._paused = False
        self._changed.set()

    def reconnected(self) -> None:
        """Begin again under new inboxes: the old ones' requests may live on in the server."""
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
        while self._outstanding() > 0 and self._client.is_connected:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                _log.warning(
                    "pull requests were not answered", durable=self._durable, messages=self._outstanding()
                )
                break
            self._changed.clear()
            await self._wait_for_change(remaining)
        if self._task is not None:
            self._task.cancel()
        self._deliver_gathered()
        await self._close_inboxes()

    async def keep_pin(self) -> None:
        """Keep a sole owner's pin while there is no room to ask for more; never returns."""
        while self._pin is not None:
            await asyncio.sleep(self._pin.keep_seconds / 4)
            quiet = time.monotonic() - self._asked_at
            if self._pin.id and quiet >= self._pin.keep_seconds and self._client.is_connected:
                self._asked_at = time.monotonic()
                with contextlib.suppress(nats.errors.Error):
                    await self._publish(KEEP_REQUEST, self._client.new_inbox())

    async def _refill_loop(self) -> None:
        epoch = -1
        while True:
            # Cleared before looking, so that what happens while the request is sent isn't missed.
            self._changed.clear()
            try:
                if epoch != self._epoch and not self._stopping and self._client.is_connected:
                    epoch = self._epoch
                    await self._open_inboxes()
                elif self._gathered is not None:
                    # Pinned by the delivery that is in hand.
                    await self._recover()
                # Reconnected meanwhile: what was just asked and given back may be lost.
                wait = await self._refill() if epoch == self._epoch else 0.0
            except (nats.errors.Error, BrokerError, TimeoutError) as error:
                # Disconnected, most likely: begin again when the connection is back.
                _log.debug("pull request not sent", durable=self._durable, error=str(error))
                self._gathered = None
                epoch = -1
                wait = RETRY_SECONDS
            await self._wait_for_change(wait)

    async def _wait_for_change(self, seconds: float) -> None:
        # Not wait_for: Python 3.11's swallows a cancellation that comes together with the change.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _refill(self) -> float:
        """Send requests while there is demand, and return when to look again at the latest, in seconds."""
        if self._stopping:
            return LOST_AFTER_SECONDS
        if not self._client.is_connected:
            return RETRY_SECONDS
        now = time.monotonic()
        if any(request.outstanding > 0 and now > request.lost_at for request in self._requests):
            _log.warning("a pull request was lost", durable=self._durable, messages=self._outstanding())
            self._epoch += 1
            self._unanswered = True
        if self._unanswered:
            # A consumer that doesn't exist doesn't answer; nor does one that has no leader for a moment.
            if await api.consumer_info(self._client, self._stream, self._durable) is None:
                self._gone()
                return LOST_AFTER_SECONDS
            self._unanswered = False
            return 0.0
        if now < self._not_before:
            return self._not_before - now
        if self._is_candidate():
            return await self._stand_by(now)
        for request in self._requests:
            if request.outstanding == 0:
                demand = self._demand()
                if demand is None:
                    break
                await self._ask(request, demand)
        return LOST_AFTER_SECONDS

    def _is_candidate(self) -> bool:
        return self._pin is not None and not self._pin.id

    async def _stand_by(self, now: float) -> float:
        """Ask for the one message that would make us the owner."""
        if now >= self._look_at:
            await self._look_for_owner()
        if self._requests[0].outstanding == 0 and not self._paused and self._free() > 0:
            await self._ask(self._requests[0], {"batch": 1})
        return self._look_at - now

    async def _ask(self, request: _Request, demand: dict[str, Any]) -> None:
        request.open(demand["batch"], demand.get("max_bytes", 0))
        # The server must see the acks first: their room is what is asked for.
        await self._settlement.flush()
        self._asked_at = time.monotonic()
        await self._publish(demand | {"expires": _EXPIRES_NANOSECONDS}, request.reply)

    async def _publish(self, demand: dict[str, Any], reply: str) -> None:
        demand = demand if self._pin is None else self._pin.request(demand)
        await self._client.publish(self._next, json.dumps(demand).encode(), reply=reply)

    def _outstanding(self) -> int:
        return sum(request.outstanding for request in self._requests)

    def _free(self) -> int:
        return self._room.free() - self._outstanding()

    def _least(self) -> int:
        """Return how much room is worth a request."""
        return max(1, self._room.capacity() // (2 * REQUESTS))

    def _demand(self) -> dict[str, Any] | None:
        """Return what to ask for, or None if nothing is to be asked for now."""
        free = self._free()
        if self._paused or free < self._least():
            return None
        batch = min(free, self._max_batch)
        size = self._room.free_bytes() - sum(request.reserved for request in self._requests)
        # Half of it, so that the other request has something to ask for.
        for part in ((size + 1) // 2, size):
            if part > self._too_few_bytes:
                return {"batch": batch, "max_bytes": part}
        # A message larger than the byte bound is fetched alone, into an empty mailbox.
        alone = self._room.is_empty() and self._outstanding() == 0
        return {"batch": 1} if alone else None

    def _receiver(self, request: _Request) -> Receiver:
        deliver, pin = self._deliver, self._pin

        def receive(subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
            if not reply:
                self._on_status(request, subject, block)
                return
            request.reserved -= len(body)
            request.outstanding -= 1
            self._too_few_bytes = 0
            if request.outstanding <= 0:
                request.end()
                self._changed.set()
            if pin is not None:
                if not pin.id and (pin_id := read_pin(block)):
                    pin.set(pin_id)
                    self._gathered = []
                block = pin.strip(block)
                if self._gathered is not None:
                    self._gathered.append((subject, reply, block, body))
                    return
            deliver(subject, reply, block, body)

        return receive

    def _on_status(self, request: _Request, subject: bytes, block: bytes) -> None:
        code, description = headers.status(block)
        if code == "100":
            return
        if subject != request.reply.encode():
            return
        if description.startswith("Message Size Exceeds"):
            self._too_few_bytes = max(self._too_few_bytes, request.reserved)
        request.end()
        self._changed.set()
        if code == "423" and self._pin is not None:
            # Unpinned, by time or by hand: look who has it now.
            self._pin.set("")
            self._epoch += 1
        elif description == "Consumer Deleted":
            self._gone()
        elif description == "Consumer is push based" or code == "400":
            self._fail(f"consumer {self._durable} can't be pulled from: {description}")
        elif limit := re.fullmatch(r"Exceeded MaxRequestBatch of (\d+)", description):
            self._max_batch = int(limit[1])
        elif code not in ("404", "408") and not description.startswith(
            ("Message Size Exceeds", "Batch Comp")
        ):
            _log.warning("pull request ended", durable=self._durable, status=code, description=description)
            # Nobody heard it.
            self._unanswered = code == "503"
            self._not_before = time.monotonic() + RETRY_SECONDS

    def _gone(self) -> None:
        self._fail(
            f"consumer {self._durable} is gone from the server; 'understudy run' makes it again, "
            "and a new one starts where the actor's 'start' says"
        )

    def _fail(self, problem: str) -> None:
        self._stopping = True
        self._failed(BrokerError(problem))

    async def _open_inboxes(self) -> None:
        await self._close_inboxes()
        if self._pin is not None:
            await self._look_for_owner()
        self._requests = [_Request(self._client.new_inbox()) for _ in range(REQUESTS)]
        for request in self._requests:
            await self._subscribe(request)
        self._not_before = 0.0
        if self._pin is not None and self._pin.id:
            self._gathered = []
            await self._recover()

    async def _look_for_owner(self) -> None:
        """Find out whether the consumer is ours, another's or nobody's."""
        pin = self._pin
        assert pin is not None
        self._look_at = time.monotonic() + (RETRY_SECONDS if pin.ownership.was_born(0.0) else LOOK_SECONDS)
        info = await api.consumer_info(self._client, self._stream, self._durable)
        if info is None:
            self._gone()
            return
        other = pinned_id(info)
        if pin.id and other == pin.id:
            return
        if other and pin.ownership.was_born(pin_age_seconds(info)):
            _log.info("unpinning a dead cell", durable=self._durable)
            await unpin(self._client, self._stream, self._durable, other)
            await pin.ownership.give_back()
            other = ""
        if self._gathered is None:
            pin.set("")
            # The owner has given back what it didn't hold, and that is what we hold.
            await pin.ownership.lost(give_back=not other)
            pin.ownership.standing_by(other)

    async def _recover(self) -> None:
        """Have all that is unsettled and not held come again, and deliver it in stream order.

        The server puts what is given back behind what already waits for redelivery, and turns it round while
        it looks for the owner among others' requests, so its order is not the stream's.
        """
        assert self._pin is not None
        assert self._gathered is not None
        epoch, gathered = self._epoch, self._gathered
        in_hand = {_sequence(frame) for frame in gathered}
        wanted = len(in_hand)
        if not self._stopping:
            self._pin.ownership.owned(self._pin.id)
            wanted += await self._pin.ownership.recover(in_hand)
        # As many as there are: the server won't serve a request at once (no_wait) while others wait.
        while (missing := wanted - len(gathered)) > 0:
            await self._ask(self._requests[0], {"batch": min(missing, self._max_batch)})
            await self._answered(self._requests[0])
            if epoch != self._epoch:
                # Unpinned or disconnected meanwhile: the owner has all of it come again.
                self._gathered = None
                return
            if wanted - len(gathered) == missing:
                _log.warning("redeliveries did not come", durable=self._durable, messages=missing)
                break
        self._deliver_gathered()

    def _deliver_gathered(self) -> None:
        gathered, self._gathered = self._gathered or [], None
        for frame in sorted(gathered, key=_sequence):
            self._deliver(*frame)

    async def _answered(self, request: _Request) -> None:
        epoch = self._epoch
        while request.outstanding > 0 and epoch == self._epoch and time.monotonic() < request.lost_at:
            await self._wait_for_change(LOST_AFTER_SECONDS)
            self._changed.clear()

    async def _subscribe(self, request: _Request) -> None:
        receive = self._receiver(request)

        async def on_message(message: Msg) -> None:
            parsed = message.headers or {}
            # nats-py leaves further headers of a status frame in its description.
            status = (
                ""
                if message.reply
                else f"{parsed.get('Status')} {parsed.get('Description', '')}".split("\n")[0]
            )
            block = headers.encode(parsed, status)
            receive(message.subject.encode(), message.reply.encode(), block, message.data)

        # The mailbox bounds what arrives, so nats-py's own limits would only add silent drops.
        request.subscription = await self._client.subscribe(
            f"{request.inbox}.*", cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        if isinstance(self._client, FastClient):
            self._client.receive(request.subscription, receive)

    async def _close_inboxes(self) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            if request.subscription is None:
                continue
            if isinstance(self._client, FastClient):
                self._client.forget(request.subscription)
            try:
                await request.subscription.unsubscribe()
            except nats.errors.Error as error:
                _log.debug("inbox not closed", durable=self._durable, error=str(error))


def _sequence(frame: tuple[bytes, bytes, bytes, bytes]) -> int:
    return parse_ack_subject(frame[1])[1]
