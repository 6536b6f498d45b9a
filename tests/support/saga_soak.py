"""Many sagas over a service that fails, hangs and lies, with kills meanwhile: all end, or are stuck.

Of its answers 10 % fail (half of the actions' refusals, which are for good), 1 % never come and nothing is
done, and 1 % never come though the work is done. At the end every saga has ended or is stuck, and the ledger
agrees: of a complete one each action is there, of a compensated one each action that is there is undone, the
last first.

    cd tests && python -m support.saga_soak --sagas 10000 --kills 20 --broker-kills 3
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from support.nats import NatsServer
from support.running import Running, running, until
from support.saga_app import APP, FORWARDS, Delayed
from support.saga_costs import StoreCost, commits, cost_of_a_commit, cpu_seconds
from support.saga_records import Progress, records
from support.saga_service import FAILS, HANGS, LIES, REFUSES, WORKS, Service
from support.streams import count_messages
from understudy.actors.saga import SagaRecord
from understudy.actors.saga_position import Phase
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.telemetry.logs import configure_logging

BUCKET = f"{APP}-state"
DURABLE = f"{APP}-rebooking-0"
CELLS = ("rebooking-0/0", "payments/0")
BROKER = "broker"
_TIMEOUT_SECONDS = 3600.0


class Costs(msgspec.Struct, kw_only=True):
    """What the sagas took, and how much of that was their store.

    Args:
        saga_cpu_us: of their cell, a saga.
        broker_cpu_us: of the broker, a saga, with what the service's actor and the timers have it do.
        service_cpu_us: of the service and of who watches, a saga.
        commits: a saga.
        commit: what one takes alone.
        share_of_saga_cpu: of the cell's CPU time, what so many commits take.
        share_of_broker_cpu: of the broker's.
    """

    saga_cpu_us: float
    broker_cpu_us: float
    service_cpu_us: float
    commits: float
    commit: StoreCost
    share_of_saga_cpu: float
    share_of_broker_cpu: float


class SoakAccount(msgspec.Struct, kw_only=True):
    """What came of a soak.

    Args:
        sagas: how many were started.
        seconds: from the first start to the last end.
        per_second: sagas that ended.
        kills: of cells.
        broker_kills: of the broker, which is started again at once.
        phases: how many ended how.
        behaved: how often the service did what.
        stuck: which are stuck, and why.
        costs: what they took.
        differences: what should not be.
    """

    sagas: int
    seconds: float
    per_second: float
    kills: int
    broker_kills: int
    phases: dict[str, int]
    behaved: dict[str, int]
    stuck: dict[str, str]
    costs: Costs
    differences: list[str]


def misbehaving(seed: int, key: str, number: int) -> str:
    """What the service does with a request: of its key, and how many came with that before."""

    def draw(*what: object) -> float:
        digest = hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    if key.endswith(".do") and draw(key) < 0.05:
        return REFUSES
    drawn = draw(key, number)
    for share, how in ((0.05 if key.endswith(".do") else 0.10, FAILS), (0.01, HANGS), (0.01, LIES)):
        if drawn < share:
            return how
        drawn -= share
    return WORKS


def differences_of(started: list[str], found: dict[str, SagaRecord], ledger: list[str]) -> list[str]:
    """Return in what records and ledger differ from what they should be."""
    effects: dict[str, list[str]] = {saga: [] for saga in started}
    differences = []
    if repeated := [key for key, count in Counter(ledger).items() if count > 1]:
        differences.append(f"done more than once: {repeated[:5]}")
    for key in ledger:
        _, _, saga, step, direction = key.split(".")
        effects.setdefault(saga, []).append(f"{step} {direction}")
    for saga, had in effects.items():
        record = found.get(saga)
        phase = None if record is None else record.position.phase
        done = [one.partition(" ")[0] for one in had if one.endswith(" do")]
        undone = [one.partition(" ")[0] for one in had if one.endswith(" undo")]
        if phase is Phase.COMPLETED:
            if had != FORWARDS:
                differences.append(f"{saga} is complete, but the service has {had}")
        elif phase is Phase.COMPENSATED:
            # What may have been done is undone, too; nothing undoes the last step.
            wanted = {one for one in done if one != "notify"}
            order = [one.partition(" ")[0] for one in FORWARDS]
            if not wanted <= set(undone) or undone != sorted(undone, key=order.index, reverse=True):
                differences.append(f"{saga} is compensated, but the service has {had}")
        elif phase is not Phase.STUCK:
            differences.append(f"{saga} is {phase}")
    return differences


def publish(url: str, sagas: list[str]) -> None:
    """Start sagas."""

    async def all_of_them() -> None:
        async with Publisher.connect(url) as publisher:
            confirmed = [await publisher.publish_async(Delayed(booking=saga)) for saga in sagas]
            await asyncio.gather(*confirmed)

    asyncio.run(all_of_them())


def soak(
    server: NatsServer, directory: Path, *, sagas: int, kills: int, broker_kills: int = 0, seed: int
) -> SoakAccount:
    """Run so many sagas, with cells and the broker killed meanwhile, and check what came of it.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        server: a broker that runs.
        directory: for the run's files.
        sagas: how many.
        kills: how many deaths of cells.
        broker_kills: how many of the broker.
        seed: of what the service does, and of when cells die.
    """
    started = [f"saga-{number}" for number in range(sagas)]
    chosen = random.Random(seed)
    # Over all of the run, wherever each hits.
    deaths = [chosen.choice(CELLS) for _ in range(kills)] + [BROKER] * broker_kills
    chosen.shuffle(deaths)
    due = [sagas * (number + chosen.random()) / (len(deaths) + 1) for number in range(len(deaths))]
    with (
        Service(lambda key, number: misbehaving(seed, key, number)) as service,
        running(
            server.url,
            directory,
            "support.saga_app:app",
            SERVICE_PORT=str(service.port),
            SAGA_CELLS="1",
            STEP_TIMEOUT_SECONDS="2",
        ) as run,
    ):
        spent = _Spent(run, server)
        progress = Progress(server.url, BUCKET, DURABLE, started)
        killed = Counter[str]()
        told = begun = 0

        def begin() -> None:
            """Start those up to the death after next: whoever is to die has to have something left to do."""
            nonlocal begun
            allowed = min(sagas, sagas * (len(due) - len(deaths) + 2) // (len(due) + 1))
            publish(server.url, started[begun:allowed])
            begun = allowed

        def are_over() -> bool:
            nonlocal told
            done = progress.over()
            if done * 10 // sagas > told:
                told = done * 10 // sagas
                print(f"{done:,} over after {time.monotonic() - began:.1f} s", file=sys.stderr)
            if deaths and done >= due[-len(deaths)]:
                name = deaths.pop(0)
                spent.kill(name)
                killed[name] += 1
                begin()
            return done >= sagas

        began = time.monotonic()
        begin()
        until(are_over, _TIMEOUT_SECONDS)
        seconds = time.monotonic() - began
        found = records(server.url, BUCKET)
        costs = spent.costs(sagas)
        status = run.terminate(60)
    differences = differences_of(started, found, service.ledger)
    if letters := count_messages(server.url, f"{APP.upper()}_DEAD_LETTERS"):
        differences.append(f"{letters} dead letters")
    if status:
        differences.append(f"exit status {status}")
    return SoakAccount(
        sagas=sagas,
        seconds=round(seconds, 1),
        per_second=round(sagas / seconds, 1),
        kills=sum(killed[cell] for cell in CELLS),
        broker_kills=killed[BROKER],
        phases=dict(Counter(str(record.position.phase) for record in found.values())),
        behaved=dict(service.behaved),
        stuck={
            saga: record.position.problem
            for saga, record in found.items()
            if record.position.phase is Phase.STUCK
        },
        costs=costs,
        differences=differences,
    )


class _Spent:
    """What the processes of a soak spend: the sagas' cell through all its deaths, the broker, this one."""

    def __init__(self, run: Running, server: NatsServer) -> None:
        self._run = run
        self._server = server
        self._cells = -self._of_cell()
        self._broker = -cpu_seconds(server.pid)
        self._own = -time.process_time()

    def kill(self, name: str) -> None:
        """Kill a cell or the broker, which comes back, and remember what it has spent."""
        if name == BROKER:
            self._broker += cpu_seconds(self._server.pid)
            self._server.kill()
            self._server.start()
            return
        if name == CELLS[0]:
            self._cells += self._of_cell()
        self._run.kill_cell(name)

    def costs(self, sagas: int) -> Costs:
        """Return what was spent, a saga, and what of that its commits account for."""
        cells = (self._cells + self._of_cell()) / sagas * 1e6
        broker = (self._broker + cpu_seconds(self._server.pid)) / sagas * 1e6
        own = (self._own + time.process_time()) / sagas * 1e6
        writes, size = commits(self._server.url, BUCKET)
        each = writes / sagas
        commit = cost_of_a_commit(self._server.url, BUCKET, self._server.pid, size)
        return Costs(
            saga_cpu_us=round(cells),
            broker_cpu_us=round(broker),
            service_cpu_us=round(own),
            commits=round(each, 2),
            commit=commit,
            share_of_saga_cpu=round(each * commit.client_cpu_us / cells, 3),
            share_of_broker_cpu=round(each * commit.broker_cpu_us / broker, 3),
        )

    def _of_cell(self) -> float:
        return cpu_seconds(int(self._run.cell(CELLS[0])["supervision"]["pid"]))


def main(arguments: list[str] | None = None) -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m support.saga_soak", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--sagas", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20, help="of cells")
    parser.add_argument("--broker-kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = soak(
            server,
            Path(directory),
            sagas=options.sagas,
            kills=options.kills,
            broker_kills=options.broker_kills,
            seed=options.seed,
        )
    shown = {**msgspec.to_builtins(account), "differences": account.differences[:20]}
    print(json.dumps({"seed": options.seed, **shown}, indent=2))
    return 1 if account.differences else 0


if __name__ == "__main__":
    sys.exit(main())
