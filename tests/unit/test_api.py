"""Requests to JetStream's API."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from understudy.runtime.jetstream import api


class Answering:
    """Waits for an answer as nats-py does."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> Msg:  # noqa: ASYNC109
        """Return the answer."""
        self.asked.set()
        return await asyncio.wait_for(self.answer, timeout)


async def test_a_cancellation_that_comes_with_the_answer_is_one() -> None:
    """Else a loop that asks goes on although it was told to end, once and for all."""
    client = Answering()
    asking: asyncio.Task[Any] = asyncio.create_task(api.request(cast(Client, client), "INFO"))
    await client.asked.wait()
    client.answer.set_result(Msg(_client=cast(Client, client), data=b"{}"))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_who_was_cancelled_before_may_ask_to_tidy_up() -> None:
    """An answer that comes later is none of that cancellation's."""
    client = Answering()
    answers = []

    async def ask_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            answers.append(await api.request(cast(Client, client), "INFO"))

    asking = asyncio.create_task(ask_at_the_end())
    await asyncio.sleep(0)
    asking.cancel()
    await client.asked.wait()
    client.answer.set_result(Msg(_client=cast(Client, client), data=b"{}"))
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert answers == [{}]
