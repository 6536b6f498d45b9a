"""The stream of an app's dead letters: found, read and weeded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Self

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from understudy.actors.errors import BrokerError, ConfigurationError
from understudy.actors.names import check_name
from understudy.runtime.jetstream import api, headers
from understudy.runtime.jetstream.fast_lane import FastClient, Receiver
from understudy.runtime.jetstream.stored_letters import Selection, StoredLetter
from understudy.runtime.jetstream.topology import dead_letter_stream

# So many are read at once; with their bodies, fewer, and no more bytes than that and one body.
PAGE = 1000
PAGE_WITH_BODIES = 500
PAGE_BYTES = 8 * 1024 * 1024
PAGE_SECONDS = 5.0
# The server deletes a consumer that nobody asks, so that none is left by whom was killed.
_CONSUMER_NANOSECONDS = 30_000_000_000
_EXPIRES_NANOSECONDS = 2_000_000_000
_SUFFIX = "_DEAD_LETTERS"


class LetterStream:
    """The stream of an app's dead letters, as it was when it was opened.

    What comes later isn't read, so that replays which fail again don't make an end of it impossible.

    Attributes:
        client: the connection.
        app: whose letters these are.
        name: the stream's.
        created: when it was made, as the server says it.
        count: how many letters it held.
    """

    def __init__(self, client: Client, app: str, info: dict[str, Any]) -> None:
        self.client = client
        self.app = app
        self.name = str(info["config"]["name"])
        self.created = str(info["created"])
        self.count = int(info["state"]["messages"])
        self._last = int(info["state"]["last_seq"])

    @classmethod
    async def open(cls, client: Client, app: str | None) -> Self:
        """Find the stream.

        Args:
            client: a connection.
            app: whose letters; None for those of the only app that has such a stream.

        Raises:
            DeclarationError: there can be no app of such a name.
            ConfigurationError: there is no such stream, or there are several.
            BrokerError: the server did not answer, or refused.
        """
        if app is not None:
            check_name(app, "--app")
            info = await api.stream_info(client, dead_letter_stream(app))
            if info is not None:
                return cls(client, app, info)
        found = await _find_streams(client)
        known = ", ".join(sorted(found))
        if app is not None:
            hint = f"the apps that have one are {known}" if known else "no app has one here"
            raise ConfigurationError(f"there is no stream {dead_letter_stream(app)}: {hint}")
        if not found:
            raise ConfigurationError(
                "there is no stream of dead letters on this server: an app makes its own when it first runs"
            )
        if len(found) > 1:
            raise ConfigurationError(f"several apps keep dead letters: {known}; say which with --app")
        [(name, info)] = found.items()
        return cls(client, name, info)

    async def read(self, number: int) -> StoredLetter | None:
        """Return one letter with its body, or None if there is none of that id.

        Raises:
            BrokerError: the server did not answer.
        """
        page = await self._page(number, Selection(), messages=1, bodies=True)
        return page[0] if page and page[0].id == number else None

    async def scan(self, selection: Selection, *, bodies: bool) -> AsyncIterator[StoredLetter]:
        """Go through the letters, oldest first.

        Args:
            selection: which.
            bodies: whether theirs are read, too.

        Raises:
            BrokerError: the server did not answer, or the connection was lost on the way.
        """
        start = 1
        messages = PAGE_WITH_BODIES if bodies else PAGE
        last = self._last if selection.last is None else min(self._last, selection.last)
        while start <= last:
            page = await self._page(start, selection, messages=messages, bodies=bodies)
            if not page:
                return
            for letter in page:
                if letter.id > last:
                    return
                if selection.before is not None and letter.stored_at >= selection.before:
                    return
                if selection.reason in ("", letter.reason):
                    yield letter
            start = page[-1].id + 1

    async def remove(self, number: int) -> bool:
        """Remove a letter for good.

        Returns:
            Whether there was one.

        Raises:
            BrokerError: the server did not answer, or refused.
        """
        try:
            await api.request(
                self.client, f"STREAM.MSG.DELETE.{self.name}", {"seq": number, "no_erase": True}
            )
        except api.ApiError as error:
            if error.error_code == _SEQUENCE_NOT_FOUND:
                return False
            raise
        return True

    async def actors(self) -> dict[str, int]:
        """Return how many letters each actor has.

        Raises:
            BrokerError: the server did not answer.
        """
        subjects: dict[str, int] = {}
        while True:
            answer = await api.request(
                self.client, f"STREAM.INFO.{self.name}", {"subjects_filter": ">", "offset": len(subjects)}
            )
            found = answer["state"].get("subjects") or {}
            subjects |= found
            if not found or len(subjects) >= answer.get("total", 0):
                return {_actor(subject): count for subject, count in sorted(subjects.items())}

    async def _page(
        self, start: int, selection: Selection, *, messages: int, bodies: bool
    ) -> list[StoredLetter]:
        """Read what follows from a sequence on; nothing if nothing does.

        Each page has a consumer of its own, so that any time may pass between two.
        """
        inbox = self.client.new_inbox()
        page = _Page(self.app)
        subscription = await self.client.subscribe(
            inbox, cb=page.on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        if isinstance(self.client, FastClient):
            self.client.receive(subscription, page.receive)
        name = inbox.rpartition(".")[2]
        try:
            answer = await api.request(
                self.client,
                f"CONSUMER.CREATE.{self.name}.{name}",
                {
                    "stream_name": self.name,
                    "action": "create",
                    "config": self._consumer(name, start, selection, bodies=bodies),
                },
            )
            pending = min(int(answer["num_pending"]), messages)
            if pending:
                await self._fill(page, inbox, name, pending)
        except nats.errors.Error as error:
            raise BrokerError(f"stream {self.name} can't be read: {error}") from error
        finally:
            await self._forget(subscription, name)
        return page.letters

    async def _fill(self, page: _Page, inbox: str, name: str, messages: int) -> None:
        page.wanted = messages
        request = {
            "batch": messages,
            "expires": _EXPIRES_NANOSECONDS,
            # A larger one would end the request before anything comes.
            "max_bytes": PAGE_BYTES + self.client.max_payload,
        }
        await self.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.name}.{name}", msgspec.json.encode(request), reply=inbox
        )
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                await page.complete.wait()
        except TimeoutError:
            raise BrokerError(
                f"stream {self.name} stopped answering: {len(page.letters)} of {messages} letters came"
            ) from None
        if page.has_gap:
            raise BrokerError(f"stream {self.name} can't be read: letters were lost with the connection")
        if not page.letters:
            raise BrokerError(
                f"stream {self.name} can't be read: {page.status or 'letters were removed meanwhile'}"
            )

    def _consumer(self, name: str, start: int, selection: Selection, *, bodies: bool) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "headers_only": not bodies,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _CONSUMER_NANOSECONDS,
        }
        if selection.actor:
            config["filter_subjects"] = [f"dead-letters.{self.app}.{selection.actor}"]
        if start == 1 and selection.since is not None:
            seconds, rest = divmod(selection.since, 1_000_000_000)
            moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            return config | {"deliver_policy": "by_start_time", "opt_start_time": f"{moment}.{rest:09}Z"}
        return config | {"deliver_policy": "by_start_sequence", "opt_start_seq": start}

    async def _forget(self, subscription: Subscription, consumer: str) -> None:
        if isinstance(self.client, FastClient):
            self.client.forget(subscription)
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
        with contextlib.suppress(BrokerError, nats.errors.Error):
            # Without an answer, it goes by itself when nobody has asked it for a while.
            await self.client.publish(f"$JS.API.CONSUMER.DELETE.{self.name}.{consumer}", b"")


class _Page:
    """Letters as they come.

    Attributes:
        wanted: how many are asked for.
        letters: what has come.
        complete: set when no more come.
        has_gap: whether one in between has not come.
        status: the server's word if it ended the request.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self.wanted = 0
        self.letters: list[StoredLetter] = []
        self.complete = asyncio.Event()
        self.has_gap = False
        self.status = ""
        self.receive: Receiver = self._receive

    async def on_message(self, message: Msg) -> None:
        """Take what comes by nats-py's public API."""
        found = message.headers or {}
        status = found.get("Status", "") if not message.reply else ""
        block = headers.encode(found, f"{status} {found.get('Description', '')}" if status else "")
        self._receive(message.subject.encode(), message.reply.encode(), block, message.data)

    def _receive(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        if not reply:
            self.status = " ".join(headers.status(block))
            self.complete.set()
            return
        # $JS.ACK.[domain.account hash.]stream.consumer.deliveries.sequence.consumer sequence.time.pending
        tokens = reply.split(b".")
        sequence, number, time = map(int, (tokens[5:8] if len(tokens) == 9 else tokens[7:10]))
        found = headers.parse(block)
        # What a consumer that leaves out bodies says instead.
        size = found.pop("Nats-Msg-Size", None)
        self.letters.append(
            StoredLetter(
                id=sequence,
                app=self._app,
                actor=_actor(subject.decode(errors="backslashreplace")),
                stored_at=time,
                headers=found,
                body=body if size is None else None,
                size=len(body) if size is None else int(size),
            )
        )
        self.has_gap = self.has_gap or number != len(self.letters)
        if len(self.letters) == self.wanted:
            self.complete.set()


_SEQUENCE_NOT_FOUND = 10043


async def _find_streams(client: Client) -> dict[str, dict[str, Any]]:
    """Return the dead-letter streams of all apps, by app."""
    names: list[str] = []
    while True:
        answer = await api.request(
            client, "STREAM.NAMES", {"subject": "dead-letters.>", "offset": len(names)}
        )
        more = answer.get("streams") or []
        names += more
        if not more or len(names) >= answer.get("total", 0):
            break
    found = {}
    for name in names:
        info = await api.stream_info(client, name) if name.endswith(_SUFFIX) else None
        for subject in () if info is None else info["config"].get("subjects") or ():
            app = subject.removeprefix("dead-letters.").removesuffix(".>")
            if info is not None and dead_letter_stream(app) == name:
                found[app] = info
    return found


def _actor(subject: str) -> str:
    return subject.rpartition(".")[2]
