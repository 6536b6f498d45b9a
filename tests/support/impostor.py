"""Somebody who answers pull requests in the server's words, where no server can be made to say them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from support.proxy import Proxy
from support.wire import FrameReader

NEXT = "$JS.API.CONSUMER.MSG.NEXT"


class Impostor(Proxy):
    """A proxy that renames a consumer in what its client asks for, and hears and answers it.

    The name has as many letters as the real one, so that frames stay as long as they say.

    Attributes:
        requests: reply subjects of the pull requests that came.
        answer: called with each of them.
        subscribed: what the client that connected last listens to, by subscription id.
    """

    def __init__(self, port: int, stream: str, durable: str) -> None:
        super().__init__(port)
        self.requests: list[str] = []
        self.answer: Callable[[str], None] = lambda _reply: None
        self.subscribed: dict[str, str] = {}
        self.subject = f"{NEXT}.{stream}.{'x' * len(durable)}"
        self.rewrite = (f"{NEXT}.{stream}.{durable}".encode(), self.subject.encode())
        self._client: asyncio.StreamWriter | None = None

    async def hear(self, message: Msg) -> None:
        """Take a renamed request."""
        self.requests.append(message.reply)
        self.answer(message.reply)

    def end(self) -> None:
        """Let the requests go to the consumer."""
        self.rewrite = None

    def say(self, reply: str, status: str, *headers: str) -> None:
        """Send a status frame to who made a request."""
        block = "\r\n".join([f"NATS/1.0 {status}", *headers, "", ""])
        self._inject(reply, f"HMSG {reply} SID {len(block)} {len(block)}\r\n{block}\r\n")

    def deliver(self, reply: str, sequence: int) -> None:
        """Send a delivery to who made a request."""
        ack = f"$JS.ACK.S.real.1.{sequence}.{sequence}.1.0"
        self._inject(reply, f"MSG S.a SID {ack} 1\r\nx\r\n")

    def _inject(self, reply: str, frame: str) -> None:
        (sid,) = [sid for sid, inbox in self.subscribed.items() if inbox == f"{inbox_of(reply)}.*"]
        assert self._client is not None
        self._client.write(frame.replace("SID", sid, 1).encode())

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, outward: bool
    ) -> None:
        if outward:
            self.subscribed = {}
            self._frames = FrameReader()
        else:
            self._client = target
        await super()._pass_on(source, target, outward)

    def _see(self, data: bytes, outward: bool) -> None:
        if not outward:
            return
        for frame in self._frames.feed(data):
            words = [word.decode() for word in frame.arguments]
            if frame.verb == b"SUB":
                self.subscribed[words[-1]] = words[0]
            elif frame.verb == b"UNSUB":
                self.subscribed.pop(words[0], None)


def inbox_of(reply: str) -> str:
    """Return the inbox of a request's reply subject."""
    return reply.rpartition(".")[0]


@asynccontextmanager
async def impostor(url: str, listener: Client, stream: str, durable: str) -> AsyncIterator[Impostor]:
    """Put an impostor before a consumer; its subscription connects to it.

    Args:
        url: the broker.
        listener: hears the renamed requests.
        stream: the consumer's.
        durable: the consumer.
    """
    made = Impostor(int(url.rpartition(":")[2]), stream, durable)
    await made.start()
    listening = await listener.subscribe(made.subject, cb=made.hear)
    await listener.flush()
    try:
        yield made
    finally:
        await listening.unsubscribe()
        await made.stop()
