"""What becomes of deliveries when a cell, or everything, dies."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.nats import NatsServer
from support.recorder import Noted
from support.running import TIMEOUT_SECONDS, Running, running, until
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.supervision.processes import descendants, is_alive

DURABLE = "recorder-recorder"


def note(url: str, numbers: range, customers: int = 8) -> None:
    """Publish numbered events, in order for each customer."""

    async def publish() -> None:
        # Where thousands wait, a busy machine may take longer than an event is tried for.
        async with Publisher.connect(url, timeout_seconds=TIMEOUT_SECONDS) as publisher:
            await asyncio.gather(
                *(publisher.publish(Noted(number=n, customer=f"c{n % customers}")) for n in numbers)
            )

    asyncio.run(publish())


def keep_noting(run: Running, url: str, enough: threading.Event, customers: int) -> int:
    """Have events wait, however fast they are handled, until that is set; return how many they were."""
    published = 0
    while not enough.is_set():
        note(url, range(published, published + 5_000), customers)
        published += 5_000
        until(lambda: enough.is_set() or len(run.handled()) > published - 5_000)  # noqa: B023
    return published


def consumer(url: str) -> dict[str, Any]:
    """Return the server's description of the recorder's consumer."""

    async def ask() -> dict[str, Any]:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")
        try:
            info = await api.consumer_info(client, "NOTES", DURABLE)
            assert info is not None
            return info
        finally:
            await client.close()

    return asyncio.run(ask())


def all_handled(run: Running, count: int) -> bool:
    """Return whether each of the numbers was handled at least once."""
    return len(run.numbers()) == count


def orders(run: Running) -> dict[str, list[int]]:
    """Return, for each customer, the sequences in the order of their first handling."""
    seen: dict[str, list[int]] = {}
    for _, _, _, sequence, customer in run.handled():
        if int(sequence) not in seen.setdefault(customer, []):
            seen[customer].append(int(sequence))
    return seen


def holds(run: Running, url: str, handled: int, held: int) -> bool:
    """Return whether so much is handled and acked, and so much in the cell's hands: nothing is on its way."""
    return (
        len(run.handled()) == handled
        and run.cell("recorder/0")["status"]["held"] == held
        and consumer(url)["num_ack_pending"] == held
    )


@pytest.mark.parametrize("keyed", ["", "yes"])
def test_a_killed_cell_s_deliveries_are_taken_over_without_redelivery(
    nats_server: NatsServer, tmp_path: Path, keyed: str
) -> None:
    """The replacement handles what was held long before `ack_wait`, and the server redelivers none of it."""
    with running(
        nats_server.url, tmp_path, RECORD_STUCK="16", RECORD_ACK_WAIT="120", RECORD_KEYED=keyed
    ) as run:
        note(nats_server.url, range(64))
        until(lambda: holds(run, nats_server.url, 16, 48))
        os.kill(run.cell("recorder/0")["status"]["pid"], signal.SIGKILL)
        until(lambda: all_handled(run, 64))
        assert sum(run.numbers().values()) == 64
        cell = run.cell("recorder/0")
        assert cell["supervision"]["last_reason"] == "killed by SIGKILL"
        assert cell["status"]["counters"]["taken_over"] == 48
        assert cell["status"]["counters"]["redelivered"] == 0
        if keyed:
            assert all(sequences == sorted(sequences) for sequences in orders(run).values())
        assert run.terminate() == 0
    info = consumer(nats_server.url)
    assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)


def test_a_sole_owner_keeps_the_order_of_each_key_over_kills_under_load(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """What was in the dead cell's socket comes again before anything newer."""
    killed = threading.Event()
    with running(nats_server.url, tmp_path, RECORD_KEYED="yes") as run, ThreadPoolExecutor(1) as publishing:
        count = publishing.submit(keep_noting, run, nats_server.url, killed, customers=50)
        try:
            for _ in range(3):
                handled = len(run.handled())
                until(lambda: len(run.handled()) > handled + 500)  # noqa: B023
                run.kill_cell("recorder/0")
        finally:
            killed.set()
        until(lambda: all_handled(run, count.result()))
        assert all(sequences == sorted(sequences) for sequences in orders(run).values())
        assert run.cell("recorder/0")["supervision"]["restarts"] == 3
        assert run.terminate() == 0


def test_a_delivery_that_kills_its_process_is_dead_lettered_alone(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """After max_crashes deaths it is given up with the signal's name; its neighbours are handled."""
    with running(nats_server.url, tmp_path, RECORD_DEADLY="17") as run:
        note(nats_server.url, range(100))
        until(lambda: all_handled(run, 99))
        until(lambda: consumer(nats_server.url)["num_ack_pending"] == 0)
        letters = run.events("dead letter")
        assert [letter["reason"] for letter in letters] == ["crashed"]
        assert "killed by SIGSEGV" in letters[0]["error"]
        assert 17 not in run.numbers()
        assert run.cell("recorder/0")["supervision"]["restarts"] == 3
        assert run.terminate() == 0


def test_the_next_start_takes_over_what_a_killed_launcher_left(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Every process dies with the launcher, and the next run goes on with what was held."""
    with running(nats_server.url, tmp_path, RECORD_STUCK="20", RECORD_ACK_WAIT="120") as run:
        note(nats_server.url, range(150))
        until(lambda: holds(run, nats_server.url, 20, 64))
        below = descendants(run.pid)
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        until(lambda: not any(is_alive(process.pid, process.start_ticks) for process in below))
        run.start(RECORD_STUCK="")
        until(lambda: all_handled(run, 150))
        assert sum(run.numbers().values()) == 150
        assert run.cell("recorder/0")["status"]["counters"]["taken_over"] == 64
        assert run.events("dead letter") == []
        assert run.terminate() == 0


@pytest.mark.timeout(300)
def test_more_graceful_restarts_than_attempts_over_one_held_backlog_lose_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """No drain counts as an attempt, so that nothing is dead-lettered for having waited."""
    with running(
        nats_server.url, tmp_path, RECORD_SECONDS="0.1", RECORD_ATTEMPTS="2", RECORD_ACK_WAIT="30"
    ) as run:
        note(nats_server.url, range(400))
        # With what follows one more than a delivery has attempts.
        for _ in range(2):
            assert run.terminate() == 0
            run.start()
        # What is left is held once more, and handled quickly.
        assert len(run.handled()) < 400
        assert run.terminate() == 0
        run.start(RECORD_SECONDS="0.001")
        until(lambda: all_handled(run, 400))
        assert sum(run.numbers().values()) == 400
        assert {line[2] for line in run.handled()} == {"1"}
        assert run.events("dead letter") == []
        assert run.terminate() == 0


def test_sigterm_under_load_leaves_nothing_pending(nats_server: NatsServer, tmp_path: Path) -> None:
    """A quick handler's deliveries are all settled when the run has ended, and the next start goes on."""
    stopped = threading.Event()
    with running(nats_server.url, tmp_path) as run, ThreadPoolExecutor(1) as publishing:
        count = publishing.submit(keep_noting, run, nats_server.url, stopped, customers=8)
        try:
            until(lambda: len(run.handled()) > 1000)
            assert run.terminate() == 0
            assert consumer(nats_server.url)["num_ack_pending"] == 0
        finally:
            stopped.set()
        run.start()
        until(lambda: all_handled(run, count.result()))
        assert sum(run.numbers().values()) == count.result()
        assert run.terminate() == 0


def test_a_restarted_broker_loses_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """Cells reconnect and go on; readiness says so meanwhile."""
    with running(nats_server.url, tmp_path, RECORD_SECONDS="0.001") as run:
        note(nats_server.url, range(3000))
        until(lambda: len(run.handled()) > 300)
        nats_server.stop()
        until(lambda: run.get("/readyz")[0] == 503)
        assert run.get("/livez")[0] == 200
        nats_server.start()
        until(lambda: run.get("/readyz")[0] == 200)
        until(lambda: all_handled(run, 3000))
        assert run.terminate() == 0


def test_a_stop_without_a_broker_is_not_clean_and_loses_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Nobody confirmed the last settlements: the run ends with 75, and the next one takes over."""
    with running(nats_server.url, tmp_path, RECORD_SECONDS="0.05") as run:
        note(nats_server.url, range(400))
        until(lambda: len(run.handled()) > 10)
        nats_server.kill()
        assert run.terminate() == 75
        assert [entry["left"] for entry in run.events("not everything was drained")] == [["recorder/0"]]
        nats_server.start()
        run.start(RECORD_SECONDS="0")
        until(lambda: all_handled(run, 400))
        assert run.terminate() == 0


def test_a_stop_does_not_wait_for_a_hook_that_never_ends(nats_server: NatsServer, tmp_path: Path) -> None:
    """A cell that is still starting has taken nothing, and is left at once."""
    with running(nats_server.url, tmp_path, RECORD_START="hang", wait=False) as run:
        until(lambda: run.events("starting the actor"))
        # Less than the 25 s that a drain may take.
        assert run.terminate(20) == 0
