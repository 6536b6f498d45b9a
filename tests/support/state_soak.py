"""Entries through two actors with state, with duplicates, failures and deaths at chosen moments, checked.

`python -m support.state_soak --messages 100000`, in tests/, is the long form of what
tests/faults/test_state.py runs. The account goes to stdout as JSON; the exit status is 1 if anything differs
from what a plain computation over the entries gives. `--broken ack-first` has commits not waited for, and
must differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import nats

from support.nats import NatsServer
from support.running import Running, running, until
from support.state_app import ACTORS, APP, MOMENTS, Added, Entered, Sum
from support.streams import count_messages, is_settled
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.telemetry.logs import configure_logging

KEYS = 1000
# Published once more, later than their stream remembers ids.
AGAIN_ONE_IN = 10
PART = 500
AHEAD = 4000
# Of one cell's counts, so much may be missing when it dies.
MARGIN = 256
COUNTED = ("redelivered", "already_applied", "published_again", "committed", "conflicts", "failed", "retried")


class Account(msgspec.Struct, kw_only=True):
    """What a soak has shown.

    Args:
        entries: different ones.
        published: with those that were published again.
        seconds: it took.
        kills: by moment.
        counts: by actor, what its cells counted, as far as it was read before they died.
        differences: from the plain computation.
    """

    entries: int
    published: int
    seconds: float
    kills: dict[str, int]
    counts: dict[str, dict[str, int]]
    differences: list[str]


def entries_of(messages: int, seed: int) -> list[Entered]:
    """Return what is published, in order: each entry, and some again a while later."""
    chosen = random.Random(seed)
    fresh = [
        Entered(number=number, key=chosen.randrange(KEYS), amount=chosen.randrange(1000))
        for number in range(messages)
    ]
    published = []
    for first in range(0, messages, PART):
        published += fresh[first : first + PART]
        if first >= PART:
            published += chosen.sample(fresh[first - PART : first], PART // AGAIN_ONE_IN)
    return published


class _Soak:
    """One soak's run."""

    def __init__(self, server: NatsServer, run: Running, directory: Path, entries: list[Entered]) -> None:
        self.server = server
        self.run = run
        self.directory = directory
        self.entries = entries
        self.failure: BaseException | None = None
        self.kills: Counter[str] = Counter()
        # How many may have been published.
        self.allowed = 0
        self._counts: dict[tuple[str, int], dict[str, int]] = {}

    def publish(self) -> None:
        """Publish everything, never far ahead; runs in a thread of its own."""
        try:
            asyncio.run(self._publish())
        except BaseException as error:
            self.failure = error
            raise

    async def _publish(self) -> None:
        part = PART + PART // AGAIN_ONE_IN
        async with Publisher.connect(self.server.url) as publisher:
            for first in range(0, len(self.entries), part):
                # A key's entries one after the other, so that the stream has them in order.
                line = self.entries[first : first + part]
                confirmed = [
                    await publisher.publish_async(entry, message_id=f"e{entry.number}") for entry in line
                ]
                await asyncio.gather(*confirmed)
                while first >= self.allowed or first - self.handled() > AHEAD:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    def handled(self) -> int:
        """Return how many entries the slower actor has handled, about."""
        return min(self.counted(actor)["acked"] for actor in ACTORS)

    def look(self) -> None:
        """Read what the cells have counted."""
        for actor in ACTORS:
            cell = self.run.cell(f"{actor}/0")
            counters = (cell.get("status") or {}).get("counters")
            if counters:
                self._counts[actor, cell["supervision"]["generation"]] = counters

    def counted(self, actor: str) -> Counter[str]:
        """Return what all generations of an actor's cell have counted."""
        total: Counter[str] = Counter()
        for (whose, _), counters in list(self._counts.items()):
            if whose == actor:
                total.update(counters)
        return total

    def disturb(self, kills: int) -> None:
        """Have cells die, each moment in turn, all along the way."""
        for number in range(kills):
            goal = (number + 1) * len(self.entries) // (kills + 1)
            self.allowed = goal
            # What a cell counted last went with it.
            self._wait(lambda goal=goal - number * MARGIN - PART: self.handled() >= goal)
            actor, moment = ACTORS[number % 2], MOMENTS[number % len(MOMENTS)]
            request = self.directory / actor
            request.write_text(moment)
            # Now there is something more for it to die of.
            self.allowed = goal + len(self.entries) // (kills + 1)
            self._wait(lambda request=request: request.with_suffix(".done").exists())
            request.with_suffix(".done").unlink()
            self.kills[moment] += 1
            self._wait(lambda: self.run.get("/readyz")[0] == 200)
        self.allowed = len(self.entries)
        durables = [f"{APP}-{actor}" for actor in ACTORS]
        self._wait(lambda: not self._publishing() and is_settled(self.server.url, "ENTRIES", durables))

    def _publishing(self) -> bool:
        if self.failure is not None:
            raise self.failure
        return self.thread.is_alive()

    def _wait(self, condition: Any) -> None:
        def look() -> bool:
            if self.failure is not None:
                raise self.failure
            self.look()
            return bool(condition())

        until(look, 300)

    def start(self) -> None:
        """Begin to publish."""
        self.thread = threading.Thread(target=self.publish, name="publisher", daemon=True)
        self.thread.start()


async def _read(url: str) -> tuple[dict[str, dict[int, Sum]], dict[str, list[Added]]]:
    """Return the states by actor and key, and what was published by actor, in order."""
    client = await nats.connect(url)
    js = client.jetstream()
    bucket = await js.key_value(f"{APP}-state")
    states: dict[str, dict[int, Sum]] = defaultdict(dict)
    for key in await bucket.keys():
        durable, _, name = key.partition(".")
        value = msgspec.msgpack.decode((await bucket.get(key)).value or b"")[-1]
        states[durable.removeprefix(f"{APP}-")][int(name.removeprefix("="))] = msgspec.convert(value, Sum)
    outputs: dict[str, list[Added]] = defaultdict(list)
    subscription = await js.subscribe("sums.>", ordered_consumer=True)
    for _ in range((await js.stream_info("SUMS")).state.messages):
        added = msgspec.msgpack.decode((await subscription.next_msg(10)).data, type=Added)
        outputs[added.actor].append(added)
    await client.close()
    return states, outputs


def differences_of(
    entries: list[Entered], states: dict[str, dict[int, Sum]], outputs: dict[str, list[Added]]
) -> list[str]:
    """Return in what states and outputs differ from a plain computation over the entries."""
    by_key: dict[int, dict[int, Entered]] = defaultdict(dict)
    for entry in entries:
        by_key[entry.key].setdefault(entry.number, entry)
    found = []
    for actor in ACTORS:
        sums: dict[int, list[Added]] = defaultdict(list)
        for added in outputs[actor]:
            sums[added.key].append(added)
        for key, own in by_key.items():
            expected = Sum(count=len(own), total=sum(one.amount for one in own.values()), seen=set(own))
            if states[actor].get(key) != expected:
                found.append(f"{actor}: the state of {key} is {states[actor].get(key)}, not {expected}")
            # In order they are these; without order each once, and each the sum of those before it.
            numbers = [added.number for added in sums[key]]
            if actor == "ordered" and numbers != list(own):
                found.append(f"{actor}: {key} has published for {numbers}, not {list(own)}")
            if sorted(numbers) != sorted(own):
                found.append(f"{actor}: {key} has published for {sorted(numbers)}, not {sorted(own)}")
                continue
            total = 0
            for count, added in enumerate(sorted(sums[key], key=lambda added: added.count), start=1):
                total += own[added.number].amount
                if (added.count, added.total) != (count, total):
                    found.append(f"{actor}: {key} has published {added}, not {count} and {total}")
                    break
    return found


def soak(
    server: NatsServer, directory: Path, *, messages: int, kills: int, seed: int, broken: str = ""
) -> Account:
    """Run the app over so many entries, with cells killed meanwhile, and check what came of it.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        server: a broker that runs.
        directory: for the run's files.
        messages: how many different entries.
        kills: how many deaths.
        seed: of keys, amounts and what is published again.
        broken: what is broken on purpose, empty if nothing.
    """
    requests = directory / "requests"
    requests.mkdir()
    entries = entries_of(messages, seed)
    with running(
        server.url,
        directory,
        "support.state_app:app",
        STATE_DIRECTORY=str(requests),
        STATE_BROKEN=broken,
    ) as run:
        began = time.monotonic()
        work = _Soak(server, run, requests, entries)
        work.look()
        work.start()
        work.disturb(kills)
        work.look()
        seconds = time.monotonic() - began
        status = run.terminate(40)
    states, outputs = asyncio.run(_read(server.url))
    differences = differences_of(entries, states, outputs)
    if letters := count_messages(server.url, f"{APP.upper()}_DEAD_LETTERS"):
        differences.append(f"{letters} dead letters")
    if status:
        differences.append(f"exit status {status}")
    return Account(
        entries=messages,
        published=len(entries),
        seconds=round(seconds, 1),
        kills=dict(work.kills),
        counts={actor: {name: work.counted(actor)[name] for name in COUNTED} for actor in ACTORS},
        differences=differences,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m support.state_soak", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--broken", choices=["", "ack-first"], default="")
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = soak(
            server,
            Path(directory),
            messages=options.messages,
            kills=options.kills,
            seed=options.seed,
            broken=options.broken,
        )
    shown = {**msgspec.to_builtins(account), "differences": account.differences[:20]}
    print(json.dumps({"seed": options.seed, "broken": options.broken, **shown}, indent=2))
    return 1 if account.differences else 0


if __name__ == "__main__":
    sys.exit(main())
