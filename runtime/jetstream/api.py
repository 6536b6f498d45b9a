"""JetStream's management API: JSON requests and answers, as ADR-1 and the server's API describe them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import nats.errors
from nats.aio.client import Client

from understudy.actors.errors import BrokerError, BrokerUnreachable

REQUEST_TIMEOUT_SECONDS = 5.0
NOT_FOUND = 404
NO_JETSTREAM = (
    "the broker has no JetStream enabled; start it as nats-server -js or with jetstream {} in its file, or "
    "use an account that has it"
)


class NoJetStream(BrokerUnreachable):
    """The broker has no JetStream, which only who runs it can enable."""

    def __init__(self) -> None:
        super().__init__(NO_JETSTREAM)


class ApiError(BrokerError):
    """JetStream answered with an error.

    Attributes:
        code: HTTP-like status.
        error_code: JetStream's own number.
        description: the server's words.
    """

    def __init__(self, subject: str, code: int, error_code: int, description: str) -> None:
        super().__init__(f"{description} ({error_code}, {subject})")
        self.code = code
        self.error_code = error_code
        self.description = description


async def request(client: Client, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask JetStream's API.

    Args:
        client: a connection.
        subject: what follows `$JS.API.`.
        body: sent as JSON.

    Returns:
        The answer.

    Raises:
        ApiError: the answer is an error.
        NoJetStream: it isn't enabled.
        BrokerUnreachable: no answer.
    """
    payload = b"" if body is None else json.dumps(body).encode()
    try:
        with _keeping_cancellation():
            message = await client.request(f"$JS.API.{subject}", payload, timeout=REQUEST_TIMEOUT_SECONDS)
    except nats.errors.NoRespondersError as error:
        raise NoJetStream from error
    except (nats.errors.Error, TimeoutError) as error:
        raise BrokerUnreachable(
            f"JetStream did not answer {subject}: {str(error) or type(error).__name__}"
        ) from error
    return read_answer(subject, message.data)


@contextlib.contextmanager
def _keeping_cancellation() -> Iterator[None]:
    """Raise a cancellation that came together with an answer.

    nats-py waits with `asyncio.wait_for`, which swallows it before Python 3.12 (python/cpython#86296): who
    asks in a loop goes on for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


def read_answer(subject: str, data: bytes) -> dict[str, Any]:
    """Return what JetStream's API has answered.

    Args:
        subject: what was asked, without `$JS.API.`.
        data: the answer's body.

    Raises:
        ApiError: the answer is an error.
    """
    answer: dict[str, Any] = json.loads(data)
    failure = answer.get("error")
    if failure is not None:
        raise ApiError(
            subject, failure.get("code", 0), failure.get("err_code", 0), failure.get("description", "")
        )
    return answer


async def stream_info(client: Client, stream: str) -> dict[str, Any] | None:
    """Return the server's description of a stream, or None if there is none."""
    return await _found(client, f"STREAM.INFO.{stream}")


async def consumer_info(client: Client, stream: str, durable: str) -> dict[str, Any] | None:
    """Return the server's description of a durable consumer, or None if there is none."""
    return await _found(client, f"CONSUMER.INFO.{stream}.{durable}")


async def list_consumers(client: Client, stream: str) -> list[dict[str, Any]]:
    """Return the server's descriptions of all consumers of a stream; none if there is no such stream."""
    found: list[dict[str, Any]] = []
    while True:
        page = await _found(client, f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        consumers = [] if page is None else page["consumers"] or []
        found += consumers
        if page is None or not consumers or len(found) >= page["total"]:
            return found


async def _found(client: Client, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    try:
        return await request(client, subject, body)
    except ApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise
