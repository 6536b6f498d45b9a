"""A pull subscription with a room of the test's own in the place of a cell's mailbox."""

from __future__ import annotations

from nats.aio.client import Client

from support.cells import Bench
from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream.api import consumer_info
from understudy.runtime.jetstream.settlement import Settlement, parse_ack_subject
from understudy.runtime.jetstream.subscription import PullSubscription


class Room:
    """A mailbox as the subscription sees it; the test takes things out of it.

    Attributes:
        held: reply subject and body of what is in it, in order of arrival.
        most: how many it has ever held.
    """

    def __init__(self, capacity: int, max_bytes: int = 1 << 20) -> None:
        self.size = capacity
        self.max_bytes = max_bytes
        self.held: list[tuple[bytes, bytes]] = []
        self.most = 0

    def deliver(self, _subject: bytes, reply: bytes, _block: bytes, body: bytes) -> None:
        """Take a delivery in."""
        self.held.append((reply, body))
        self.most = max(self.most, len(self.held))

    def free(self) -> int:
        """Return how many more messages it can hold."""
        return self.size - len(self.held)

    def free_bytes(self) -> int:
        """Return how many more bytes it can hold."""
        return self.max_bytes - sum(len(body) for _, body in self.held)

    def capacity(self) -> int:
        """Return how many messages it holds at most."""
        return self.size

    def is_empty(self) -> bool:
        """Return whether it holds nothing."""
        return not self.held


class Pulling:
    """A subscription to a consumer over a connection of its own; made by `pulling`.

    Attributes:
        client: the connection.
        failures: what the subscription failed with.
    """

    def __init__(
        self, bench: Bench, client: Client, stream: str, durable: str, created: str, room: Room
    ) -> None:
        self._bench = bench
        self.client = client
        self.room = room
        self.failures: list[BrokerError] = []
        self.settlement = Settlement(client)
        self.subscription = PullSubscription(
            client, stream, durable, created, room, self.settlement, room.deliver, self.failures.append
        )

    def start(self) -> None:
        """Start the subscription, which ends with the bench at the latest."""
        self._bench.tasks.append(self.subscription.start())

    def on_state(self, state: str) -> None:
        """Hear how the connection fares."""
        if state == "connected":
            self.subscription.reconnected()
        else:
            self.subscription.disconnected()

    async def settle(self, count: int) -> list[int]:
        """Ack the oldest in the room, and return their sequences."""
        taken, self.room.held = self.room.held[:count], self.room.held[count:]
        for reply, _ in taken:
            self.settlement.ack(reply)
            self.subscription.settled()
        return [parse_ack_subject(reply)[1] for reply, _ in taken]


async def pulling(
    bench: Bench, room: Room, stream: str = "ORDERS", durable: str = "shop-billing", *, url: str = ""
) -> Pulling:
    """Return a subscription to a consumer that exists.

    Args:
        bench: closes the connection in the end.
        room: takes what is delivered.
        stream: the consumer's.
        durable: the consumer.
        url: where to connect, if not to the broker directly.
    """
    made: list[Pulling] = []
    client = await bench.connect(url, lambda state: made[0].on_state(state))
    info = await consumer_info(client, stream, durable)
    assert info is not None
    made.append(Pulling(bench, client, stream, durable, info["created"], room))
    return made[0]
