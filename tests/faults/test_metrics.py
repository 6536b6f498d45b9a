"""What `/metrics` says while cells are killed, stopped and started again: nothing is lost or goes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from support.launched import Launched, publish
from support.load import Load
from support.metrics import Scrape, Scraping
from support.nats import NatsServer
from support.records import read_records
from support.relay import ACTORS, Entered
from support.running import Running, running, until
from support.soak import CELLS
from support.streams import is_settled
from support.tree import kill, wait_until

KEYS = 20


def scrape(run: Running | Launched) -> Scrape:
    """Ask a launcher for its metrics."""
    return Scrape(text(run))


def text(run: Running | Launched) -> str:
    """The same as it is sent."""
    answer = httpx.get(f"{run.url}/metrics", timeout=60)
    assert answer.status_code == 200
    return answer.text


def kill_every_cell(run: Running) -> None:
    """SIGKILL all cells of the relay at once, and return when all are up again."""
    before = {cell: run.cell(cell)["supervision"] for cell in CELLS}
    for supervision in before.values():
        os.kill(supervision["pid"], signal.SIGKILL)
    for cell, supervision in before.items():
        until(lambda cell=cell, old=supervision: is_up_since(run, cell, old["generation"]))  # type: ignore[misc]


def is_up_since(run: Running, cell: str, generation: int) -> bool:
    """Return whether a cell is up in a later generation."""
    now = run.cell(cell)["supervision"]
    return bool(now["state"] == "up" and now["generation"] > generation)


@pytest.mark.timeout(360)
def test_no_count_is_lost_when_every_cell_is_killed_again_and_again(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Under steady load; what was handled is counted once a run, and no counter is ever seen to go back."""
    records = tmp_path / "records"
    records.mkdir()
    rounds = 4
    with (
        running(nats_server.url, tmp_path, "support.relay:app", RELAY_DIRECTORY=str(records)) as run,
        Scraping(lambda: text(run)) as scraping,
        Load(
            nats_server.url,
            lambda number: Entered(number=number, key=number % KEYS),
            per_second=300,
            keys=KEYS,
        ) as load,
    ):
        for number in range(1, rounds + 1):
            until(lambda number=number: load.published > 500 * number)  # type: ignore[misc]
            kill_every_cell(run)
        published = load.finish()
        until(lambda: is_settled(nats_server.url, "RELAY", [f"relay-{actor}" for actor in ACTORS]), 180)
        now = scrape(run)
        cells_of = Counter(cell.rpartition("/")[0] for cell in CELLS)
        for actor in ACTORS:
            runs = [one.number for process in read_records(records, actor) for one in process.records]
            handled = now.total("understudy_deliveries_total", actor=actor, outcome="handled")
            assert len(set(runs)) == published
            # A run that died before its end is recorded and isn't one that has handled.
            assert published <= handled <= len(runs), actor
            restarts = now.total("understudy_restarts_total", actor=actor, reason="signal")
            assert restarts == rounds * cells_of[actor]
            # Its time is counted first, and a death may come in between.
            timed = now.total("understudy_handling_seconds_count", actor=actor)
            assert handled <= timed <= handled + restarts
            received = now.total("understudy_received_total", actor=actor)
            settled = now.total("understudy_deliveries_total", actor=actor)
            # Or before what is counted leaves the ledger: then it is taken over, and counted again.
            assert published <= settled <= received + restarts
    assert scraping.went_back == []
    assert scraping.scrapes > 10


def test_a_stopped_cell_is_seen_and_holds_up_no_scrape(nats_server: NatsServer, tmp_path: Path) -> None:
    """What it had counted stays; its heartbeat grows old, until its supervisor kills it for that."""
    with Launched(tmp_path, "support.apps:app", servers=nats_server.url) as run:
        run.wait_until_ready()
        publish(nats_server.url, *({"value": number} for number in range(10)))
        wait_until(lambda: handled(run, "recorder") == 10)
        supervisor = int(run.tree()["status"]["pid"])
        # So that it is still to be seen when we look, however late that is.
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(run.child("recorder/0")["pid"], signal.SIGSTOP)

        def stands_still() -> Scrape | None:
            now = scrape(run)
            ages = now.total("understudy_heartbeat_age_seconds", actor="recorder")
            return now if ages > 1.5 else None

        seen: Scrape = wait_until(stands_still)
        assert seen.total("understudy_cell_up", actor="recorder") == 1
        assert seen.total("understudy_deliveries_total", actor="recorder", outcome="handled") == 10
        os.kill(supervisor, signal.SIGCONT)
        run.wait_for_child("recorder/0", generation=2)
        now = scrape(run)
        assert now.total("understudy_restarts_total", actor="recorder", reason="hang") == 1
        assert now.total("understudy_restarts_total", actor="recorder") == 1
        assert now.total("understudy_deliveries_total", actor="recorder", outcome="handled") == 10


def handled(run: Launched, actor: str) -> float:
    """How many deliveries an actor has handled."""
    return scrape(run).total("understudy_deliveries_total", actor=actor, outcome="handled")


def test_what_was_counted_outlives_every_kind_of_restart(nats_server: NatsServer, tmp_path: Path) -> None:
    """After a failure, by the operator, with a killed supervisor, and by what ends its process."""
    with Launched(tmp_path, "support.apps:forking", servers=nats_server.url) as run:
        run.wait_until_ready()
        with Scraping(lambda: text(run)) as scraping:
            publish(nats_server.url, *({"value": number} for number in range(10)))
            wait_until(lambda: handled(run, "recorder") == 10)
            publish(nats_server.url, {"value": 10, "deed": "fail"})
            run.wait_for_child("recorder/0", generation=2)
            restart(nats_server.url, "recorder")
            kill(run.child("inner")["pid"])
            run.wait_for_child("recorder/0", generation=4)
            publish(nats_server.url, {"value": 11, "deed": "exit"})
            run.wait_for_child("recorder/0", generation=7)
            wait_until(lambda: scrape(run).total("understudy_dead_letters_total", reason="crashed") == 1)
            wait_until(lambda: handled(run, "recorder") == 11)
        now = scrape(run)
        restarts = {"exception": 1, "operator": 1, "supervisor": 1, "exit": 3}
        for reason, times in restarts.items():
            assert now.total("understudy_restarts_total", reason=reason) == times, reason
        assert now.total("understudy_restarts_total") == sum(restarts.values())
        assert now.total("understudy_supervisor_restarts_total", supervisor="inner", reason="signal") == 1
        assert now.total("understudy_supervisor_restarts_total") == 1
        assert now.total("understudy_deliveries_total") == 12
        # One run of its handler has failed; those that ended their process are in no histogram.
        assert now.total("understudy_handling_seconds_count") == 12
        assert now.total("understudy_failed_attempts_total") == 1
        assert scraping.went_back == []


def restart(url: str, actor: str) -> None:
    """Have an actor restarted by the operator."""
    command = ["actor", "restart", actor, "--servers", url]
    subprocess.run([sys.executable, "-m", "understudy.runtime", *command], check=True, capture_output=True)
