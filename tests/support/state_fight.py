"""Two nodes fight for one key, with nobody pinned; what they have counted is checked.

`python -m support.state_fight --messages 10000`, in tests/, is the long form of what
tests/faults/test_state.py runs: two launchers, each with its own supervisor and cell, on one server. The
account goes to stdout as JSON; the exit status is 1 if an update or an output was lost, or was made twice.
With `--once` every event is published twice, and the actor is idempotent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import msgspec
import nats

from support.fight_app import ACTOR, APP, KEY, Counted, Hit
from support.nats import NatsServer
from support.running import Running, running, until
from support.streams import is_settled
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.telemetry.logs import configure_logging

NODES = ("one", "two")
PART = 500
SHOWN = ("handled", "committed", "conflicts", "duplicates", "already_applied", "mark_conflicts")


class Account(msgspec.Struct, kw_only=True):
    """What a fight has shown.

    Args:
        events: different ones.
        count: what the state says.
        outputs: how many are stored.
        seconds: it took.
        counts: of each node.
        differences: from what it had to be.
    """

    events: int
    count: int
    outputs: int
    seconds: float
    counts: dict[str, dict[str, int]]
    differences: list[str]


async def _publish(url: str, events: int, *, twice: bool) -> None:
    async with Publisher.connect(url) as publisher:
        for first in range(0, events, PART):
            confirmed = [
                await publisher.publish_async(Hit(number=number))
                for number in range(first, min(first + PART, events))
                for _ in range(2 if twice else 1)
            ]
            await asyncio.gather(*confirmed)


async def _read(url: str) -> tuple[int, list[Counted]]:
    """Return what the state says, and what was published."""
    client = await nats.connect(url)
    js = client.jetstream()
    entry = await (await js.key_value(f"{APP}-state")).get(f"{APP}-{ACTOR}.{KEY}")
    count = int(msgspec.msgpack.decode(entry.value or b"")[-1]["count"])
    outputs = []
    if stored := (await js.stream_info("COUNTED")).state.messages:
        subscription = await js.subscribe("counted.>", ordered_consumer=True)
        outputs = [
            msgspec.msgpack.decode((await subscription.next_msg(10)).data, type=Counted)
            for _ in range(stored)
        ]
    await client.close()
    return count, outputs


def _differences(events: int, count: int, outputs: list[Counted]) -> list[str]:
    found = []
    if count != events:
        found.append(f"the state's count is {count}, not {events}")
    numbers = Counter(output.number for output in outputs)
    found += [f"{one} has {numbers[one]} outputs" for one in range(events) if numbers[one] != 1]
    counts = Counter(output.count for output in outputs)
    found += [f"{counts[one]} outputs count {one}" for one in range(1, events + 1) if counts[one] != 1]
    return found


def _counts(run: Running) -> dict[str, int]:
    counters = run.cell(f"{ACTOR}/0")["status"]["counters"]
    return {name: counters[name] for name in SHOWN}


def fight(server: NatsServer, directory: Path, *, events: int, once: bool = False) -> Account:
    """Have two nodes count events of one key, and check what came of it.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        server: a broker that runs.
        directory: for the nodes' files.
        events: how many.
        once: whether each is published twice, for an actor that is idempotent.
    """
    with ExitStack() as stack:
        nodes = []
        for name in NODES:
            (directory / name).mkdir()
            nodes.append(
                stack.enter_context(
                    running(
                        server.url,
                        directory / name,
                        "support.fight_app:app",
                        FIGHT_ONCE="1" if once else "",
                    )
                )
            )
        began = time.monotonic()
        asyncio.run(_publish(server.url, events, twice=once))
        until(lambda: is_settled(server.url, "HITS", [f"{APP}-{ACTOR}"]), max(100, events / 5))
        seconds = time.monotonic() - began
        published = events * (2 if once else 1)

        def all_counted() -> bool:
            # They are told with the next heartbeat.
            found = [_counts(node) for node in nodes]
            return sum(one["handled"] + one["duplicates"] for one in found) >= published

        until(all_counted)
        counts = {name: _counts(node) for name, node in zip(NODES, nodes, strict=True)}
        statuses = [node.terminate() for node in nodes]
    count, outputs = asyncio.run(_read(server.url))
    differences = _differences(events, count, outputs)
    differences += [f"exit status {status}" for status in statuses if status]
    return Account(
        events=events,
        count=count,
        outputs=len(outputs),
        seconds=round(seconds, 1),
        counts=counts,
        differences=differences,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a fight as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m support.state_fight", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--once", action="store_true", help="publish each twice, to an idempotent actor")
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = fight(server, Path(directory), events=options.messages, once=options.once)
    shown = {**msgspec.to_builtins(account), "differences": account.differences[:20]}
    print(json.dumps(shown, indent=2))
    return 1 if account.differences else 0


if __name__ == "__main__":
    sys.exit(main())
