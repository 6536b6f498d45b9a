"""How many messages wait in the streams for each actor: asked for now and then, never at a scrape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from understudy.actors.errors import BrokerError
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.specs import ConsumerSpec

ASK_SECONDS = 5.0
# Nobody looks any more if there was no scrape for so long.
SCRAPED_SECONDS = 150.0
# What is older is told no more: the broker is away or doesn't answer.
OLD_SECONDS = 15.0


class Pending:
    """Asks about consumers, as long as somebody scrapes.

    Args:
        consumers: the app's.
    """

    def __init__(self, consumers: Sequence[ConsumerSpec]) -> None:
        self._consumers = consumers
        self._waiting: dict[str, int] = {}
        self._asked_at = 0.0
        self._scraped_at: float | None = None

    def scraped(self) -> Mapping[str, int]:
        """Return by actor how many messages its consumer has yet to deliver, where that is known.

        Called at each scrape, in a thread.
        """
        now = time.monotonic()
        self._scraped_at = now
        return self._waiting if now - self._asked_at < OLD_SECONDS else {}

    async def keep_asking(self, client: Connection) -> None:
        """Ask until cancelled."""
        while True:
            if self._scraped_at is not None and time.monotonic() - self._scraped_at < SCRAPED_SECONDS:
                await self._ask(client)
            await asyncio.sleep(ASK_SECONDS)

    async def _ask(self, client: Connection) -> None:
        waiting = {}
        try:
            for consumer in self._consumers:
                info = await api.consumer_info(client, consumer.stream, consumer.durable)
                if info is not None:
                    waiting[consumer.actor] = int(info["num_pending"])
        except BrokerError:
            # The log says already that it is away.
            return
        self._waiting, self._asked_at = waiting, time.monotonic()
