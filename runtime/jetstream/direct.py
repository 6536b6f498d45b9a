"""Reading a stream's messages by sequence: direct get (ADR-31), or the stream leader where that is off."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api, headers

TIMEOUT_SECONDS = 2.0


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as its stream holds it.

    Args:
        subject: where it was published.
        body: its bytes.
        header_block: its own headers, without those that the server adds on reading.
        timestamp: when it was stored, in nanoseconds since 1970.
    """

    subject: str
    body: bytes
    timestamp: int
    header_block: bytes


_SERVER_HEADERS = frozenset(
    {
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-Last-Sequence",
    }
)


async def read_message(
    client: Client, stream: str, sequence: int, *, allow_direct: bool
) -> StoredMessage | None:
    """Return a stream's message.

    Args:
        client: a connection.
        stream: the stream's name.
        sequence: the message's.
        allow_direct: the stream's setting.

    Returns:
        The message, or None if the stream no longer has it.

    Raises:
        BrokerError: the server did not answer.
    """
    if not allow_direct:
        return await _from_leader(client, stream, sequence)
    try:
        message = await client.request(
            f"$JS.API.DIRECT.GET.{stream}", json.dumps({"seq": sequence}).encode(), timeout=TIMEOUT_SECONDS
        )
    except (nats.errors.Error, TimeoutError) as error:
        raise BrokerError(f"sequence {sequence} of stream {stream} can't be read: {error}") from error
    found = message.headers or {}
    if found.get("Status") == "404":
        return None
    return StoredMessage(
        subject=found.get("Nats-Subject", ""),
        body=bytes(message.data),
        timestamp=_nanoseconds(found.get("Nats-Time-Stamp", "")),
        header_block=headers.encode({n: value for n, value in found.items() if n not in _SERVER_HEADERS}),
    )


async def _from_leader(client: Client, stream: str, sequence: int) -> StoredMessage | None:
    try:
        answer = await api.request(client, f"STREAM.MSG.GET.{stream}", {"seq": sequence})
    except api.ApiError as error:
        if error.code == api.NOT_FOUND:
            return None
        raise
    stored: dict[str, Any] = answer["message"]
    try:
        body = base64.b64decode(stored.get("data", ""))
        block = base64.b64decode(stored.get("hdrs", ""))
    except binascii.Error as error:
        raise BrokerError(f"sequence {sequence} of stream {stream} can't be read: {error}") from error
    return StoredMessage(
        subject=stored["subject"],
        body=body,
        timestamp=_nanoseconds(stored.get("time", "")),
        header_block=block,
    )


def _nanoseconds(text: str) -> int:
    # RFC 3339 in UTC with up to nine decimals, of which datetime would keep six.
    seconds, _, decimals = text.rstrip("Z").partition(".")
    try:
        moment = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
        return int(moment.timestamp()) * 1_000_000_000 + int(decimals.ljust(9, "0"))
    except ValueError:
        return 0
