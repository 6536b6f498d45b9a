"""A pull subscription whose demand is what its mailbox can hold, and never more.

Up to two pull requests are open at a time, each under an inbox of its own, so that every delivery and status
frame says by its subscription which request it answers: what is outstanding, in messages and bytes, is known
exactly. While one request is being filled, the other asks for what has been settled since. Without the fast
lane there is one: nats-py has a task for each subscription, and two would lose the order.

A sole owner's subscription is a candidate first: it asks for one message at a time, without an id, and is the
owner from the delivery on that pins it. Then all that is unsettled comes again before anything newer.
Protocol: NATS ADR-13, ADR-37, ADR-42.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api, headers
from understudy.runtime.jetstream.changes import NANOSECONDS
from understudy.runtime.jetstream.fast_lane import FastClient, Receiver
from understudy.runtime.jetstream.inbox import Inbox
from understudy.runtime.jetstream.pinning import (
    Pin,
    misfit,
    next_subject,
    pin_age_seconds,
    pinned_id,
    read_pin,
    unpin,
)
from understudy.runtime.jetstream.pull_request import (
    LOST_AFTER_SECONDS,
    REQUESTS,
    Demand,
    PullRequest,
    Room,
)
from understudy.runtime.jetstream.recovery import Gathering
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.telemetry.logger import get_logger

# Short, because a drain waits until every request is filled or has expired. It also stands in for idle
# heartbeats: a request is answered within it, or was lost.
EXPIRES_SECONDS = 1.0
# The same while nothing comes: what an idle cell costs is mostly to ask again.
IDLE_EXPIRES_SECONDS = 2.0
# So many requests in a row have brought nothing until then.
IDLE_AFTER_REQUESTS = 3
RETRY_SECONDS = 0.25
# So often a standby looks whether there is an owner, and an owner whether it still is.
LOOK_SECONDS = 2.0
IDLE_LOOK_SECONDS = 8.0
# An open request is told of its consumer's end. Without one for so long, the consumer is looked at before it
# is asked again: it may be another of the same name.
UNHEARD_SECONDS = 0.1
WARN_AGAIN_SECONDS = 60.0
# So much later than we ask the server may hear it.
LATE_SECONDS = 0.1
# So long it leaves a consumer whose owner the server has forgotten to that owner.
GRACE_SECONDS = 1.0
_log = get_logger("understudy.subscription")


class PullSubscription:
    """Asks a durable consumer for as much as there is room for.

    Args:
        client: a connection; the subscription must hear by `disconnected` and `reconnected` how it fares.
        stream, durable: the consumer.
        created: when it was made, as the server says: another one of its name isn't ours.
        room: the mailbox's free space.
        settlement: whose acks are written before the room that they made is asked for again.
        deliver: called in the event loop with each delivery's subject, reply subject, header block and body;
            may not block or raise.
        failed: called if the consumer is gone for good.
        pin: a sole owner's; None for a consumer that many may share.
        lanes: how many deliveries may be handled at once; as long as they have no more, any room is worth a
            request.
        expired: called in the event loop each time the time of a request was up before it was filled; may not
            block or raise.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        durable: str,
        created: str,
        room: Room,
        settlement: Settlement,
        deliver: Receiver,
        failed: Callable[[BrokerError], None],
        pin: Pin | None = None,
        lanes: int = 1,
        expired: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._next = next_subject(stream, durable)
        self._stream = stream
        self._durable = durable
        self._created = created
        self._room = room
        self._demand = Demand(room, lanes)
        self._settlement = settlement
        self._deliver = deliver
        self._failed = failed
        self._pin = pin
        self._expired = expired
        self._requests: list[PullRequest] = []
        self._epoch = 0
        self._connected = client.is_connected
        # When a request last ended, or the consumer was looked at.
        self._heard_at = 0.0
        self._not_before = 0.0
        self._warned_at: dict[str, float] = {}
        # What the consumer's configuration allows a request at most.
        self._max_expires_seconds = IDLE_EXPIRES_SECONDS
        # How many requests in a row have brought nothing.
        self._in_vain = 0
        # Of an owner that was just pinned or has reconnected, until all that came again is there.
        self._gathered: Gathering | None = None
        # Of a sole owner's consumer: who is pinned, as far as we know.
        self._owner = ""
        # Whether requests waited there when we looked, and when the last one that we gave up ends by itself.
        self._others_wait = False
        self._closed_requests_end_at = 0.0
        # Whether a request was refused since we looked.
        self._refused = False
        self._look_at = 0.0
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
        if self._demand.is_worth_it():
            self._changed.set()

    @property
    def credit(self) -> int:
        """How many deliveries were asked for and have not come yet."""
        return self._demand.outstanding()

    def is_unasked(self) -> bool:
        """Return whether nothing is asked for, so that nothing comes before something is settled."""
        return self._demand.outstanding() == 0

    def pause(self) -> None:
        """Ask for nothing more; what was asked for may still arrive."""
        self._paused = True

    def resume(self) -> None:
        """Ask again."""
        self._paused = False
        self._changed.set()

    def disconnected(self) -> None:
        """Give up the inboxes, before the connection is back.

        nats-py subscribes again to what it knows and writes what waits, and a request among that would bring
        deliveries that overtake the lost ones.
        """
        self._connected = False
        self._epoch += 1
        self._changed.set()

    def reconnected(self) -> None:
        """Begin again under new inboxes: the old ones' requests may live on in the server."""
        self._connected = True
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
        deadline = time.monotonic() + IDLE_EXPIRES_SECONDS + LOST_AFTER_SECONDS
        while self._demand.outstanding() > 0 and self._client.is_connected:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                _log.warning(
                    "pull requests were not answered",
                    durable=self._durable,
                    messages=self._demand.outstanding(),
                )
                break
            self._changed.clear()
            await self._wait_for_change(remaining)
        if self._task is not None:
            self._task.cancel()
        if self._gathered:
            # Older ones of the same keys may not have come.
            await self._settlement.nak_in_order(reply for _, reply, _, _ in self._gathered.in_order())
        await self._close_inboxes()

    async def _refill_loop(self) -> None:
        epoch = -1
        while True:
            # Cleared before looking, so that what happens while the request is sent isn't missed.
            self._changed.clear()
            try:
                if not self._connected:
                    # What is in hand comes again with the rest.
                    self._gathered = None
                    await self._close_inboxes()
                elif epoch != self._epoch and not self._stopping:
                    epoch = self._epoch
                    await self._open_inboxes()
                elif self._gathered is not None and not self._stopping:
                    # Pinned by the delivery that is in hand.
                    await self._recover()
                if epoch != self._epoch and self._connected and not self._stopping:
                    # Reconnected meanwhile: what was just asked and given back may be lost.
                    continue
                wait = await self._refill()
            except (nats.errors.Error, BrokerError, TimeoutError) as error:
                # Disconnected, most likely: begin again when the connection is back.
                _log.debug("pull request not sent", durable=self._durable, error=str(error))
                self._gathered = None
                wait = RETRY_SECONDS if epoch == self._epoch else 0.0
                epoch = -1
            await self._wait_for_change(wait)

    async def _wait_for_change(self, seconds: float) -> None:
        # Not wait_for: Python 3.11's swallows a cancellation that comes together with the change.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _refill(self) -> float:
        """Send requests while there is demand, and return when to look again at the latest, in seconds."""
        if self._stopping or not self._requests or not self._client.is_connected:
            return RETRY_SECONDS
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        waiting = [request for request in self._requests if request.outstanding > 0]
        overdue = [request for request in waiting if now > request.lost_at]
        if overdue and overdue != waiting:
            # To begin again now would strand what the other request is being sent.
            return LOST_AFTER_SECONDS
        unheard = not waiting and now - self._heard_at > UNHEARD_SECONDS and self._wanted() is not None
        if overdue or unheard:
            await self._look_up()
            if any(request.outstanding > 0 for request in overdue):
                # The answer came behind all that was on its way, so these are not just still unread.
                self._warn("a pull request was lost", messages=self._demand.outstanding())
                self._epoch += 1
            return 0.0
        if self._is_candidate():
            return await self._stand_by(now)
        if self._pin is not None and now >= self._look_at and self._demand.outstanding() == 0:
            # The server tells only who asks that another is pinned, and nobody that none is.
            await self.look_for_owner()
            if self._is_candidate():
                return 0.0
        for request in self._requests:
            if request.outstanding == 0:
                demand = self._wanted()
                if demand is None:
                    break
                await self._ask(request, demand)
        # Its expiry comes before; only one that is lost has to be looked for.
        return min((one.lost_at - now for one in self._requests if one.outstanding > 0), default=LOOK_SECONDS)

    async def _look_up(self) -> dict[str, Any] | None:
        """Learn what the consumer allows, and fail if it isn't there or isn't the one that we know.

        Returns:
            The server's description of it, None if it failed.
        """
        info = await api.consumer_info(self._client, self._stream, self._durable)
        if info is None:
            self._gone()
            return None
        if info["created"] != self._created:
            self._fail(
                f"consumer {self._durable} was deleted and made again; "
                "what this cell holds is not the new one's, and the restarted cell begins with that"
            )
            return None
        config = info["config"]
        if problem := misfit(self._durable, config, owned=self._pin is not None):
            self._fail(problem)
            return None
        self._demand.allow(config.get("max_batch"), config.get("max_bytes"))
        max_expires = config.get("max_expires")
        self._max_expires_seconds = max_expires / NANOSECONDS if max_expires else IDLE_EXPIRES_SECONDS
        self._heard_at = time.monotonic()
        self._refused = False
        return info

    def _is_idle(self) -> bool:
        return self._in_vain >= IDLE_AFTER_REQUESTS

    def _is_candidate(self) -> bool:
        return self._pin is not None and not self._pin.id

    async def _stand_by(self, now: float) -> float:
        """Ask for the one message that would make us the owner."""
        if now >= self._look_at:
            await self.look_for_owner()
            if not self._is_candidate():
                # Pinned meanwhile.
                return 0.0
        if self._requests[0].outstanding == 0 and not self._paused:
            demand = self._demand.of_one()
            if demand is not None:
                await self._ask(self._requests[0], demand)
        return self._look_at - now

    async def _ask(self, request: PullRequest, demand: dict[str, Any]) -> None:
        seconds = min(IDLE_EXPIRES_SECONDS if self._is_idle() else EXPIRES_SECONDS, self._max_expires_seconds)
        request.open(demand["batch"], demand.get("max_bytes", 0), seconds)
        # The server must see the acks first: their room is what is asked for.
        await self._settlement.flush()
        demand = demand | {"expires": round(seconds * NANOSECONDS)}
        body = json.dumps(demand).encode() if self._pin is None else self._pin.request(demand)
        await self._client.publish(self._next, body, reply=request.reply)

    def _wanted(self) -> dict[str, Any] | None:
        """Return what to ask for, or None if nothing is to be asked for now."""
        return None if self._paused else self._demand.of_many()

    def _receiver(self, request: PullRequest) -> Receiver:
        deliver, pin, demand = self._deliver, self._pin, self._demand

        def receive(subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
            if not reply:
                self._on_status(request, subject, block)
                return
            if pin is not None:
                if not pin.id and (pin_id := read_pin(block)):
                    pin.set(pin_id)
                    self._gathered = Gathering(demand)
                block = pin.strip(block)
            # As the server counts, which ends a request that this fills exactly without a word.
            request.reserved -= len(subject) + len(reply) + len(block) + len(body)
            request.outstanding -= 1
            demand.too_few_bytes = 0
            if request.outstanding <= 0 or request.reserved == 0:
                self._in_vain = 0
                self._end(request)
            if self._gathered is None:
                deliver(subject, reply, block, body)
            else:
                self._gathered.add((subject, reply, block, body))

        return receive

    def _on_status(self, request: PullRequest, subject: bytes, block: bytes) -> None:
        code, description = headers.status(block)
        if code == "100":
            return
        if subject != request.reply.encode() or request.outstanding <= 0:
            # Of a request that was filled: it came late, or says that its bytes weren't.
            return
        if code == "423" and self._pin is not None:
            # Unpinned, by time or by hand: look who has it now.
            self._pin.set("")
            self._epoch += 1
        elif description == "Consumer Deleted":
            self._gone()
        elif description == "Consumer is push based" or code == "400":
            self._fail(f"consumer {self._durable} can't be pulled from: {description}")
        elif description.startswith("Message Size Exceeds"):
            self._demand.too_few_bytes = max(self._demand.too_few_bytes, request.reserved)
        elif description == "Request Timeout":
            # Some consumers let no request wait for long.
            self._not_before = max(self._not_before, request.opened_at + RETRY_SECONDS)
        elif description != "Batch Completed":
            self._warn("pull request ended", status=code, description=description)
            # Long enough that the consumer is looked at then: it may be gone, or allow less than it did.
            self._not_before = time.monotonic() + RETRY_SECONDS
            self._refused = True
        # So many won't come. The others may, after it, from a consumer with replicas.
        brought_nothing = request.outstanding == request.asked
        pending = headers.find(block, b"Nats-Pending-Messages") or ""
        request.outstanding -= int(pending) if pending.isdigit() else request.outstanding
        if request.outstanding <= 0:
            self._end(request)
        if description == "Request Timeout":
            self._in_vain = self._in_vain + 1 if brought_nothing else 0
            self._expired()

    def _end(self, request: PullRequest) -> None:
        request.end()
        self._heard_at = time.monotonic()
        self._changed.set()

    def _warn(self, event: str, **details: Any) -> None:
        """Log a warning, but not the same one over and over."""
        key = f"{event} {details.get('description')}"
        now = time.monotonic()
        again = now - self._warned_at.get(key, -WARN_AGAIN_SECONDS) < WARN_AGAIN_SECONDS
        if not again:
            self._warned_at[key] = now
        (_log.debug if again else _log.warning)(event, durable=self._durable, **details)

    def _gone(self) -> None:
        self._fail(
            f"consumer {self._durable} is gone from the server; 'understudy run' makes it again, "
            "and a new one starts where the actor's 'start' says"
        )

    def _fail(self, problem: str) -> None:
        if not self._stopping:
            self._stopping = True
            self._failed(BrokerError(problem))

    async def _open_inboxes(self) -> None:
        await self._close_inboxes()
        stood_by = self._owner not in ("", "" if self._pin is None else self._pin.id)
        await (self._look_up() if self._pin is None else self.look_for_owner())
        if self._stopping:
            return
        # The broker was restarted: who was the owner may still be, and comes back as we do.
        self._not_before = time.monotonic() + GRACE_SECONDS if stood_by and not self._owner else 0.0
        self._in_vain = 0
        count = REQUESTS if isinstance(self._client, FastClient) else 1
        self._requests = [PullRequest(Inbox(self._client)) for _ in range(count)]
        self._demand.requests = self._requests
        for request in self._requests:
            await request.inbox.open(self._receiver(request))
        if self._pin is not None and self._pin.id:
            self._gathered = Gathering(self._demand)
            if self._others_wait:
                # The server may not know yet that our last connection is gone, and lose deliveries to it.
                await asyncio.sleep(max(0.0, self._closed_requests_end_at - time.monotonic()))
            await self._recover()

    async def look_for_owner(self) -> None:
        """Find out whether the consumer is ours, another's or nobody's."""
        pin = self._pin
        assert pin is not None
        seconds = IDLE_LOOK_SECONDS if self._is_idle() else LOOK_SECONDS
        self._look_at = time.monotonic() + (RETRY_SECONDS if pin.ownership.was_born(0.0) else seconds)
        info = await self._look_up()
        if info is None:
            return
        self._owner = other = pinned_id(info)
        self._others_wait = info["num_waiting"] > 0
        if pin.id and other == pin.id:
            return
        if other and pin.ownership.was_born(pin_age_seconds(info)):
            _log.info("unpinning a dead cell", durable=self._durable)
            await unpin(self._client, self._stream, self._durable, other)
            await pin.ownership.give_back()
            self._owner = other = ""
        if self._gathered is None:
            pin.set("")
            # The owner has given back what it didn't hold, and that is what we hold.
            await pin.ownership.lost(give_back=not other)
            pin.ownership.standing_by(other)
            if not self._room.is_empty():
                # What was being handled may fail, and is then not ours to try again.
                self._look_at = time.monotonic() + RETRY_SECONDS

    async def _recover(self) -> None:
        """Have all that is unsettled and not held come again, and deliver it in stream order.

        Raises:
            BrokerError: we were unpinned, disconnected or refused; the owner has all of it come again.
        """
        assert self._pin is not None
        assert self._gathered is not None
        ownership, gathered, epoch = self._pin.ownership, self._gathered, self._epoch

        def go_on() -> None:
            if epoch != self._epoch:
                raise BrokerError("unpinned or disconnected during the recovery")

        async def ask(demand: dict[str, Any]) -> None:
            go_on()
            in_hand = len(gathered)
            await self._ask(self._requests[0], demand)
            await self._answered(self._requests[0])
            if self._refused and len(gathered) == in_hand:
                raise BrokerError("the consumer was not asked as it wants to be")

        async def fetch(missing: int) -> None:
            await gathered.fetch(missing, ask)
            go_on()

        self._owner = self._pin.id
        ownership.owned(self._pin.id)
        missing = await ownership.recover(gathered, fetch)
        go_on()
        if missing:
            _log.warning("redeliveries did not come", durable=self._durable, messages=missing)
        self._gathered = None
        for frame in gathered.in_order():
            self._deliver(*frame)

    async def _answered(self, request: PullRequest) -> None:
        epoch = self._epoch
        while request.outstanding > 0 and epoch == self._epoch and time.monotonic() < request.lost_at:
            await self._wait_for_change(LOST_AFTER_SECONDS)
            self._changed.clear()

    async def _close_inboxes(self) -> None:
        requests, self._requests = self._requests, []
        self._demand.requests = ()
        for request in requests:
            if request.outstanding > 0:
                # Whichever was made last; the server may have had it a moment later.
                ends_at = request.expires_at + LATE_SECONDS
                self._closed_requests_end_at = max(self._closed_requests_end_at, ends_at)
            try:
                await request.inbox.close()
            except nats.errors.Error as error:
                _log.debug("inbox not closed", durable=self._durable, error=str(error))
