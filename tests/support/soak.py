"""Events through a chain of three actors while cells and the broker are killed, and an account of every run.

`python -m support.soak --messages 1000000`, in tests/, is the long form of what
tests/faults/test_data_path.py runs. Progress goes to stderr, the account as JSON to stdout; the exit status
is 1 if it doesn't add up.
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
from collections import Counter
from pathlib import Path

import msgspec

from support.account import Kill, Outage, Recorded, Stage, account_of, is_outage
from support.load import publish_confirmed
from support.nats import NatsServer
from support.records import count_records
from support.relay import (
    ACK_WAIT_SECONDS,
    ACTORS,
    CAPACITY,
    CONCURRENCY,
    Entered,
)
from support.running import Running, running, until
from support.streams import count_messages, is_settled
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.telemetry.logs import configure_logging

KEYS = 256
SOLE_OWNERS = ("intake", "tally")
CELLS = ("intake/0", "tally/0", "archive/0", "archive/1")
RECORDED = {
    actor: Recorded(
        actor=actor,
        keys=KEYS,
        concurrency=CONCURRENCY if actor in SOLE_OWNERS else 1,
        held=CAPACITY * sum(cell.startswith(actor) for cell in CELLS),
        ack_wait_seconds=ACK_WAIT_SECONDS,
        is_sole_owner=actor in SOLE_OWNERS,
    )
    for actor in ACTORS
}
KILLED = "killed by SIGKILL"


class Account(msgspec.Struct, kw_only=True):
    """What a soak has shown.

    Args:
        messages: that were published.
        seconds: from the first published to the last handled.
        kills: of cells.
        outages: of the broker.
        ends: of cells, by reason, but for those that could not start while the broker was away.
        dead_letters: that were written.
        exit_status: the run's.
        stages: by actor.
    """

    messages: int
    seconds: float
    kills: int
    outages: int
    ends: dict[str, int]
    dead_letters: int
    exit_status: int
    stages: dict[str, Stage]

    def differences(self) -> list[str]:
        """Return what is not as it must be."""
        found = []
        if self.dead_letters:
            found.append(f"{self.dead_letters} dead letters")
        if self.exit_status:
            found.append(f"exit status {self.exit_status}")
        if self.ends.get(KILLED, 0) > self.kills:
            found.append(f"{self.kills} cells killed, {self.ends[KILLED]} died so")
        found += [f"a cell ended: {reason}" for reason in self.ends if reason != KILLED]
        for name, stage in self.stages.items():
            found += [f"{name}: {difference}" for difference in stage.differences()]
        return found


class _Soak:
    """One soak's run, from the first event to the last ack."""

    def __init__(
        self, server: NatsServer, run: Running, directory: Path, messages: int, seed: int, progress: bool
    ) -> None:
        self.server = server
        self.run = run
        self.directory = directory
        self.messages = messages
        self.kills: list[Kill] = []
        self.outages: list[Outage] = []
        self.published = 0
        self.began = time.monotonic()
        self.failure: BaseException | None = None
        self._random = random.Random(seed)
        self._progress = progress
        self._said = 0.0

    def publish(self) -> None:
        """Publish everything, never far ahead; runs in a thread of its own."""
        try:
            asyncio.run(self._publish())
        except BaseException as error:
            self.failure = error
            raise

    async def _publish(self) -> None:
        async with Publisher.connect(self.server.url) as publisher:
            for first in range(0, self.messages, KEYS):
                # One of each key, and all of them confirmed before the next, so that the stream has each
                # key's in order whatever has to be tried again.
                numbers = range(first, min(first + KEYS, self.messages))
                events = (Entered(number=number, key=number % KEYS) for number in numbers)
                await asyncio.gather(
                    *(publish_confirmed(publisher, event, f"n{event.number}") for event in events)
                )
                self.published = numbers.stop
                while self.published - self.handled() > self.messages // 5 + KEYS:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    def handled(self) -> int:
        """Return how many runs the last actor has recorded."""
        return count_records(self.directory, ACTORS[-1])

    def disturb(self, kill_every_seconds: float) -> None:
        """Kill cells now and then, stop the broker after a third and kill it after two, until all is done.

        Each kill waits until more is done than at the one before: else a machine may be too busy to get on.
        """
        next_kill = time.monotonic() + kill_every_seconds
        done_at_kill = 0
        while True:
            done = self.handled()
            self._say(done)
            if self.failure is not None:
                raise self.failure
            if len(self.outages) < 2 and done >= self.messages * (1 + len(self.outages)) // 3:
                self._restart_broker()
            elif done >= self.messages and self._is_settled():
                return
            elif done_at_kill < done < self.messages and time.monotonic() >= next_kill:
                self._kill(self._random.choice(CELLS))
                done_at_kill = done
                next_kill = time.monotonic() + kill_every_seconds * self._random.uniform(0.5, 1.5)
            time.sleep(0.02)

    def _restart_broker(self) -> None:
        began = time.monotonic_ns()
        if not self.outages:
            self.server.stop()
        else:
            self.server.kill()
            self._kill(self._random.choice(CELLS))
        gone = time.monotonic_ns()
        self.server.start()
        until(lambda: self.run.get("/readyz")[0] == 200)
        self.outages.append(Outage(began, gone, time.monotonic_ns()))

    def _kill(self, cell: str) -> None:
        supervision = self.run.cell(cell)["supervision"]
        if supervision["state"] == "up":
            try:
                os.kill(supervision["pid"], signal.SIGKILL)
            except ProcessLookupError:
                # It failed meanwhile, and the account says why.
                return
            self.kills.append(Kill(supervision["pid"], time.monotonic_ns()))

    def _is_settled(self) -> bool:
        return is_settled(self.server.url, "RELAY", [f"relay-{actor}" for actor in ACTORS])

    def _say(self, done: int) -> None:
        now = time.monotonic()
        if self._progress and now >= self._said + 1:
            self._said = now
            seconds = now - self.began
            print(
                f"{seconds:6.1f} s  {self.published} published, {done} handled by all, "
                f"{len(self.kills)} kills, {len(self.outages)} outages",
                file=sys.stderr,
                flush=True,
            )


def soak(
    server: NatsServer,
    directory: Path,
    *,
    messages: int,
    kill_every_seconds: float,
    seed: int,
    progress: bool = False,
) -> Account:
    """Run the chain over so many events, with cells and the broker killed meanwhile.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        server: a broker that runs.
        directory: for the run's files.
        messages: how many events.
        kill_every_seconds: how often a cell is killed, on average.
        seed: of the choice which and when.
        progress: whether stderr is told each second.
    """
    records = directory / "records"
    records.mkdir()
    with running(server.url, directory, "support.relay:app", RELAY_DIRECTORY=str(records)) as run:
        work = _Soak(server, run, records, messages, seed, progress)
        publishing = threading.Thread(target=work.publish, name="publisher", daemon=True)
        publishing.start()
        work.disturb(kill_every_seconds)
        seconds = time.monotonic() - work.began
        publishing.join()
        ends = Counter(
            str(entry["reason"])
            for entry in run.events("cell exited")
            if entry["reason"] == KILLED or not is_outage(work.outages, entry["time"])
        )
        exit_status = run.terminate()
    return Account(
        messages=messages,
        seconds=round(seconds, 1),
        kills=len(work.kills),
        outages=len(work.outages),
        ends=ends,
        dead_letters=count_messages(server.url, "RELAY_DEAD_LETTERS"),
        exit_status=exit_status,
        stages={
            actor: account_of(recorded, records, messages, work.kills, work.outages)
            for actor, recorded in RECORDED.items()
        },
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m support.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--kill-every-seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = soak(
            server,
            Path(directory),
            messages=options.messages,
            kill_every_seconds=options.kill_every_seconds,
            seed=options.seed,
            progress=True,
        )
    differences = account.differences()
    result = {"seed": options.seed, **msgspec.to_builtins(account), "differences": differences}
    print(json.dumps(result, indent=2))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
