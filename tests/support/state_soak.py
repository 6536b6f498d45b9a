"""Entries through two actors with state, with duplicates, failures and deaths at chosen moments, checked.

`python -m support.state_soak --messages 100000`, in tests/, is the long form of what
tests/faults/test_state.py runs, and with `--once` that of idempotent actors. The account goes to stdout as
JSON; the exit status is 1 if anything differs from what a plain computation over the entries gives.
`--fault kill` (or `term`, `stop`) does that to the broker instead, which is back soon; `--double-ack`,
`--batched` and `--telling` are of the actors, and `--moment any` has all deaths come when they will.
`--broken ack-first` has commits not waited for, `--broken suspects-first` has a replacement begin with what
was being handled, `--once --broken mark-first` has marks made before the handlers run; all must differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import nats

from support.nats import NatsServer
from support.running import Running, running, until
from support.state_app import (
    ACTORS,
    ANY,
    APP,
    BATCHED,
    BATCHED_MOMENTS,
    MOMENTS,
    ONCE,
    ONCE_MOMENTS,
    ONE_ORDER,
    STATELESS,
    TELLING,
    TELLING_MOMENTS,
    Added,
    Entered,
    Sum,
)
from support.streams import count_messages, is_settled
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.telemetry.logs import configure_logging

KEYS = 1000
# So few of them have half of all entries, and so several that wait in a mailbox.
HOT_KEYS = 32
ANY_WITHIN_SECONDS = 0.2
# Published once more, later than their stream remembers ids; and as many at once, under an id of their own.
AGAIN_ONE_IN = 10
PART = 500
# What the broker is sent, and how long it is stopped: longer than a request waits for its answer.
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
STOP_SECONDS = 3.0
AHEAD = 4000
LINE = 100
# Of one cell's counts, so much may be missing when it dies.
MARGIN = 256
COUNTED = (
    *("redelivered", "already_applied", "published_again", "committed", "conflicts", "failed", "retried"),
    *("duplicates", "mark_conflicts"),
)


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
    """Return what is published, in order: each entry, some again at once, and some a while later."""
    chosen = random.Random(seed)
    fresh = [
        Entered(
            number=number,
            key=chosen.randrange(chosen.choice((HOT_KEYS, KEYS))),
            amount=chosen.randrange(1000),
        )
        for number in range(messages)
    ]
    published = []
    for first in range(0, messages, PART):
        part = fresh[first : first + PART]
        at_once = set(chosen.sample(range(len(part)), len(part) // AGAIN_ONE_IN))
        published += [entry for index, entry in enumerate(part) for _ in range(2 if index in at_once else 1)]
        if first >= PART:
            published += chosen.sample(fresh[first - PART : first], PART // AGAIN_ONE_IN)
    return published


class _Soak:
    """One soak's run."""

    def __init__(
        self,
        server: NatsServer,
        run: Running,
        directory: Path,
        entries: list[Entered],
        actors: Sequence[str],
        moments: Mapping[str, Sequence[str]],
        fault: str,
        seed: int,
    ) -> None:
        self.server = server
        self.run = run
        self.directory = directory
        self.entries = entries
        self.actors = actors
        self.moments = moments
        self.fault = fault
        self._random = random.Random(seed)
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
        before: Entered | None = None
        async with Publisher.connect(self.server.url) as publisher:
            for first in range(0, len(self.entries), LINE):
                # No more than is allowed: whoever is to die has to have something left to die of.
                while first >= self.allowed or first - self.handled() > AHEAD:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                # A key's entries one after the other, so that the stream has them in order.
                confirmed = []
                for entry in self.entries[first : first + LINE]:
                    # At once after itself, it needs another id.
                    message_id = f"e{entry.number}{'.2' if entry is before else ''}"
                    confirmed.append(await publisher.publish_async(entry, message_id=message_id))
                    before = entry
                await asyncio.gather(*confirmed)

    def handled(self) -> int:
        """Return how many entries the slower actor has handled, about."""
        return min(sum(self.counted(actor)[one] for one in ("acked", "duplicates")) for actor in self.actors)

    def look(self) -> None:
        """Read what the cells have counted."""
        for actor in self.actors:
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
            lost = 0 if self.fault else number * MARGIN
            self._wait(lambda goal=goal - lost - PART: self.handled() >= goal)
            actor = self.actors[number % len(self.actors)]
            # Each of both by turns, also of so many as the actors.
            moments = self.moments[actor]
            moment = moments[(number + number // len(moments)) % len(moments)]
            request = self.directory / actor
            if moment != ANY:
                self._request(request, moment)
            # Now there is something more for it to die of.
            self.allowed = goal + len(self.entries) // (kills + 1)
            if moment == ANY:
                time.sleep(self._random.uniform(0, ANY_WITHIN_SECONDS))
                os.kill(*self._victim(actor))
            else:
                self._wait(lambda request=request: request.with_suffix(".done").exists())
                request.with_suffix(".done").unlink()
            self._restore()
            self.kills[moment] += 1
            self._wait(lambda: self.run.get("/readyz")[0] == 200)
        self.allowed = len(self.entries)
        durables = [f"{APP}-{actor}" for actor in self.actors]
        self._wait(lambda: not self._publishing() and is_settled(self.server.url, "ENTRIES", durables))

    def _victim(self, actor: str) -> tuple[int, int]:
        """Return who is to be sent which signal."""
        if self.fault:
            return self.server.pid, int(SIGNALS[self.fault])
        return int(self.run.cell(f"{actor}/0")["supervision"]["pid"]), signal.SIGKILL

    def _request(self, request: Path, moment: str) -> None:
        """Ask for a death; whole at once, since a cell may be reading."""
        victim = " {} {}".format(*self._victim("")) if self.fault else ""
        request.with_suffix(".new").write_text(moment + victim)
        request.with_suffix(".new").rename(request)

    def _restore(self) -> None:
        """Have the broker back."""
        if self.fault == "stop":
            time.sleep(STOP_SECONDS)
            os.kill(self.server.pid, signal.SIGCONT)
        elif self.fault:
            self.server.restart()

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
    # Not by its keys(), which returned none of a thousand once, on a busy machine.
    info = await js.stream_info(f"KV_{APP}-state", subjects_filter=">")
    for subject in info.state.subjects or {}:
        key = subject.removeprefix(f"$KV.{APP}-state.")
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


def _by_key(published: list[Added], *, repeats: bool) -> dict[int, list[Added]]:
    """Return what was published by key; who keeps nothing repeats it of an entry that was published twice."""
    sums: dict[int, list[Added]] = defaultdict(list)
    told: set[int] = set()
    for added in published:
        if repeats or added.number not in told:
            sums[added.key].append(added)
        told.add(added.number)
    return sums


def _in_one_order(entries: list[Entered], published: list[Added]) -> bool:
    """Return whether something was first published of each entry in the order of the entries."""
    return list(dict.fromkeys(one.number for one in published)) == list(
        dict.fromkeys(entry.number for entry in entries)
    )


def differences_of(
    entries: list[Entered],
    actors: Sequence[str],
    states: dict[str, dict[int, Sum]],
    outputs: dict[str, list[Added]],
) -> list[str]:
    """Return in what states and outputs differ from a plain computation over the entries.

    Outputs are published in the order in which their events were handled, by the run that counts.
    """
    by_key: dict[int, dict[int, Entered]] = defaultdict(dict)
    for entry in entries:
        by_key[entry.key].setdefault(entry.number, entry)
    found = []
    for actor in actors:
        sums = _by_key(outputs[actor], repeats=actor not in TELLING)
        if actor == ONE_ORDER and not _in_one_order(entries, outputs[actor]):
            found.append(f"{actor}: entries were handled in another order than they were published in")
        for key, own in by_key.items():
            expected = Sum(count=len(own), total=sum(one.amount for one in own.values()), seen=set(own))
            if actor not in STATELESS and states[actor].get(key) != expected:
                found.append(f"{actor}: the state of {key} is {states[actor].get(key)}, not {expected}")
            # In order they are these; without order each once, and each the sum of those before it.
            numbers = [added.number for added in sums[key]]
            if not actor.endswith("unordered") and numbers != list(own):
                found.append(f"{actor}: {key} has published for {numbers}, not {list(own)}")
            if sorted(numbers) != sorted(own):
                found.append(f"{actor}: {key} has published for {sorted(numbers)}, not {sorted(own)}")
                continue
            if actor in STATELESS:
                continue
            total = 0
            for count, added in enumerate(sorted(sums[key], key=lambda added: added.count), start=1):
                total += own[added.number].amount
                if (added.count, added.total) != (count, total):
                    found.append(f"{actor}: {key} has published {added}, not {count} and {total}")
                    break
    return found


def soak(
    server: NatsServer,
    directory: Path,
    *,
    messages: int,
    kills: int,
    seed: int,
    broken: str = "",
    once: bool = False,
    fault: str = "",
    double_ack: bool = False,
    batched: bool = False,
    telling: bool = False,
    only: Sequence[str] = (),
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
        once: whether the actors are the idempotent ones.
        fault: what befalls the broker; empty if cells are killed.
        double_ack: whether the actors wait for their acks.
        batched: whether there is another one that handles batches.
        telling: whether there are those that keep nothing: with a key, of one order, of batches.
        only: the moments; by default all there are.
    """
    actors = (
        *(ONCE if once else ACTORS),
        *((BATCHED,) if batched else ()),
        *(TELLING if telling else ()),
    )
    moments: dict[str, Sequence[str]] = dict.fromkeys(actors, only or (ONCE_MOMENTS if once else MOMENTS))
    if batched:
        moments[BATCHED] = only or BATCHED_MOMENTS
    if telling:
        moments |= dict.fromkeys(TELLING, only or TELLING_MOMENTS)
    requests = directory / "requests"
    requests.mkdir()
    entries = entries_of(messages, seed)
    with running(
        server.url,
        directory,
        "support.state_app:app",
        STATE_DIRECTORY=str(requests),
        STATE_BROKEN=broken,
        STATE_ACTORS=",".join(actors),
        STATE_DOUBLE_ACK="1" if double_ack else "",
    ) as run:
        began = time.monotonic()
        work = _Soak(server, run, requests, entries, actors, moments, fault, seed)
        work.look()
        work.start()
        work.disturb(kills)
        work.look()
        seconds = time.monotonic() - began
        status = run.terminate()
    states, outputs = asyncio.run(_read(server.url))
    differences = differences_of(entries, actors, states, outputs)
    if letters := count_messages(server.url, f"{APP.upper()}_DEAD_LETTERS"):
        differences.append(f"{letters} dead letters")
    if status:
        differences.append(f"exit status {status}")
    return Account(
        entries=messages,
        published=len(entries),
        seconds=round(seconds, 1),
        kills=dict(work.kills),
        counts={actor: {name: work.counted(actor)[name] for name in COUNTED} for actor in actors},
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
    parser.add_argument("--broken", choices=["", "ack-first", "mark-first", "suspects-first"], default="")
    parser.add_argument("--once", action="store_true", help="with the idempotent actors")
    parser.add_argument("--fault", choices=["", *SIGNALS], default="", help="of the broker, not of cells")
    parser.add_argument("--double-ack", action="store_true")
    parser.add_argument("--batched", action="store_true", help="with one more actor, of batches")
    parser.add_argument("--telling", action="store_true", help="with three more, which keep nothing")
    parser.add_argument("--moment", action="append", default=[], choices=sorted({*MOMENTS, *ONCE_MOMENTS}))
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
            once=options.once,
            fault=options.fault,
            double_ack=options.double_ack,
            batched=options.batched,
            telling=options.telling,
            only=options.moment,
        )
    shown = {**msgspec.to_builtins(account), "differences": account.differences[:20]}
    print(json.dumps({"seed": options.seed, "broken": options.broken, **shown}, indent=2))
    return 1 if account.differences else 0


if __name__ == "__main__":
    sys.exit(main())
