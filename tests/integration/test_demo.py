"""`understudy demo` from end to end, over the first part of the file."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.processes import GONE_SECONDS, processes_of
from support.tree import wait_until
from understudy.examples.flights.departures import read_departures
from understudy.examples.flights.rebooking import Rebooking
from understudy.examples.flights.settlement import very_late
from understudy.examples.flights.tally import expected
from understudy.runtime.cli.demo_scenario import ACTORS, OUTAGE_SECONDS, TROUBLE

FLIGHTS = 1_500
DEMO = ("-m", "understudy.runtime", "demo", "--flights", str(FLIGHTS))

pytestmark = pytest.mark.timeout(360)


def start(directory: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demonstration with everything it makes under the directory, except for its cell files."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=os.environ | {"TMPDIR": str(directory)} | environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


def assert_all_right(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    right = expected(read_departures(FLIGHTS))
    assert report["ok"]
    assert {carrier: row["flights"] for carrier, row in report["carriers"].items()} == {
        carrier: tally.flights for carrier, tally in right.carriers.items()
    }
    assert report["announced"] == report["notices"] == right.notices.total()
    answers = (report[f"notices{answer}"] for answer in ("", "_repeated", "_refused"))
    assert report["notices_requests"] == sum(answers)
    # What the service refuses depends on the keys, so it is the same in each run.
    bookings = very_late(read_departures(FLIGHTS))
    compensated = sum(
        any(TROUBLE.refuses(f"flights.rebooking.{booking}.{step.name}.do") for step in Rebooking.steps)
        for booking in bookings
    )
    assert report["rebookings"] == {"completed": len(bookings) - compensated, "compensated": compensated}
    assert compensated >= 1
    assert report["rebookings_requests"]["down"] + report["rebookings_requests"]["fails"] >= 1
    assert report["dead_letters"] == 0
    assert report["exit_code"] == 0
    return report


def test_two_at_once_get_every_count_right_and_leave_nothing(tmp_path: Path) -> None:
    both = [start(tmp_path, *DEMO, "--json", "--kill-at", when) for when in ("0.5", "random")]
    for report in [assert_all_right(finish(process)) for process in both]:
        assert sorted(kill["cell"].rpartition("/")[0] for kill in report["kills"]) == sorted(ACTORS)
        assert report["restarts"] == len(ACTORS)
        # A machine that publishes slowly has few late flights while the service is down, or none.
        if report["publish_seconds"] < OUTAGE_SECONDS:
            assert report["counters"]["breaker_openings"] >= 1
            assert report["most_waiting"] >= 1
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not processes_of(tmp_path), GONE_SECONDS)


def test_each_wrong_count_is_named_and_is_exit_code_1(tmp_path: Path) -> None:
    """Every kind of count is wrong, on the server or in the service's ledger, and nothing else is said."""
    arguments = ("-m", "support.tampered_demo", "--flights", str(FLIGHTS))
    tests = str(Path(__file__).parents[1])
    code, out, err = finish(start(tmp_path, *arguments, PYTHONPATH=tests))
    assert code == 1, err
    right = expected(read_departures(FLIGHTS))
    aa, b6, dl, ev, ua = (right.carriers[carrier] for carrier in ("AA", "B6", "DL", "EV", "UA"))
    late = right.announced
    wrong = [line.removeprefix("wrong: ") for line in out.splitlines() if line.startswith("wrong: ")]
    assert [line.partition(", such as ")[0] for line in wrong] == [
        f"AA: flights: {aa.flights - 1:,} counted, {aa.flights:,} in the file",
        f"B6: flights: {b6.flights + 1:,} counted, {b6.flights:,} in the file",
        f"DL: cancelled flights: {dl.cancelled + 1:,} counted, {dl.cancelled:,} in the file",
        f"EV: minutes of delay: {ev.total_delay_minutes + 1:,} counted, "
        f"{ev.total_delay_minutes:,} in the file",
        f"UA: flights: 0 counted, {ua.flights:,} in the file",
        f"UA: minutes of delay: 0.0 counted, {ua.total_delay_minutes:,} in the file",
        f"late flights: {late + 1:,} announced in the stream, {late:,} in the file",
        "notices: never sent for a late flight of the file: 1",
        "notices: sent again: 1",
        "notices: sent for no late flight: 1",
        "notices: asked for under the key of another one: 1",
        "order: counted after a later one of their carrier: 2",
        "rebookings: completed, but not so in the service's ledger: 2",
        "rebookings: neither completed nor compensated, but running: 1",
        "flights-notifier: pending or unacknowledged after the stop: 1",
        "flights-rebooking: pending or unacknowledged after the stop: 1",
    ]
    (left,) = tmp_path.iterdir()
    assert f"what it left is in {left}" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, *DEMO)
    assert process.stderr is not None
    for line in process.stderr:
        if "goes down" in line:
            break
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not processes_of(tmp_path), GONE_SECONDS)


def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, *DEMO)
    assert process.stderr is not None
    for line in process.stderr:
        if "goes down" in line:
            break
    process.kill()
    finish(process)
    try:
        wait_until(lambda: not processes_of(tmp_path), GONE_SECONDS)
    finally:
        (directory,) = tmp_path.iterdir()
        for cell_files in Path("/dev/shm").glob(f"{directory.name}-*"):
            shutil.rmtree(cell_files)


def test_if_the_runtime_ends_by_itself_it_says_so_and_why(tmp_path: Path) -> None:
    process = start(tmp_path, *DEMO)
    assert process.stderr is not None
    for line in process.stderr:
        if "goes down" in line:
            break
    (runtime,) = (child for child in psutil.Process(process.pid).children() if "run" in child.cmdline())
    # Thespian's admin, whose parent the runtime is; all cells go with it.
    (admin,) = runtime.children()
    admin.kill()
    code, _, err = finish(process)
    assert code == 1
    assert "understudy: the runtime ended with 70, though nobody stopped it; its errors:\n" in err
    assert '"event":"control plane died"' in err
    assert "Traceback" not in err
    assert "never retrieved" not in err
    wait_until(lambda: not processes_of(tmp_path), GONE_SECONDS)


def test_without_a_nats_server_it_says_how_to_get_one(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, *DEMO, UNDERSTUDY_NATS_SERVER="/nowhere/nats-server"))
    assert code == 2
    assert "/nowhere/nats-server" in err
    assert list(tmp_path.iterdir()) == []
