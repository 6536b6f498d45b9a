"""What goes over a cell's connection: the NATS protocol read at the socket, and the credit counted from it.

The account knows nothing of the runtime. A pull request is a publish to the consumer's `MSG.NEXT`; it is
open until what it asked for, in messages or exactly in bytes, was delivered on its inbox, or a status frame
came under its reply subject, or its inbox or connection is gone. A delivery is held from when it went by
until an ack, a nak or a term of its stream sequence does. Protocol: docs.nats.io, "Client Protocol"; NATS
ADR-13, ADR-15.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from support.proxy import Proxy
from understudy.runtime.jetstream.pinning import KEEP_REQUEST

_WITH_PAYLOAD = (b"PUB", b"HPUB", b"MSG", b"HMSG")
_IN_PROGRESS = b"+WPI"
_IDLE_HEARTBEAT = b"NATS/1.0 100"


class Frame(NamedTuple):
    """One protocol line, with its payload if it has one; headers are a part of that."""

    verb: bytes
    arguments: list[bytes]
    payload: bytes


class FrameReader:
    """Cuts a stream of bytes, of either direction, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take what was read, and return the frames that are complete with it."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            verb, *arguments = bytes(self._buffer[:end]).split(b" ")
            start = stop = end + 2
            if verb.upper() in _WITH_PAYLOAD:
                stop = start + int(arguments[-1])
                if len(self._buffer) < stop + 2:
                    return
            payload = bytes(self._buffer[start:stop])
            del self._buffer[: stop + 2 if verb.upper() in _WITH_PAYLOAD else stop]
            yield Frame(verb.upper(), arguments, payload)


class Demanded(NamedTuple):
    """A pull request went out; without a bound in bytes `max_bytes` is None."""

    reply: bytes
    batch: int
    max_bytes: int | None


class Ended(NamedTuple):
    """A status frame ended a pull request."""

    reply: bytes


class Delivered(NamedTuple):
    """A delivery went by: stream sequence, bytes of its body, and the subscription's subject.

    `counted` is how many bytes the server takes off its request.
    """

    sequence: int
    size: int
    inbox: bytes
    counted: int


class Settled(NamedTuple):
    """An ack, nak or term of a stream sequence went by."""

    sequence: int


class Unsubscribed(NamedTuple):
    """An inbox was closed."""

    inbox: bytes


class Connected(NamedTuple):
    """A new connection began, and nothing is open on it."""


Event = Demanded | Ended | Delivered | Settled | Unsubscribed | Connected


class Excess(NamedTuple):
    """A moment at which more was held and asked for than may be."""

    event: Event
    held: int
    demanded: int
    held_bytes: int
    demanded_bytes: float


class Account:
    """What one consumer's client was given, asked for and settled, in the order in which it went by."""

    def __init__(self, stream: str, durable: str) -> None:
        self.events: list[Event] = []
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}".encode()
        self._consumer = [stream.encode(), durable.encode()]
        self._inboxes: dict[bytes, bytes] = {}
        self._replies: set[bytes] = set()

    def count(self, kind: type[Event]) -> int:
        """Return how many events of a kind there were."""
        return sum(type(event) is kind for event in self.events)

    def outward(self, frame: Frame) -> None:
        """Take in what the client sends."""
        match frame.verb, frame.arguments:
            case b"CONNECT", _:
                self._inboxes.clear()
                self.events.append(Connected())
            case b"SUB", [subject, *_, sid]:
                self._inboxes[sid] = subject
            case b"UNSUB", [sid] if sid in self._inboxes:
                self.events.append(Unsubscribed(self._inboxes.pop(sid)))
            case b"PUB" | b"HPUB", [subject, *more]:
                self._published(subject, more, frame)

    def _published(self, subject: bytes, more: list[bytes], frame: Frame) -> None:
        if subject == self._next:
            request = json.loads(frame.payload)
            if request.get("expires") == KEEP_REQUEST["expires"]:
                # Only keeps a pin: it is over when it arrives, and nobody hears its answer.
                return
            self._replies.add(more[0])
            self.events.append(Demanded(more[0], request.get("batch", 1), request.get("max_bytes")))
        elif not frame.payload.startswith(_IN_PROGRESS):
            sequence = self._sequence(subject)
            if sequence is not None:
                self.events.append(Settled(sequence))

    def inward(self, frame: Frame) -> None:
        """Take in what the server sends."""
        if frame.verb not in (b"MSG", b"HMSG"):
            return
        subject, sid, *more = frame.arguments
        header = int(more[-2]) if frame.verb == b"HMSG" else 0
        reply = more[0] if len(more) > (2 if header else 1) else b""
        sequence = self._sequence(reply)
        if sequence is not None:
            # Without a subscription the client drops it.
            if sid in self._inboxes:
                counted = len(subject) + len(reply) + len(frame.payload) - _added(frame.payload[:header])
                size = len(frame.payload) - header
                self.events.append(Delivered(sequence, size, self._inboxes[sid], counted))
        elif subject in self._replies and not frame.payload.startswith(_IDLE_HEARTBEAT):
            self.events.append(Ended(subject))

    def _sequence(self, subject: bytes) -> int | None:
        """Return the stream sequence of an ack subject of ours."""
        tokens = subject.split(b".")
        if tokens[:2] != [b"$JS", b"ACK"]:
            return None
        # The longer form has domain and account hash before the stream.
        first = 2 if len(tokens) == 9 else 4
        return int(tokens[first + 3]) if tokens[first : first + 2] == self._consumer else None

    def excesses(self, capacity: int, max_bytes: int) -> list[Excess]:
        """Return every moment at which what was held and asked for exceeded a bound.

        A single message, held or asked for with nothing beside it, may be larger than the bound in bytes.

        Args:
            capacity: in messages.
            max_bytes: of their bodies.
        """
        found = []
        for event, held, requests in self._moments():
            demanded = sum(request.batch for request in requests)
            held_bytes = sum(held.values())
            demanded_bytes = sum(request.bytes_left for request in requests)
            too_many = len(held) + demanded > capacity
            too_large = held_bytes + demanded_bytes > max_bytes and len(held) + demanded > 1
            if too_many or too_large:
                found.append(Excess(event, len(held), demanded, held_bytes, demanded_bytes))
        return found

    def most_held(self) -> int:
        """Return how many deliveries the client held at most."""
        return max((len(held) for _, held, _ in self._moments()), default=0)

    def _moments(self) -> Iterator[tuple[Event, dict[int, int], list[_Request]]]:
        """Go through the events; after each, return what is held, by place and size, and what is open."""
        releases = self._releases()
        held: dict[int, int] = {}
        requests: list[_Request] = []
        for place, event in enumerate(self.events):
            for released in releases.get(place, ()):
                held.pop(released, None)
            match event:
                case Demanded():
                    requests.append(_Request(event))
                case Ended():
                    requests = [request for request in requests if request.reply != event.reply]
                case Connected():
                    requests = []
                case Unsubscribed():
                    requests = [request for request in requests if not request.is_on(event.inbox)]
                case Delivered():
                    held[place] = event.size
                    for request in requests:
                        if request.is_on(event.inbox):
                            request.deliver(event)
                            break
                    requests = [request for request in requests if request.batch > 0]
                case Settled():
                    pass
            yield event, held, requests

    def _releases(self) -> dict[int, list[int]]:
        """Return, by the place where it ends, which deliveries' holding ends.

        It ends with the settlement. One that comes again before it was settled was lost, if the connection
        was: with that its holding ended. Else the client was given it twice, and holds it once.
        """
        releases: dict[int, list[int]] = {}
        open_: dict[int, int] = {}
        connected: list[int] = []
        for place, event in enumerate(self.events):
            if isinstance(event, Connected):
                connected.append(place)
            elif isinstance(event, Settled) and event.sequence in open_:
                releases.setdefault(place, []).append(open_.pop(event.sequence))
            elif isinstance(event, Delivered):
                before = open_.get(event.sequence)
                if before is not None:
                    end = next((cut for cut in connected if cut > before), place)
                    releases.setdefault(end, []).append(before)
                open_[event.sequence] = place
        return releases


class _Request:
    """A pull request that is open."""

    def __init__(self, demanded: Demanded) -> None:
        self.reply = demanded.reply
        self.batch = demanded.batch
        self.bytes_left: float = float("inf") if demanded.max_bytes is None else demanded.max_bytes

    def is_on(self, inbox: bytes) -> bool:
        """Return whether what it asked for comes to this subscription."""
        return self.reply == inbox or (inbox.endswith(b".*") and self.reply.rpartition(b".")[0] == inbox[:-2])

    def deliver(self, delivered: Delivered) -> None:
        """Count a delivery against it."""
        self.batch -= 1
        self.bytes_left -= delivered.counted
        if self.bytes_left == 0:
            # The server ends a request that its bytes fill exactly without a word.
            self.batch = 0


def _added(block: bytes) -> int:
    """Return how many bytes of a header block the server added after it had counted."""
    start = block.rfind(b"Nats-Pin-Id: ")
    if start < 0:
        return 0
    alone = start == len(b"NATS/1.0\r\n")
    return len(block) if alone else len(block) - len(b"\r\n") - start


class Tap(Proxy):
    """A proxy for one client that keeps an account, and that may pass bytes on in small pieces.

    Attributes:
        account: of the connection's consumer.
        pieces: if it isn't 0, what goes to the client does so in pieces of 1 to so many bytes, each read by
            itself if the client is in our event loop.
    """

    def __init__(self, port: int, account: Account) -> None:
        super().__init__(port)
        self.account = account
        self.pieces = 0
        self._random = random.Random(port)
        self._broker: asyncio.StreamWriter | None = None
        self._is_hanging_up = False

    async def hang_up(self) -> None:
        """End the connection so that nothing is lost on the client's side of it, and wait for the next one.

        The broker's side is reset. The client is given what had come for it and then the end, and what it
        writes until it hears that still counts.
        """
        connected = self.account.count(Connected)
        self._is_hanging_up = True
        if self._broker is not None:
            self._broker.transport.abort()
        while self.account.count(Connected) == connected:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, outward: bool
    ) -> None:
        frames = FrameReader()
        count = self.account.outward if outward else self.account.inward
        if outward:
            self._broker, self._is_hanging_up = target, False
        try:
            while data := await source.read(65536):
                for frame in frames.feed(data):
                    count(frame)
                if not (outward and target.is_closing()):
                    await self._write(target, data, outward)
        except OSError:
            pass
        if self._is_hanging_up and not outward:
            target.write_eof()
        else:
            target.transport.abort()

    async def _write(self, target: asyncio.StreamWriter, data: bytes, outward: bool) -> None:
        if outward or not self.pieces:
            target.write(data)
            await target.drain()
            return
        start = 0
        while start < len(data):
            size = self._random.randint(1, self.pieces)
            target.write(data[start : start + size])
            start += size
            await target.drain()
            # The loopback hands it over at once, and this turn of the loop lets the client read it.
            await asyncio.sleep(0)


@asynccontextmanager
async def tap(url: str, stream: str, durable: str) -> AsyncIterator[Tap]:
    """Stand before the broker for the length of a test, and count what a consumer's client does."""
    made = Tap(int(url.rpartition(":")[2]), Account(stream, durable))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
