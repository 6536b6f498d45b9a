"""What a broker says of streams and consumers, asked over a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from understudy.actors.errors import BrokerError
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection


def is_settled(url: str, stream: str, durables: Iterable[str]) -> bool:
    """Return whether these consumers have nothing left to deliver and wait for no ack."""

    async def ask() -> bool:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="tests")
        try:
            found = [await api.consumer_info(client, stream, durable) for durable in durables]
            return all(info and not info["num_pending"] and not info["num_ack_pending"] for info in found)
        except BrokerError:
            return False
        finally:
            await client.close()

    return asyncio.run(ask())


def count_messages(url: str, stream: str) -> int:
    """Return how many messages a stream holds."""

    async def ask() -> int:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="tests")
        try:
            info = await api.stream_info(client, stream)
            assert info is not None
            return int(info["state"]["messages"])
        finally:
            await client.close()

    return asyncio.run(ask())
