"""A sole owner's cells on several nodes, each an `understudy run` of its own: who dies, and who goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.commands import run_command
from support.nats import NatsServer
from support.owner_app import Noted
from support.running import TIMEOUT_SECONDS, Running, running, until
from support.tree import kill
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection, pinning
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.supervision.processes import is_alive, read_process

STREAM, DURABLE = "NOTES", "owners-recorder"
FIRST, SECOND = "recorder/0", "recorder/1"
TARGET = "support.owner_app:app"
# The server takes the pin of who is silent after 4 minutes, longer than any test waits, and after 8 s.
LONG = {"key": "customer", "ack_wait_seconds": 120, "hang_timeout_seconds": 5}
SHORT = {"key": "customer", "ack_wait_seconds": 4, "hang_timeout_seconds": 2}


class Run(msgspec.Struct, frozen=True):
    """One run of the handler."""

    begin: float
    end: float
    pid: int
    number: int
    sequence: int
    customer: str


class Nodes:
    """Nodes of the app on one machine: a run directory each, and one record of what they handle."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._directory = directory
        self._record = directory / "record"
        self.go = directory / "go"
        self._runs: list[Run] = []
        self._read = 0
        self._reading = threading.Lock()

    def environment(self, options: dict[str, Any]) -> dict[str, str]:
        """Return what the app reads."""
        return {"RECORD_FILE": str(self._record), "OWNER_OPTIONS": json.dumps(options)}

    @contextmanager
    def node(self, name: str, options: dict[str, Any], **environment: str) -> Iterator[Running]:
        """Run a node for the length of a block."""
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        environment |= self.environment(options)
        with running(self.url, directory, TARGET, wait=True, **environment) as run:
            yield run

    def runs(self) -> list[Run]:
        """Return all handler runs so far, in the order of their end."""
        if self._record.exists():
            with self._reading, self._record.open() as record:
                record.seek(self._read)
                for line in record:
                    if not line.endswith("\n"):
                        break
                    begin, end, pid, number, sequence, customer = line.split()
                    run = Run(float(begin), float(end), int(pid), int(number), int(sequence), customer)
                    self._runs.append(run)
                    self._read += len(line)
        return self._runs

    def by(self, pid: int) -> set[int]:
        """Return the numbers that a process has handled."""
        return {run.number for run in self.runs() if run.pid == pid}

    def all_handled(self, count: int) -> bool:
        """Return whether so many different numbers were handled."""
        runs = self.runs()
        return len(runs) >= count and len({run.number for run in runs}) == count

    def repeats(self) -> int:
        """Return how many runs were not a number's first."""
        return len(self.runs()) - len({run.number for run in self.runs()})

    def in_order(self) -> bool:
        """Return whether each customer's events were first handled in stream order."""
        last: Counter[str] = Counter()
        seen = set()
        for run in self.runs():
            if run.sequence not in seen:
                if run.sequence < last[run.customer]:
                    return False
                last[run.customer] = run.sequence
            seen.add(run.sequence)
        return True

    def overlaps(self) -> int:
        """Return how many runs of one customer's began before another had ended."""
        ended: dict[str, float] = {}
        count = 0
        for run in sorted(self.runs(), key=lambda run: run.begin):
            count += run.begin < ended.get(run.customer, 0.0)
            ended[run.customer] = run.end
        return count

    def note(self, numbers: range, customers: int = 8) -> None:
        """Publish numbered events, in order for each customer."""

        async def publish() -> None:
            # Where thousands wait, a busy machine may take longer than an event is tried for.
            async with Publisher.connect(self.url, timeout_seconds=TIMEOUT_SECONDS) as publisher:
                await asyncio.gather(
                    *(publisher.publish(Noted(number=n, customer=f"c{n % customers}")) for n in numbers)
                )

        asyncio.run(publish())

    def keep_noting(self, first: int, enough: threading.Event) -> int:
        """Have events of 50 customers wait, however fast they are handled; return the number after the last.

        Args:
            first: the number to begin with.
            enough: ends it.
        """
        published = first
        while not enough.is_set():
            self.note(range(published, published + 5_000), 50)
            published += 5_000
            until(lambda: enough.is_set() or len(self.runs()) > published - 5_000)  # noqa: B023
        return published

    def info(self) -> dict[str, Any]:
        """Return the server's description of the consumer."""

        async def ask() -> dict[str, Any]:
            client = await connection.connect(ConnectionSpec(servers=(self.url,)), name="test")
            try:
                info = await api.consumer_info(client, STREAM, DURABLE)
                assert info is not None
                return info
            finally:
                await client.close()

        return asyncio.run(ask())

    def unpin(self) -> None:
        """Take the pin from whoever has it."""

        async def ask() -> None:
            client = await connection.connect(ConnectionSpec(servers=(self.url,)), name="test")
            try:
                await api.request(client, f"CONSUMER.UNPIN.{STREAM}.{DURABLE}", {"group": pinning.GROUP})
            finally:
                await client.close()

        asyncio.run(ask())

    def check(self, options: dict[str, Any]) -> str:
        """Return what `understudy check` says of the consumer."""
        environment = os.environ | self.environment(options)
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        done = run_command("check", TARGET, "--servers", self.url, environment=environment)
        return "\n".join(line for line in done.stdout.splitlines() if DURABLE in line)


@pytest.fixture
def nodes(nats_server: NatsServer, tmp_path: Path) -> Nodes:
    """A broker for nodes of the app."""
    return Nodes(nats_server.url, tmp_path)


def state(run: Running, cell: str = FIRST) -> str:
    """Return what a cell says that it does."""
    return str(run.cell(cell)["status"]["state"])


def pid(run: Running, cell: str = FIRST) -> int:
    """Return a cell's process."""
    return int(run.cell(cell)["status"]["pid"])


def is_replaced(run: Running, cell: str = FIRST) -> bool:
    """Return whether a cell is up that took another's place."""
    supervision = run.cell(cell)["supervision"]
    return bool(supervision["state"] == "up" and supervision["generation"] > 1)


def test_a_killed_owner_is_replaced_on_its_node_and_the_standby_gets_nothing(nodes: Nodes) -> None:
    """The replacement goes on under the dead cell's pin, in the order of each key, long before ack_wait."""
    killed = threading.Event()
    with nodes.node("a", LONG, OWNER_SECONDS="0.0005") as a, ThreadPoolExecutor(1) as publishing:
        nodes.note(range(1))
        until(lambda: nodes.all_handled(1))
        with nodes.node("b", LONG) as b:
            until(lambda: state(b) == "standby")
            assert b.get("/readyz")[0] == 200
            count = publishing.submit(nodes.keep_noting, 1, killed)
            try:
                for _ in range(3):
                    handled = len(nodes.runs())
                    until(lambda: len(nodes.runs()) > handled + 500)  # noqa: B023
                    a.kill_cell(FIRST)
            finally:
                killed.set()
            until(lambda: nodes.all_handled(count.result()))
            assert b.cell(FIRST)["status"]["counters"]["received"] == 0
            assert nodes.in_order()
            # What was being handled is, once more.
            assert nodes.repeats() <= 3 * 16
            assert b.terminate() == 0
        assert a.terminate() == 0


def test_a_standby_takes_over_from_a_node_that_is_gone(nodes: Nodes) -> None:
    """After twice ack_wait it is pinned, and has all that is unsettled before anything newer."""
    stuck = {"OWNER_STUCK": "100", "OWNER_GO": str(nodes.go)}
    with nodes.node("a", SHORT, **stuck) as a, nodes.node("b", SHORT, **stuck) as b:
        nodes.note(range(16), 16)
        until(lambda: {state(a), state(b)} == {"up", "standby"})
        owner, standby = (a, b) if state(a) == "up" else (b, a)
        nodes.note(range(16, 300), 16)
        # Not all of them: of slow handlers' events few are fetched ahead.
        until(lambda: nodes.all_handled(100) and owner.cell(FIRST)["status"]["held"] >= 50)
        cell = read_process(pid(owner))
        assert cell is not None
        assert owner.process is not None
        owner.process.kill()
        owner.process.wait()
        until(lambda: not is_alive(cell.pid, cell.start_ticks))
        assert nodes.info()["num_ack_pending"] >= 50
        nodes.go.touch()
        until(lambda: nodes.all_handled(300))
        # Those whose acks the owner had not written yet come to it as well.
        assert nodes.by(pid(standby)) >= set(range(100, 300))
        assert nodes.in_order()
        assert nodes.repeats() <= 16
        assert standby.terminate() == 0
    assert nodes.info()["num_ack_pending"] == 0


def test_one_of_two_replicas_is_active_and_either_may_die(nodes: Nodes) -> None:
    """The one that was active is so again, and a drain of both leaves nothing."""
    count = 30_000
    with nodes.node("a", {**LONG, "replicas": 2}) as a, ThreadPoolExecutor(1) as executor:
        nodes.note(range(10))
        until(lambda: {state(a, FIRST), state(a, SECOND)} == {"up", "standby"})
        publishing = executor.submit(nodes.note, range(10, count), 50)
        active = FIRST if state(a, FIRST) == "up" else SECOND
        for killed in (active, SECOND if active == FIRST else FIRST, active):
            a.kill_cell(killed)
            until(lambda: {state(a, FIRST), state(a, SECOND)} == {"up", "standby"})
            assert state(a, active) == "up"
        publishing.result()
        until(lambda: nodes.all_handled(count))
        assert nodes.in_order()
        assert a.terminate() == 0
    assert nodes.info()["num_ack_pending"] == 0


@pytest.mark.parametrize("blocks", ["", "yes"], ids=["and lets the loop run", "and holds up the loop"])
def test_a_replacement_that_starts_for_longer_than_the_pin_lives(nodes: Nodes, blocks: str) -> None:
    """It keeps the pin or, where it can't, leaves what it took over to who has it: nothing runs at once."""
    slow = {"OWNER_SECONDS": "0.02", "OWNER_RESTART_SECONDS": "11", "OWNER_BLOCKS": blocks}
    slow |= {"OWNER_STUCK": "50", "OWNER_GO": str(nodes.go)}
    with nodes.node("a", SHORT, **slow) as a:
        nodes.note(range(10))
        until(lambda: nodes.all_handled(10))
        with nodes.node("b", SHORT, **slow) as b:
            until(lambda: state(b) == "standby")
            nodes.note(range(10, 250))
            until(lambda: nodes.all_handled(50) and a.cell(FIRST)["status"]["held"] >= 50)
            standby = pid(b)
            kill(pid(a))
            nodes.go.touch()
            until(lambda: nodes.all_handled(250))
            until(lambda: is_replaced(a))
            assert bool(nodes.by(standby)) is bool(blocks)
            assert nodes.in_order()
            assert nodes.overlaps() == 0
            assert nodes.repeats() <= 8
            # Which of the two it is, the one that isn't owner may have yet to ask.
            until(lambda: {state(a), state(b)} == {"up", "standby"})


def test_a_pin_that_went_to_a_cell_that_had_died_is_taken_back(nodes: Nodes) -> None:
    """The server gives it to a request whose process is gone; the replacement knows whose it was."""
    with nodes.node("a", LONG) as a:
        killed = pid(a)
        # So that its connection outlives whatever it could do.
        os.kill(killed, signal.SIGSTOP)
        nodes.note(range(20))
        kill(killed)
        until(lambda: nodes.all_handled(20))
        assert a.events("unpinning a dead cell")
        assert nodes.in_order()
        assert nodes.repeats() == 0
        assert a.terminate() == 0


def test_a_run_that_gives_up_leaves_what_its_dead_cell_owned_to_others_at_once(nodes: Nodes) -> None:
    """Its launcher unpins the cell that nobody starts again."""
    with nodes.node("a", LONG, OWNER_MAX_RESTARTS="0") as a:
        nodes.note(range(10))
        until(lambda: nodes.all_handled(10))
        with nodes.node("b", LONG) as b:
            until(lambda: state(b) == "standby")
            os.kill(pid(a), signal.SIGKILL)
            assert a.process is not None
            assert a.process.wait(TIMEOUT_SECONDS) == 70
            assert [entry["cell"] for entry in a.events("released")] == [FIRST]
            nodes.note(range(10, 20))
            until(lambda: nodes.all_handled(20))
            assert b.terminate() == 0


def test_a_consumer_is_changed_to_a_sole_owner_s_and_back(nodes: Nodes) -> None:
    """With a backlog and deliveries that a killed run left; check shows it, and nothing is lost."""
    shared = {"ack_wait_seconds": 120, "hang_timeout_seconds": 5}
    slow = {"OWNER_SECONDS": "0.05"}
    with nodes.node("a", shared, **slow) as run:
        nodes.note(range(1000), 4)
        _leave_some(nodes, run)
    assert "priority_policy is empty, the app declares pinned_client" in nodes.check(LONG)
    with nodes.node("a", LONG, **slow) as run:
        _leave_some(nodes, run)
    # What the first run left came before anything newer.
    assert nodes.in_order()
    assert "priority_policy" not in nodes.check(LONG)
    assert "priority_policy is pinned_client, the app declares none" in nodes.check(shared)
    with nodes.node("a", shared) as run:
        until(lambda: nodes.all_handled(1000))
        assert run.terminate() == 0
    assert nodes.info()["num_ack_pending"] == 0


def _leave_some(nodes: Nodes, run: Running) -> None:
    """Kill a run that holds deliveries when it has handled some."""
    handled = len(nodes.runs())
    until(lambda: len(nodes.runs()) > handled + 20)
    assert run.process is not None
    run.process.kill()
    run.process.wait()
    assert nodes.info()["num_ack_pending"] > 20
