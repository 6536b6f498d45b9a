"""Settling deliveries: ack, nak, term, in_progress, by the words that ADR-15 gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client

from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.telemetry.logger import get_logger

# How the subjects of all acks begin.
ACKS = "$JS.ACK."
CONFIRM_TIMEOUT_SECONDS = 2.0
# So many are written at once: naks between two turns of the event loop, and acks, of which each write wakes
# the server up: by twenties, a drain is slower by a quarter to a half (tried).
BURST = 64
# So long an ack waits for others.
ACK_DELAY_SECONDS = 0.005
_log = get_logger("understudy.settlement")


def ack_prefix(stream: str, durable: str) -> bytes:
    """Return how the reply subjects of a consumer's deliveries begin, on a server that is in no domain.

    After it come delivery count, stream sequence, consumer sequence, timestamp and pending count.
    """
    return f"{ACKS}{stream}.{durable}.".encode()


def ack_subject(
    stream: str, durable: str, *, delivery_count: int, sequence: int, consumer_sequence: int
) -> bytes:
    """Return the subject on which a delivery is settled, made anew from what a ledger holds.

    The server accepts zeros for timestamp and pending count, and finds the delivery by its stream sequence.
    It ignores a nak, though, whose consumer sequence lies outside of what is delivered above the ack floor
    (tried on 2.15.1). The last delivered one is inside for as long as the delivery is pending.

    Args:
        stream: the consumer's stream.
        durable: the consumer.
        delivery_count: how often the server had delivered it.
        sequence: the stream sequence.
        consumer_sequence: the consumer's last delivered sequence, or any that came after this delivery.
    """
    return ack_prefix(stream, durable) + f"{delivery_count}.{sequence}.{consumer_sequence}.0.0".encode()


def parse_ack_subject(reply: bytes) -> tuple[int, int, int]:
    """Return delivery count, stream sequence and timestamp (ns since 1970) of a delivery's reply subject.

    Both forms are read: nine tokens, and the longer one with domain and account hash.
    """
    tokens = reply.split(b".")
    first = 4 if len(tokens) == 9 else 6
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3])


class Settlement:
    """Writes settlements to a connection.

    All but `ack_confirmed` and `nak_in_order` are fire and forget: what the server doesn't get, it delivers
    again, so a broken connection is logged and no reason to fail. Acks are collected, and written together
    when there are enough of them, when the oldest has waited for `ACK_DELAY_SECONDS`, or before anything else
    that this writes.

    Args:
        client: a connection.
        acked: called each time that collected acks were written, which may be within `ack`.
        burst: how many acks are enough. Their room in the mailbox isn't asked for before they are written, so
            that a small one can't wait for many.
    """

    def __init__(
        self, client: Client, acked: Callable[[], None] = lambda: None, *, burst: int = BURST
    ) -> None:
        self._client = client
        self._acked = acked
        self._burst = burst
        self._acks: list[bytes] = []
        self._oldest_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._fails = False
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def ack(self, reply: bytes) -> None:
        """Say that the delivery is done with."""
        acks = self._acks
        acks.append(reply)
        count = len(acks)
        if count == self._burst:
            self.write()
        elif count == 1:
            self._begin_delay()

    def ack_all(self, replies: Sequence[bytes]) -> None:
        """Say that deliveries are done with."""
        if not self._acks:
            self._begin_delay()
        self._acks += replies
        if len(self._acks) >= self._burst:
            self.write()

    def write(self) -> None:
        """Write the acks that were collected, now or as soon as the lane can."""
        if not self._acks:
            return
        if isinstance(self._client, FastClient):
            self._write_acks(self._client)
        else:
            self._task = self._loop.create_task(self._publish_acks(), name="understudy-acks")

    async def flush(self) -> None:
        """Write the acks that were collected; returns when they come before whatever is written next."""
        if isinstance(self._client, FastClient):
            self._write_acks(self._client)
        else:
            await self._publish_acks()

    async def ack_confirmed(self, reply: bytes) -> bool:
        """Say that the delivery is done with, and return whether the server has confirmed that."""
        return await self._request(reply, b"")

    async def nak(self, reply: bytes, delay_seconds: float = 0.0) -> None:
        """Give the delivery back.

        Args:
            reply: the delivery's reply subject.
            delay_seconds: how long the server keeps it before it delivers it again.
        """
        await self._write(reply, _nak(delay_seconds))

    async def term(self, reply: bytes, reason: str) -> None:
        """Say that the delivery is never to come again.

        Args:
            reply: the delivery's reply subject.
            reason: goes into the server's advisory; shortened to one line.
        """
        line = " ".join(reason.split())[:200]
        await self._write(reply, f"+TERM {line}".encode())

    async def in_progress(self, reply: bytes) -> None:
        """Begin the delivery's `ack_wait` anew."""
        await self._write(reply, b"+WPI")

    async def nak_in_order(self, replies: Iterable[bytes]) -> bool:
        """Give deliveries back at once, so that the server delivers them again in this order.

        A consumer works off its acks in the order in which one connection sent them, so the last one's
        confirmation stands for all.

        Args:
            replies: reply subjects, by ascending stream sequence.

        Returns:
            Whether the server confirmed it.
        """
        previous = None
        try:
            for number, reply in enumerate(replies, start=1):
                if previous is not None:
                    # What was done meanwhile may be among them: the server must see its ack first.
                    if self._acks:
                        await self.flush()
                    await self._client.publish(previous.decode(), b"-NAK")
                previous = reply
                if number % BURST == 0:
                    await asyncio.sleep(0)
        except nats.errors.Error as error:
            self._warn("naks not written", error=str(error))
            return False
        if previous is None:
            await self.flush()
            return True
        return await self._request(previous, b"-NAK")

    def _begin_delay(self) -> None:
        self._oldest_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(ACK_DELAY_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._acks:
            return
        remaining = self._oldest_at + ACK_DELAY_SECONDS - self._loop.time()
        if remaining > 0:
            # Others were written since the timer was set.
            self._timer = self._loop.call_later(remaining, self._look)
        else:
            self.write()

    def _write_acks(self, client: FastClient) -> None:
        if not self._acks:
            return
        acks, self._acks = self._acks, []
        frames = b"PUB " + b" 0\r\n\r\nPUB ".join(acks) + b" 0\r\n\r\n"
        try:
            try:
                client.write_now(frames)
            except nats.errors.ConnectionClosedError:
                # They wait for the next connection, if there is to be one.
                client.write(frames)
            self._fails = False
        except nats.errors.Error as error:
            self._warn("acks not written", acks=len(acks), error=str(error))
        self._acked()

    async def _publish_acks(self) -> None:
        async with self._writing:
            acks, self._acks = self._acks, []
            for reply in acks:
                await self._publish(reply, b"")
        if acks:
            self._acked()

    async def _write(self, reply: bytes, body: bytes) -> None:
        await self.flush()
        await self._publish(reply, body)

    async def _publish(self, reply: bytes, body: bytes) -> None:
        try:
            await self._client.publish(reply.decode(), body)
            self._fails = False
        except nats.errors.Error as error:
            self._warn(
                "settlement not written", reply=reply.decode(), body=body.decode()[:8], error=str(error)
            )

    def _warn(self, event: str, **details: Any) -> None:
        """Log the first of a row of failures; after a connection's end, all that is settled fails alike."""
        (_log.debug if self._fails else _log.warning)(event, **details)
        self._fails = True

    async def _request(self, reply: bytes, body: bytes) -> bool:
        await self.flush()
        try:
            await self._client.request(reply.decode(), body, timeout=CONFIRM_TIMEOUT_SECONDS)
            self._fails = False
        except (nats.errors.Error, TimeoutError) as error:
            self._warn(
                "settlement not confirmed", reply=reply.decode(), body=body.decode()[:8], error=str(error)
            )
            return False
        return True


def _nak(delay_seconds: float) -> bytes:
    if delay_seconds <= 0:
        return b"-NAK"
    return b'-NAK {"delay": %d}' % round(delay_seconds * 1_000_000_000)
