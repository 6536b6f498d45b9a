"""NATS services (ADR-32) by nats-py's `nats.micro`, and the questions that a command asks of them.

Each instance's endpoints have subjects of their own, so that whoever asks reaches that one. Which instances
there are, the server knows: its list of the account's connections names those too that don't answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request, ServiceError
from nats.micro.service import Service, ServiceConfig

from understudy.actors.errors import BrokerError, BrokerUnreachable, UnderstudyError
from understudy.runtime.telemetry.logger import get_logger

# So long a search waits for an instance that is connected and doesn't answer.
ANSWER_SECONDS = 2.0
# So long it waits for more where everyone known has answered: each server of a cluster answers by itself.
QUIET_SECONDS = 0.2
_CONNECTIONS = "$SYS.REQ.ACCOUNT.PING.CONNZ"
_NO_RESPONDERS = "503"
_log = get_logger("understudy.services")


class Refused(UnderstudyError):
    """A service answered with an error.

    Attributes:
        code: as the service gave it, such as "404".
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Absent(UnderstudyError):
    """Nobody listens on a service's subject."""


class Unanswered(UnderstudyError):
    """Somebody listens on a service's subject, and doesn't answer."""


class Question:
    """A request to an endpoint.

    Attributes:
        body: what was sent.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self.body = request.data

    async def answer(self, body: bytes) -> None:
        """Send a further answer, after the handler's own; whoever doesn't wait for it misses nothing.

        Raises:
            BrokerError: the connection is gone.
        """
        try:
            await self._request.respond(body)
        except (nats.errors.Error, ValueError) as error:
            raise BrokerError(f"an answer was not written: {error}") from error


Handler = Callable[[Question], Awaitable[bytes]]


async def serve(
    client: Client,
    *,
    name: str,
    version: str,
    description: str,
    metadata: Mapping[str, str],
    group: str,
    endpoints: Mapping[str, Handler],
    data: Callable[[str], Mapping[str, object]] = lambda _: {},
) -> None:
    """Answer until the connection is closed, and again whenever it is back.

    Args:
        client: a connection.
        name: the service's, of letters, digits, dashes and underscores.
        version: a semantic version.
        description: what it is for.
        metadata: about this instance.
        group: what the endpoints' subjects begin with, which differs from instance to instance.
        endpoints: what answers, by name, in the event loop. A `Refused` becomes an answer with ADR-32's error
            headers; so does any other exception, with code 500.
        data: returns what an endpoint's statistics say beside its counts, by its name; called in the event
            loop.
    """
    with warnings.catch_warnings():
        # nats-py 2.16 calls datetime.utcnow(), deprecated in Python 3.12.
        warnings.simplefilter("ignore", DeprecationWarning)
        service = Service(
            client,
            ServiceConfig(
                name, version, description, dict(metadata), stats_handler=lambda stats: dict(data(stats.name))
            ),
        )
        # It has subscribed by then, and nats-py does so again when a connection is back.
        with contextlib.suppress(nats.errors.Error):
            await service.start()
    for endpoint, handler in endpoints.items():
        with contextlib.suppress(nats.errors.Error):
            await service.add_group(name=group).add_endpoint(
                name=endpoint, handler=_answering(handler), metadata={}
            )


def _answering(handler: Handler) -> Callable[[Request], Awaitable[None]]:
    async def answer(request: Request) -> None:
        try:
            body = await handler(Question(request))
        except Refused as refused:
            raise ServiceError(refused.code, _one_line(str(refused))) from refused
        except Exception as error:
            _log.exception("a service's endpoint failed", subject=request.subject)
            raise ServiceError("500", _one_line(f"{type(error).__name__}: {error}")) from error
        # Nothing has failed if nobody wants to know; nats-py says so by a ValueError.
        with contextlib.suppress(ValueError):
            await request.respond(body)

    return answer


def _one_line(text: str) -> str:
    return " ".join(text.split())


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A running instance of a service, as its answer to a ping describes it."""

    version: str
    metadata: dict[str, str]


class Silent(msgspec.Struct, frozen=True, kw_only=True):
    """A connection that should have answered.

    Args:
        subject: of an endpoint of its own.
        connection: its name.
        address: where it comes from.
    """

    subject: str
    connection: str
    address: str


async def find(
    client: Client, name: str, *, subjects: str, subject_of: Callable[[Instance], str]
) -> tuple[list[Instance], list[Silent]]:
    """Find all running instances of a service.

    Args:
        client: a connection.
        name: the service's.
        subjects: an endpoint's subject with wildcards, which every instance has.
        subject_of: returns that endpoint's subject of one instance.

    Returns:
        Those that answer, and those that are connected and don't. Who may not ask for the list of
        connections, which is `$SYS.REQ.ACCOUNT.PING.CONNZ`, never hears of the latter.

    Raises:
        BrokerUnreachable: the connection is gone.
    """
    search = _Search(subjects, subject_of)
    wanted = json.dumps({"subscriptions": True, "filter_subject": subjects}).encode()
    try:
        subscriptions = []
        for subject, body, callback in (
            (f"$SRV.PING.{name}", b"", search.on_ping),
            (_CONNECTIONS, wanted, search.on_connections),
        ):
            inbox = client.new_inbox()
            subscriptions.append(await client.subscribe(inbox, cb=callback))
            await client.publish(subject, body, reply=inbox)
        await search.wait()
        for subscription in subscriptions:
            await subscription.unsubscribe()
    except nats.errors.Error as error:
        raise BrokerUnreachable(f"the broker is gone: {error}") from error
    return list(search.found.values()), search.silent()


class _Search:
    """What came back so far."""

    def __init__(self, subjects: str, subject_of: Callable[[Instance], str]) -> None:
        self._subjects = subjects
        self._subject_of = subject_of
        self.found: dict[str, Instance] = {}
        self._connected: dict[str, Silent] = {}
        self._listed = False
        self._changed = asyncio.Event()

    def silent(self) -> list[Silent]:
        """Return those that are connected and haven't answered."""
        return [silent for subject, silent in self._connected.items() if subject not in self.found]

    async def on_ping(self, message: Msg) -> None:
        """Take an instance's answer."""
        if not _is_status(message):
            instance = msgspec.json.decode(message.data, type=Instance)
            self.found[self._subject_of(instance)] = instance
        self._changed.set()

    async def on_connections(self, message: Msg) -> None:
        """Take the list of connections of one server."""
        self._listed = True
        answer = {} if _is_status(message) else json.loads(message.data)
        for one in answer.get("data", {}).get("connections") or ():
            for subject in one.get("subscriptions_list") or ():
                if _matches(subject, self._subjects):
                    self._connected[subject] = Silent(
                        subject=subject, connection=one.get("name", ""), address=one.get("ip", "")
                    )
        self._changed.set()

    async def wait(self) -> None:
        """Return when everyone known has answered and no more come, or nobody has time for more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_SECONDS
        while (remaining := deadline - loop.time()) > 0:
            complete = self._listed and not self.silent()
            self._changed.clear()
            try:
                async with asyncio.timeout(min(QUIET_SECONDS, remaining) if complete else remaining):
                    await self._changed.wait()
            except TimeoutError:
                return


async def ask(client: Client, subject: str, body: bytes = b"") -> bytes:
    """Ask one endpoint.

    Args:
        client: a connection.
        subject: the endpoint's.
        body: what is sent.

    Raises:
        Refused: the answer is an error.
        Absent: nobody listens there.
        Unanswered: no answer within `ANSWER_SECONDS`.
        BrokerUnreachable: the connection is gone.
    """
    try:
        return _read(await client.request(subject, body, timeout=ANSWER_SECONDS))
    except nats.errors.NoRespondersError as error:
        raise Absent(f"nobody listens on {subject}") from error
    except (nats.errors.TimeoutError, TimeoutError) as error:
        raise Unanswered(f"no answer from {subject}") from error
    except nats.errors.Error as error:
        raise BrokerUnreachable(f"the broker is gone: {error}") from error


@contextlib.asynccontextmanager
async def ask_for_more(
    client: Client, subject: str, body: bytes = b""
) -> AsyncIterator[asyncio.Queue[bytes]]:
    """Ask one endpoint that answers more than once.

    Args:
        client: a connection.
        subject: the endpoint's.
        body: what is sent.

    Yields:
        Where further answers arrive, the first one included.

    Raises:
        Refused, Absent, Unanswered, BrokerUnreachable: as of `ask`, about the first answer.
    """
    further: asyncio.Queue[bytes] = asyncio.Queue()
    first: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    async def on_answer(message: Msg) -> None:
        if not first.done():
            first.set_result(message)
        further.put_nowait(message.data)

    try:
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=on_answer)
        try:
            await client.publish(subject, body, reply=inbox)
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    message = await first
            except TimeoutError as error:
                raise Unanswered(f"no answer from {subject}") from error
            if _is_status(message):
                raise Absent(f"nobody listens on {subject}")
            _read(message)
            yield further
        finally:
            await subscription.unsubscribe()
    except nats.errors.Error as error:
        raise BrokerUnreachable(f"the broker is gone: {error}") from error


def _read(message: Msg) -> bytes:
    headers: dict[str, Any] = message.headers or {}
    if ERROR_CODE_HEADER in headers:
        raise Refused(headers[ERROR_CODE_HEADER], headers.get(ERROR_HEADER, ""))
    return message.data


def _is_status(message: Msg) -> bool:
    return not message.data and (message.headers or {}).get("Status") == _NO_RESPONDERS


def _matches(subject: str, pattern: str) -> bool:
    tokens, wanted = subject.split("."), pattern.split(".")
    return len(tokens) == len(wanted) and all(
        want in ("*", token) for token, want in zip(tokens, wanted, strict=True)
    )
