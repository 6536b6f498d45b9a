"""A subject of our own, below which all that comes goes to one receiver: past nats-py, or through it."""

from __future__ import annotations

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.fast_lane import FastClient, Receiver


class Inbox:
    """An inbox, which nobody listens to until it is opened.

    Args:
        client: a connection.

    Attributes:
        subject: the inbox's own; what is sent to `<subject>.<token>` comes here.
    """

    __slots__ = ("_client", "_receive", "_subscription", "subject")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._receive: Receiver
        self._subscription: Subscription | None = None
        self.subject: str = client.new_inbox()

    async def open(self, receive: Receiver) -> None:
        """Subscribe.

        Args:
            receive: called in the event loop with each frame's subject, reply subject, header block and body;
                may not block or raise.

        Raises:
            nats.errors.Error: there is no connection.
        """
        self._receive = receive
        # What is asked for bounds what arrives, so nats-py's own limits would only add silent drops.
        self._subscription = await self._client.subscribe(
            f"{self.subject}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        if isinstance(self._client, FastClient):
            self._client.receive(self._subscription, receive)

    async def close(self) -> None:
        """Unsubscribe, if it is open.

        Raises:
            nats.errors.Error: there is no connection.
        """
        if self._subscription is None:
            return
        if isinstance(self._client, FastClient):
            self._client.forget(self._subscription)
        await self._subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        parsed = message.headers or {}
        # nats-py leaves further headers of a status frame in its description.
        status = (
            "" if message.reply else f"{parsed.get('Status')} {parsed.get('Description', '')}".split("\n")[0]
        )
        block = headers.encode(parsed, status)
        self._receive(message.subject.encode(), message.reply.encode(), block, message.data)
