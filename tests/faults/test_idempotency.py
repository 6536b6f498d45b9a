"""What a service is told by an idempotent actor whose cells are killed, and whose events come twice."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from support.nats import NatsServer
from support.notices import DUPLICATE_WINDOW_SECONDS, MOMENTS, Delayed
from support.running import running, until
from understudy.config.connection import ConnectionSpec
from understudy.examples.flights.service import Service
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.jetstream.topology import backlog

PART = 40
KILLS_OF_EACH = 3
EVENTS = PART * KILLS_OF_EACH * len(MOMENTS)
LATE_REPEATS = 100


async def publish(url: str, numbers: list[int]) -> None:
    """Publish events of these numbers, each under the id that belongs to it."""
    async with Publisher.connect(url) as publisher:
        for number in numbers:
            await publisher.publish(Delayed(number=number), message_id=f"notice-{number}")


async def look(url: str) -> dict[str, Any]:
    """Return what the server says of both streams and the consumer."""
    client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")
    try:
        js = client.jetstream()
        left = await backlog(client, "NOTICES", "notices-notifier")
        return {
            "left": left.pending + left.ack_pending,
            "published": (await js.stream_info("NOTICES")).state.messages,
            "told": (await js.stream_info("TOLD")).state.messages,
            "letters": (await js.stream_info("NOTICES_DEAD_LETTERS")).state.messages,
        }
    finally:
        await client.close()


def test_a_service_is_told_once_although_events_come_twice_and_cells_are_killed(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Twelve kill -9 at four moments; repeats within the stream's duplicate window and long after it.

    Who dies within a handler can't know how far it came: what it was telling the service it tells again, and
    by the key the service knows it. What has left its handler, its output confirmed, is never handled again.
    """
    url, moments = nats_server.url, tmp_path / "moments"
    moments.mkdir()
    with Service(0) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        with running(
            url,
            tmp_path,
            target="support.notices:app",
            NOTICES_URL=service.url,
            NOTICES_MOMENTS=str(moments),
        ) as run:
            first_half_at = 0.0
            for number in range(KILLS_OF_EACH * len(MOMENTS)):
                deadly = moments / f"{MOMENTS[number % len(MOMENTS)]}.{number}"
                deadly.touch()
                part = range(number * PART, (number + 1) * PART)
                # The stream itself drops what comes again at once.
                asyncio.run(publish(url, [event for event in part for _ in range(2)]))
                until(lambda: not deadly.exists())  # noqa: B023
                if part.stop <= EVENTS // 2:
                    first_half_at = time.monotonic()
            # Else an original that a dead cell had held could run beside its repeat, in another cell.
            until(lambda: asyncio.run(look(url))["left"] == 0)
            # A second more, since the stream looks only now and then what is out of its window.
            until(lambda: time.monotonic() > first_half_at + DUPLICATE_WINDOW_SECONDS + 1)
            late = random.Random(7).sample(range(EVENTS // 2), LATE_REPEATS)
            asyncio.run(publish(url, late))
            until(lambda: asyncio.run(look(url))["left"] == 0)
            found = asyncio.run(look(url))

            def duplicates() -> int:
                cells = (run.cell(f"notifier/{index}")["status"]["counters"] for index in (0, 1))
                return sum(counters["duplicates"] for counters in cells)

            # Counters are told with the next heartbeat.
            until(lambda: duplicates() >= LATE_REPEATS)
            conflicts = run.events("handled twice: its key was marked while it was handled")
        ledger = service.ledger.report()
        service.shutdown()
    assert found["published"] == EVENTS + LATE_REPEATS
    runs = Counter(line for line in run.record.read_text().splitlines())
    keys = {f"notice-{number}" for number in range(EVENTS)}
    assert {line: count for line, count in runs.items() if line.startswith("handled")} == {
        f"handled {key}": 1 for key in keys
    }
    assert ledger["notices"].keys() == keys
    interrupted = sum(count for line, count in runs.items() if line.startswith("begun")) - EVENTS
    assert interrupted >= KILLS_OF_EACH
    assert ledger["repeated"] <= interrupted
    assert (found["told"], found["letters"], conflicts) == (EVENTS, 0, [])
