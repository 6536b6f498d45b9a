"""The states of an actor in a NATS KV bucket, which change only by compare-and-set."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from understudy.actors.errors import BrokerError, DecodeError, PublishError
from understudy.runtime.stores.buckets import open_bucket

LOAD_TIMEOUT_SECONDS = 2.0
# What a key may be as it is. All other names begin with '=', so that no two keys have the same.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_MAX_NAME_BYTES = 192
# The state of an actor without key.
WHOLE_ACTOR = "="
# "wrong last sequence", which the server says in two ways.
_CONFLICTS = (10071, 10164)
_NO_MESSAGE = 10037
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Stored(msgspec.Struct, frozen=True):
    """What is stored under a name.

    Args:
        revision: its sequence in the bucket's stream, 0 if there never was anything.
        body: None if there is nothing.
    """

    revision: int
    body: bytes | None


class Conflict(Exception):
    """Another has written since it was read, or we have and the answer was lost."""


class Ack(Protocol):
    """A stream's word that it has a message."""

    @property
    def seq(self) -> int:
        """The message's sequence."""


class Window(Protocol):
    """Publishes with acknowledgement."""

    def submit(self, subject: str, body: bytes, headers: bytes) -> asyncio.Future[Any]:
        """Publish one message; the future has an Ack, or a PublishError if no stream has it."""
        ...


class StateStore:
    """The states of one durable's actor.

    Args:
        client: a connection.
        window: publishes over it.
        bucket: the app's bucket, which exists.
        durable: names the actor's states in it.
    """

    def __init__(self, client: Client, window: Window, bucket: str, durable: str) -> None:
        self._client = client
        self._window = window
        self._bucket = bucket
        self._durable = durable
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}.{durable}."

    @classmethod
    async def open(cls, client: Client, window: Window, bucket: str, durable: str) -> StateStore:
        """Bind to the bucket, which exists; the arguments are the class's.

        Raises:
            BrokerError: there is no such bucket, or the server did not answer.
        """
        await open_bucket(client, bucket)
        return cls(client, window, bucket, durable)

    async def load(self, name: str, *, from_leader: bool) -> Stored:
        """Read a state.

        Args:
            name: the key's, see `name_of`.
            from_leader: whether it must be the newest; any replica may answer otherwise.

        Raises:
            BrokerError: the server did not answer, or the bucket is gone.
        """
        subject = self._prefix + name
        if from_leader:
            return await self._from_leader(subject)
        try:
            answer = await self._client.request(
                f"$JS.API.DIRECT.GET.{self._stream}.{subject}", timeout=LOAD_TIMEOUT_SECONDS
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerError(
                f"state {subject} can't be read: {str(error) or type(error).__name__}"
            ) from error
        headers = answer.headers or {}
        if headers.get("Status") == "404":
            return Stored(0, None)
        try:
            revision = int(headers["Nats-Sequence"])
        except (KeyError, ValueError) as error:
            raise _unread(subject, error) from error
        return Stored(revision, None if "KV-Operation" in headers else bytes(answer.data))

    def place_of(self, name: str) -> tuple[str, str]:
        """Return the bucket in which a state is, and its key there."""
        return self._bucket, f"{self._durable}.{name}"

    def commit(self, name: str, revision: int, body: bytes) -> asyncio.Future[Ack]:
        """Have a state stored if nobody else has since it was read.

        Args:
            name: the key's.
            revision: of what was read.
            body: what is to be stored.

        Returns:
            What `revision_of` understands, when the server has answered.

        Raises:
            BrokerError: it can't be written.
        """
        header = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n\r\n" % revision
        try:
            return self._window.submit(self._prefix + name, body, header)
        except PublishError as error:
            raise BrokerError(f"state not committed: {error}") from error

    async def _from_leader(self, subject: str) -> Stored:
        try:
            message = await self._client.jetstream().get_last_msg(self._stream, subject)
        except nats.js.errors.NotFoundError as error:
            if error.err_code == _NO_MESSAGE:
                return Stored(0, None)
            raise _unread(subject, error) from error
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise _unread(subject, error) from error
        return Stored(message.seq or 0, None if "KV-Operation" in (message.headers or {}) else message.data)


def revision_of(committed: asyncio.Future[Ack]) -> int:
    """Return the revision of a commit that was answered.

    Raises:
        Conflict: the one that is stored is another.
        BrokerError: it was not confirmed, and may be stored all the same.
    """
    try:
        return committed.result().seq
    except PublishError as error:
        if error.code in _CONFLICTS:
            raise Conflict(str(error)) from error
        raise BrokerError(f"state not committed: {error}") from error


def _unread(subject: str, error: Exception) -> BrokerError:
    return BrokerError(f"state {subject} can't be read: {str(error) or type(error).__name__}")


# Not of other keys, whose equals may have another name.
@lru_cache(maxsize=16_384)
def _is_plain(key: str) -> bool:
    return _PLAIN.fullmatch(key) is not None


def name_of(key: Hashable) -> str:
    """Return the name of a key's state: legal in a KV bucket, and the same in every process.

    Texts of letters, digits, `_` and `-` are names as they are, and integers nearly so (`=42`); what else is
    equal to an integer has its name.

    Raises:
        DecodeError: such a key can't name anything.
    """
    if type(key) is str and _is_plain(key):
        return key
    if isinstance(key, int) or (isinstance(key, float) and key.is_integer()):
        return f"={int(key)}"
    try:
        packed = _encode(key)
    except Exception as error:
        raise DecodeError(
            f"the key {str(key)[:80]!r} can't name a state: {error}; use a text, a number or a tuple of them"
        ) from error
    name = base64.urlsafe_b64encode(packed).decode().rstrip("=")
    if len(name) > _MAX_NAME_BYTES:
        return f"=h{hashlib.blake2b(packed, digest_size=24).hexdigest()}"
    return f"=x{name}"
