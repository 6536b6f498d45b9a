"""Pinned clients: of all who pull from a sole owner's consumer, the server serves one, and says which.

JetStream's priority policy `pinned_client` (ADR-42). What it does was tried on nats-server 2.15.1: a pin is
given with a delivery, to the first request without an id; every delivery to the owner carries the id; only
the *arrival* of a request with it keeps it, not acks and not an open request; a restarted server has
forgotten it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Protocol

import nats.errors
from nats.aio.client import Client

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api, headers
from understudy.runtime.telemetry.logger import get_logger

GROUP = "owner"
_HEADER = b"Nats-Pin-Id"
# The server takes a pin away from who sends no request for so many times ack_wait. A cell that is killed for
# hanging is replaced within one.
TIMEOUT_ACK_WAITS = 2
# Answered at once, and too short-lived to be given a message.
KEEP_REQUEST: dict[str, Any] = {"batch": 1, "expires": 1}
_log = get_logger("understudy.cell")


class Ownership(Protocol):
    """What a cell does when it becomes its consumer's owner, or is it no more."""

    def owned(self, pin_id: str) -> None:
        """Hear that the consumer is ours from now on."""

    def standing_by(self, other: str) -> None:
        """Hear that another has it, by its pin id, or nobody; called again and again while we wait."""

    def was_born(self, seconds_ago: float) -> bool:
        """Return whether a pin of that age went to a cell of ours that is dead.

        The server gives a pin to the first request that waits, and doesn't know whose process has died.
        """

    async def give_back(self) -> None:
        """Give back all that is pending and not held, so that it pins someone."""

    async def lost(self, *, give_back: bool) -> None:
        """Drop what isn't being handled, since it isn't ours any more.

        Args:
            give_back: whether nobody else has given it back.
        """

    async def recover(self, in_hand: Collection[int], fetch: Callable[[int], Awaitable[None]]) -> int:
        """Give back all that is pending and neither held nor in hand, and fetch it, before anything newer.

        Args:
            in_hand: the stream sequences of deliveries that are here and not in the mailbox yet.
            fetch: asks for so many deliveries, and returns when they are in hand, or don't come.

        Returns:
            How many didn't come.
        """


class Pin:
    """A sole owner's side of its pin.

    Args:
        ownership: hears of changes.
        ack_wait_seconds: the consumer's.
        pin_id: under which a predecessor was pinned; empty if there was none.

    Attributes:
        id: under which we are pinned; empty if we aren't.
    """

    def __init__(self, ownership: Ownership, ack_wait_seconds: float, pin_id: str = "") -> None:
        self.ownership = ownership
        self._keep_seconds = TIMEOUT_ACK_WAITS * ack_wait_seconds / 3
        self._asked_at = 0.0
        self.set(pin_id)

    def set(self, pin_id: str) -> None:
        """Go on under another id, or with none."""
        self.id = pin_id
        self._line = b"%b: %b\r\n" % (_HEADER, pin_id.encode())
        # Most messages have no headers of their own.
        self._alone = b"NATS/1.0\r\n%b\r\n" % self._line

    def request(self, demand: dict[str, Any]) -> bytes:
        """Return a pull request as this cell has to make it, and makes it now."""
        self._asked_at = time.monotonic()
        return json.dumps(demand | {"group": GROUP} | ({"id": self.id} if self.id else {})).encode()

    async def keep(self, client: Client, stream: str, durable: str) -> None:
        """Keep the pin while nothing is asked for; never returns."""
        while True:
            # Most often it was asked for something not long ago.
            remaining = self._asked_at + self._keep_seconds - time.monotonic()
            await asyncio.sleep(max(remaining, self._keep_seconds / 4))
            quiet = time.monotonic() - self._asked_at
            if self.id and quiet >= self._keep_seconds and client.is_connected:
                with contextlib.suppress(nats.errors.Error):
                    await client.publish(
                        next_subject(stream, durable), self.request(KEEP_REQUEST), reply=client.new_inbox()
                    )

    async def hand_over(self, client: Client, stream: str, durable: str) -> None:
        """Give it up, so that a standby has what was given back; what is given back later may come twice."""
        try:
            await unpin(client, stream, durable, self.id)
        except BrokerError as error:
            _log.warning("not unpinned; a standby takes over when the pin has timed out", error=str(error))
        # Kept no longer.
        self.set("")

    def strip(self, block: bytes) -> bytes:
        """Return a delivery's headers as published, without the pin.

        Args:
            block: the delivery's header block.
        """
        return b"" if block == self._alone else block.replace(self._line, b"")


def next_subject(stream: str, durable: str) -> str:
    """Return where a consumer's pull requests go."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"


def read_pin(block: bytes) -> str:
    """Return the pin id that came with a delivery, empty without one."""
    # The server appends its own to what a publisher may have copied from another delivery.
    return headers.find(block[block.rfind(b"\r\n%b:" % _HEADER) :], _HEADER) or ""


def consumer_config(ack_wait_seconds: float) -> dict[str, Any]:
    """Return what makes a consumer serve one cell at a time."""
    return {
        "priority_policy": "pinned_client",
        "priority_groups": [GROUP],
        "priority_timeout": round(TIMEOUT_ACK_WAITS * ack_wait_seconds * 1_000_000_000),
    }


def misfit(durable: str, config: Mapping[str, Any], *, owned: bool) -> str:
    """Return why a cell can't work with its consumer; empty if it can.

    Another revision of the app may have changed it under a cell that runs.

    Args:
        durable: the consumer's name.
        config: as the server has it.
        owned: whether the cell has to be the consumer's one owner.
    """
    pinned = config.get("priority_policy") == "pinned_client"
    if pinned == owned:
        return ""
    has, needs = ("serves one owner", "shares it") if pinned else ("is shared", "keeps an order or state")
    return (
        f"consumer {durable} {has} by now, as another revision of the app has it, and this one {needs}; "
        "run that revision here"
    )


def pinned_id(info: dict[str, Any]) -> str:
    """Return the pin id of a consumer's owner, empty if nobody is pinned.

    Args:
        info: the server's description of the consumer.
    """
    return str(_group(info).get("pinned_client_id", ""))


def pin_age_seconds(info: dict[str, Any]) -> float:
    """Return how long ago the owner was pinned, by the server's own clock."""
    now, then = (datetime.fromisoformat(text) for text in (info["ts"], _group(info)["pinned_ts"]))
    return (now - then).total_seconds()


def _group(info: dict[str, Any]) -> dict[str, Any]:
    groups = info.get("priority_groups") or [{}]
    group: dict[str, Any] = groups[0]
    return group


async def unpin(client: Client, stream: str, durable: str, pin_id: str) -> bool:
    """Give a pin up, so that the server serves the next one at once.

    Returns:
        Whether it was still ours. (The server can't compare and unpin in one; an owner that is unpinned by
        mistake is pinned again, or has handed over.)

    Raises:
        BrokerError: the server refused or did not answer.
    """
    if not pin_id:
        return False
    info = await api.consumer_info(client, stream, durable)
    if info is None or pinned_id(info) != pin_id:
        return False
    await api.request(client, f"CONSUMER.UNPIN.{stream}.{durable}", {"group": GROUP})
    return True
