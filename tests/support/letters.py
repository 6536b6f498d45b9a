"""Dead letters for tests, and the command that works with them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from support.commands import run_command
from understudy.runtime.jetstream.api import stream_info
from understudy.runtime.jetstream.dead_letters import DeadLetter, write
from understudy.runtime.jetstream.publish_window import PublishWindow

TIMEOUT_SECONDS = 60.0


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    def objects(self) -> list[dict[str, Any]]:
        """What it printed, a JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Letters:
    """Writes dead letters of the app shop, and runs `understudy dead-letters`.

    Args:
        client: a connection to where the stream ORDERS is.
        url: the same server's.
        fast_lane: whether the command reads past nats-py's public interface.
    """

    def __init__(self, client: Client, url: str, *, fast_lane: bool = True) -> None:
        self.client = client
        self.js = client.jetstream()
        self.url = url
        self.fast_lane = fast_lane
        self.created = ""
        self._window = PublishWindow(client, timeout_seconds=60)

    async def open(self) -> None:
        """Make the streams of orders and of dead letters, and the consumers of billing and shipping."""
        await self.js.add_stream(name="ORDERS", subjects=["orders.>"])
        await self.js.add_stream(
            name="SHOP_DEAD_LETTERS", subjects=["dead-letters.shop.>"], allow_direct=True
        )
        for durable in ("shop-billing", "shop-shipping"):
            await self.js.add_consumer(
                "ORDERS", ConsumerConfig(durable_name=durable, filter_subject="orders.placed")
            )
        await self._window.open()
        info = await stream_info(self.client, "ORDERS")
        assert info is not None
        self.created = str(info["created"])

    async def add(self, number: int, **changes: Any) -> int:
        """Write a letter, and return its id.

        Args:
            number: the original's sequence.
            changes: fields of `DeadLetter`.
        """
        actor = changes.get("actor", "billing")
        fields: dict[str, Any] = {
            "app": "shop",
            "actor": actor,
            "durable": f"shop-{actor}",
            "stream": "ORDERS",
            "stream_created": self.created,
            "subject": "orders.placed",
            "sequence": number,
            "body": b'{"number": %d}' % number,
            "headers": {"Content-Type": "application/json"},
            "reason": "exhausted",
            "error": f"ValueError: {number}",
            "attempts": 5,
            "trace_id": f"{number:032x}",
        }
        return await write(self._window, DeadLetter(**fields | changes), self.client.max_payload)

    async def count(self, stream: str = "SHOP_DEAD_LETTERS") -> int:
        """Return how many letters there are, or messages in another stream."""
        return (await self.js.stream_info(stream)).state.messages

    async def start(self, *arguments: str, stdin: int = DEVNULL) -> Process:
        """Start `understudy dead-letters` with some arguments, for who reads or interrupts it on the way."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "understudy.runtime", "dead-letters", *arguments, "--servers", self.url,
            stdin=stdin, stdout=PIPE, stderr=PIPE,
            env=self._environment(),
        )  # fmt: skip

    async def run(self, *arguments: str) -> Result:
        """Run `understudy dead-letters` with some arguments."""
        done = await asyncio.to_thread(
            run_command,
            *("dead-letters", *arguments, "--servers", self.url),
            environment=self._environment(),
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "UNDERSTUDY_NATS__FAST_LANE": str(self.fast_lane).lower()}


async def ended(process: Process) -> Result:
    """Return how a command ends."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())
