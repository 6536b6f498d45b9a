"""The data path while cells, brokers and clocks fail: nothing is lost, and every repeat has its cause."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.clock import Clock
from support.load import publish_confirmed
from support.nats import NatsServer
from support.records import Record, count_records, read_records
from support.relay import ACK_WAIT_SECONDS, ACTORS, CONCURRENCY, Entered, Told
from support.running import Running, running, until
from support.soak import CELLS, soak
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.publisher import Publisher

HOUR = 3600
DEADLY = 5000


@pytest.mark.timeout(240)
def test_nothing_is_lost_when_cells_and_the_broker_are_killed_under_load(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Each event passes three actors; the account explains every repeat and keeps every key's order."""
    account = soak(nats_server, tmp_path, messages=20_000, kill_every_seconds=0.7, seed=os.getpid())
    assert account.differences() == [], account
    assert account.kills >= 2
    assert account.outages == 2
    assert all(stage.runs >= 20_000 for stage in account.stages.values())


def publish(url: str, event: type[Entered | Told], numbers: range) -> None:
    """Publish numbered events, however long the broker takes to confirm them."""

    async def publish_all() -> None:
        async with Publisher.connect(url) as publisher:
            events = (event(number=number, key=number % 50) for number in numbers)
            await asyncio.gather(
                *(publish_confirmed(publisher, event, f"n{event.number}") for event in events)
            )

    asyncio.run(publish_all())


def consumer(url: str, durable: str) -> dict[str, Any]:
    """Return the server's description of a consumer."""

    async def ask() -> dict[str, Any]:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")
        try:
            info = await api.consumer_info(client, "RELAY", durable)
            assert info is not None
            return info
        finally:
            await client.close()

    return asyncio.run(ask())


def dead_letters(url: str, stream: str) -> list[Any]:
    """Return what a dead-letter stream holds."""

    async def ask() -> list[Any]:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")
        try:
            js = client.jetstream()
            last = (await js.stream_info(stream)).state.last_seq
            return [await js.get_msg(stream, seq=seq) for seq in range(1, last + 1)]
        finally:
            await client.close()

    return asyncio.run(ask())


def runs_of(records: Path, actor: str) -> list[Record]:
    """Return what all processes of an actor have recorded."""
    return [record for process in read_records(records, actor) for record in process.records]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("nodes", "replicas"), [(1, 2), (2, 1)])
def test_one_delivery_that_kills_its_process_costs_the_others_nothing(
    nats_server: NatsServer, tmp_path: Path, nodes: int, replicas: int
) -> None:
    """Whoever has it: three deaths in all, a dead letter, and everything else is handled by who is left."""
    records = tmp_path / "records"
    records.mkdir()

    def node(number: int) -> AbstractContextManager[Running]:
        directory = tmp_path / f"node{number}"
        directory.mkdir()
        return running(
            nats_server.url,
            directory,
            "support.relay:archive",
            RELAY_DIRECTORY=str(records),
            RELAY_DEADLY=str(DEADLY),
            RELAY_REPLICAS=str(replicas),
        )

    with ExitStack() as stack:
        runs = [stack.enter_context(node(number)) for number in range(nodes)]
        publish(nats_server.url, Told, range(10_000))
        until(lambda: count_records(records, "archive") >= 10_002)
        until(lambda: consumer(nats_server.url, "archive-archive")["num_ack_pending"] == 0)
        cells = [run.cell(f"archive/{index}") for run in runs for index in range(replicas)]
        handled = Counter(record.number for record in runs_of(records, "archive"))
        # The deadly one is recorded before it kills.
        assert handled.pop(DEADLY) == 3
        assert handled == Counter(number for number in range(10_000) if number != DEADLY)
        (letter,) = dead_letters(nats_server.url, "ARCHIVE_DEAD_LETTERS")
        assert letter.headers["Understudy-Reason"] == "crashed"
        assert "killed by SIGSEGV" in letter.headers["Understudy-Error"]
        # One cell died, all three times; the other didn't notice.
        assert sorted(cell["supervision"]["restarts"] for cell in cells) == [0, 3]
        assert [run.events("escalated") for run in runs] == [[]] * nodes
        assert all(cell["supervision"]["state"] == "up" for cell in cells)
        assert [run.terminate() for run in runs] == [0] * nodes


@pytest.mark.timeout(120)
def test_a_clock_that_jumps_is_nobody_s_death(nats_server: NatsServer, tmp_path: Path) -> None:
    """An hour on, and two back: nobody is taken to hang, nothing comes again, a takeover finds its ledger.

    One event is handled for longer than `ack_wait`, so it is extended across the jumps.
    """
    records = tmp_path / "records"
    records.mkdir()
    clock = Clock(tmp_path)
    with (
        running(
            nats_server.url,
            tmp_path,
            "support.relay:app",
            wait=True,
            RELAY_DIRECTORY=str(records),
            RELAY_SLOW="500",
            RELAY_SECONDS=str(ACK_WAIT_SECONDS + 2),
            RELAY_STUCK="1000",
            **clock.environment,
        ) as run,
        clock.loaded_into(run.pid),
    ):

        def archived() -> int:
            return count_records(records, "archive")

        publish(nats_server.url, Entered, range(500))
        until(lambda: archived() == 500)
        clock.jump_to(HOUR)
        publish(nats_server.url, Entered, range(500, 4000))
        # They are still in its hands when it dies, however late that is.
        until(lambda: run.cell("intake/0")["status"]["held"] >= 100)
        run.kill_cell("intake/0")
        until(lambda: archived() >= 1500)
        clock.jump_to(-HOUR)
        until(lambda: archived() == 4000)
        publish(nats_server.url, Entered, range(4000, 4500))
        until(lambda: archived() == 4500)
        clock.jump_to(0)
        publish(nats_server.url, Entered, range(4500, 5000))
        for actor in ACTORS:
            until(lambda: consumer(nats_server.url, f"relay-{actor}")["num_ack_pending"] == 0)  # noqa: B023
        cells = {name: run.cell(name) for name in CELLS}
        assert {name: cell["supervision"]["restarts"] for name, cell in cells.items()} == {
            **dict.fromkeys(CELLS, 0),
            "intake/0": 1,
        }
        assert cells["intake/0"]["status"]["counters"]["taken_over"] >= 100
        del cells["intake/0"]
        assert [cell["status"]["counters"]["redelivered"] for cell in cells.values()] == [0, 0, 0]
        # It may have been, for a moment, by a busy machine.
        held_up = [entry["seconds"] for entry in run.events("was held up; deadlines are reset")]
        assert max(held_up, default=0) < HOUR / 2
        assert run.terminate() == 0
    for actor in ACTORS:
        handled = runs_of(records, actor)
        assert {record.number for record in handled} == set(range(5000))
        assert len(handled) <= 5000 + (CONCURRENCY if actor == "intake" else 0)
        assert {record.attempt for record in handled} == {1}
        # Else the clock did not jump under them, and all this says nothing.
        offsets = [record.clock - record.at for record in handled]
        assert max(offsets) - min(offsets) > 1.9 * HOUR * 1e9
