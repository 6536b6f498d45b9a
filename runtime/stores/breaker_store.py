"""The records of circuit breakers, in a NATS KV bucket whose server tells of each change.

The bucket republishes what is written on plain subjects, so that hearing of it takes no consumer: nothing has
to be kept alive or made anew, and who has lost the connection reads the few records that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from understudy.actors.errors import BrokerError

REQUEST_SECONDS = 2.0
_NO_MESSAGE = 10037
# Which the server says in two ways.
_WRONG_LAST_SEQUENCE = (10071, 10164)
_FAILURES = (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError)


class BreakerStore:
    """The records of one app's breakers.

    Args:
        client: a connection.
        bucket: the bucket's name.
        news: the subject below which it republishes.
        heard: called with the key, value and revision of each record that is written.
    """

    def __init__(
        self, client: Client, bucket: str, news: str, heard: Callable[[str, bytes, int], None]
    ) -> None:
        self._client = client
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._news = f"{news}."
        self._heard = heard
        self._jetstream: JetStreamContext = client.jetstream(timeout=REQUEST_SECONDS)

    @classmethod
    async def open(
        cls, client: Client, bucket: str, news: str, heard: Callable[[str, bytes, int], None]
    ) -> Self:
        """Hear of what is written from now on.

        Args:
            client: a connection.
            bucket: the bucket's name.
            news: the subject below which it republishes.
            heard: as of the class.
        """
        store = cls(client, bucket, news, heard)
        await client.subscribe(f"{news}.>", cb=store._on_news)
        return store

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands."""
        return bool(self._client.is_connected)

    async def read(self, key: str) -> tuple[bytes | None, int]:
        """Return a key's value, None if it has none, and its revision, 0 if it never had one.

        Raises:
            BrokerError: the bucket is gone, or did not answer.
        """
        try:
            # Of the stream's leader: another replica may not have the last one yet.
            message = await self._jetstream.get_last_msg(self._stream, self._prefix + key)
        except nats.js.errors.NotFoundError as error:
            if error.err_code == _NO_MESSAGE:
                return None, 0
            raise BrokerError(f"the breakers can't be read: {error}") from error
        except _FAILURES as error:
            raise BrokerError(f"the breakers can't be read: {str(error) or type(error).__name__}") from error
        deleted = bool(message.headers and message.headers.get("KV-Operation"))
        return None if deleted else message.data, message.seq or 0

    async def write(self, key: str, value: bytes, revision: int) -> int | None:
        """Write a key's value if it still has this revision.

        Returns:
            The new revision; None if it has another one.

        Raises:
            BrokerError: the bucket is gone, or did not answer.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            ack = await self._jetstream.publish(self._prefix + key, value, headers=headers)
        except nats.js.errors.APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                return None
            raise BrokerError(f"the breakers can't be written: {error}") from error
        except _FAILURES as error:
            raise BrokerError(
                f"the breakers can't be written: {str(error) or type(error).__name__}"
            ) from error
        return ack.seq

    async def _on_news(self, message: Msg) -> None:
        headers = message.headers or {}
        sequence = headers.get("Nats-Sequence", "")
        # What isn't the server's own word has none; a deletion is heard of when the next one writes.
        if sequence.isdecimal() and "KV-Operation" not in headers and message.data:
            self._heard(message.subject.removeprefix(self._news), message.data, int(sequence))
