"""Where a plain program finds what its Publisher has to say, whose stdout may be data."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import nats
from nats.js.api import StreamConfig

from support.nats import NatsServer

TESTS = Path(__file__).parents[1]
SECONDS = 60


async def make_stream(url: str) -> None:
    """Make the stream that all is published to."""
    client = await nats.connect(url)
    await client.jetstream().add_stream(StreamConfig("ORDERS", subjects=["orders.>"]))
    await client.close()


def test_nothing_of_it_is_on_stdout_and_warnings_are_on_stderr(nats_server: NatsServer) -> None:
    """As Python's logging has it by default: here nobody has configured that, nor structlog."""
    asyncio.run(make_stream(nats_server.url))
    with subprocess.Popen(
        [sys.executable, "-m", "support.logging_publisher", nats_server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as program:
        try:
            assert program.stdout is not None
            printed = program.stdout.readline()
            nats_server.restart()
            rest, said = program.communicate("\n", SECONDS)
        finally:
            program.kill()
    assert program.returncode == 0, said
    assert printed + rest == "1\n2\n"
    assert "broker connection lost" in said.splitlines()
    assert "broker connection restored" not in said
