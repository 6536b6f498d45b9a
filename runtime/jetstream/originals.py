"""Where dead letters came from: streams and consumers, and the bodies that the letters left out."""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client

from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.direct import read_message
from understudy.runtime.jetstream.stored_letters import StoredLetter


class Originals:
    """Asks the server about each stream and consumer once.

    Args:
        client: a connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._streams: dict[str, dict[str, Any] | None] = {}
        self._consumers: dict[tuple[str, str], dict[str, Any] | None] = {}

    async def stream(self, name: str) -> dict[str, Any] | None:
        """Return the server's description of a stream, or None if there is none.

        Raises:
            BrokerError: the server did not answer.
        """
        if name not in self._streams:
            self._streams[name] = await api.stream_info(self._client, name)
        return self._streams[name]

    async def consumer(self, stream: str, durable: str) -> dict[str, Any] | None:
        """Return the server's description of a consumer of a stream that is there, or None.

        Raises:
            BrokerError: the server did not answer.
        """
        if (stream, durable) not in self._consumers:
            self._consumers[stream, durable] = await api.consumer_info(self._client, stream, durable)
        return self._consumers[stream, durable]

    async def body(self, letter: StoredLetter) -> bytes | None:
        """Return the original's body, from its stream if the letter left it out; None if it is gone.

        Args:
            letter: read with its body.

        Raises:
            BrokerError: the server did not answer.
        """
        if not letter.is_body_left_out:
            return letter.body or b""
        stream = await self.stream(letter.stream) if letter.stream else None
        # Another stream of that name has other messages.
        if stream is None or letter.stream_created not in ("", stream["created"]):
            return None
        direct = bool(stream["config"].get("allow_direct"))
        stored = await read_message(self._client, letter.stream, letter.sequence, allow_direct=direct)
        return stored.body if stored is not None and stored.subject == letter.subject else None
