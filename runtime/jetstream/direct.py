"""Reading single messages of a stream: direct get (ADR-31), or the stream leader where that is off."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api, headers

# How long the server may answer nothing at all while it is asked for something.
TIMEOUT_SECONDS = 2.0
IN_FLIGHT = 64
IN_FLIGHT_BYTES = 8 * 1024 * 1024


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
        BrokerError: the server did not answer, or with an error.
    """
    (stored,) = [one async for one in read_messages(client, stream, [sequence], allow_direct=allow_direct)]
    return stored


async def read_messages(
    client: Client,
    stream: str,
    wanted: Sequence[int | str],
    *,
    allow_direct: bool,
    max_bytes: int = IN_FLIGHT_BYTES,
) -> AsyncGenerator[StoredMessage | None]:
    """Yield a stream's messages in the order in which they are wanted, asking for many side by side.

    Who doesn't take all of them closes the generator.

    Args:
        client: a connection.
        stream: the stream's name.
        wanted: sequences, or subjects of which the last message is meant.
        allow_direct: the stream's setting.
        max_bytes: how much may be on its way, in bytes of bodies; one body always may. Nobody knows the size
            of the next ones, so each is taken to be as large as the largest so far, and the first ones as
            large as the server allows.

    Yields:
        The message, or None if the stream doesn't have it.

    Raises:
        BrokerError: the server did not answer, or with an error.
    """
    subject = f"DIRECT.GET.{stream}" if allow_direct else f"STREAM.MSG.GET.{stream}"
    read = _from_direct if allow_direct else _from_leader
    inbox = client.new_inbox()
    answers: dict[int, Msg] = {}
    came = asyncio.Event()

    async def on_answer(answer: Msg) -> None:
        answers[int(answer.subject.rpartition(".")[2])] = answer
        came.set()

    asked = 0
    largest = client.max_payload
    try:
        subscription = await client.subscribe(f"{inbox}.*", cb=on_answer)
    except nats.errors.Error as error:
        raise BrokerError(f"stream {stream} can't be read: {error}") from error
    try:
        for number, which in enumerate(wanted):
            try:
                at_once = max(1, min(IN_FLIGHT, max_bytes // max(1, largest)))
                while asked < min(number + at_once, len(wanted)):
                    await client.publish(
                        f"$JS.API.{subject}", _request(wanted[asked]), reply=f"{inbox}.{asked}"
                    )
                    asked += 1
                while number not in answers:
                    came.clear()
                    # Anew for each answer: together they may take as long as a slow network needs.
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        await came.wait()
                stored = read(subject, answers.pop(number))
            except (nats.errors.Error, TimeoutError, binascii.Error) as error:
                what = f"sequence {which}" if isinstance(which, int) else f"the last message of {which}"
                why = str(error) or "no answer"
                raise BrokerError(f"{what} of stream {stream} can't be read: {why}") from error
            size = 0 if stored is None else len(stored.body)
            largest = size if number == 0 else max(largest, size)
            yield stored
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()


def _request(which: int | str) -> bytes:
    return json.dumps({"seq": which} if isinstance(which, int) else {"last_by_subj": which}).encode()


def _from_direct(subject: str, answer: Msg) -> StoredMessage | None:
    found = answer.headers or {}
    # Only what is stored has one. A status alone proves nothing: messages may have a header of that name.
    if "Nats-Sequence" not in found:
        status = found.get("Status", "")
        if status == "404":
            return None
        raise BrokerError(
            f"the server answered {subject} with {status} {found.get('Description', '')}".strip()
        )
    return StoredMessage(
        subject=found.get("Nats-Subject", ""),
        body=bytes(answer.data),
        timestamp=_nanoseconds(found.get("Nats-Time-Stamp", "")),
        header_block=headers.encode({n: value for n, value in found.items() if n not in _SERVER_HEADERS}),
    )


def _from_leader(subject: str, answer: Msg) -> StoredMessage | None:
    if not answer.data:
        raise BrokerError(f"the server answered {subject} with nothing, as if it had no JetStream")
    try:
        stored: dict[str, Any] = api.read_answer(subject, answer.data)["message"]
    except api.ApiError as error:
        if error.code == api.NOT_FOUND:
            return None
        raise
    return StoredMessage(
        subject=stored["subject"],
        body=base64.b64decode(stored.get("data", "")),
        timestamp=_nanoseconds(stored.get("time", "")),
        header_block=base64.b64decode(stored.get("hdrs", "")),
    )


def _nanoseconds(text: str) -> int:
    # RFC 3339 in UTC with up to nine decimals, of which datetime would keep six.
    seconds, _, decimals = text.rstrip("Z").partition(".")
    try:
        moment = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
        return int(moment.timestamp()) * 1_000_000_000 + int(decimals.ljust(9, "0"))
    except ValueError:
        return 0
