"""`understudy demo` from end to end, over the first part of the file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from understudy.examples.flights.departures import read_departures
from understudy.examples.flights.tally import expected

FLIGHTS = 1_500
DEMO = ("-m", "understudy.runtime", "demo", "--flights", str(FLIGHTS))

pytestmark = pytest.mark.timeout(120)


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
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, out, err


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that were started with this TMPDIR."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={directory}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def assert_all_right(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    right = expected(read_departures(FLIGHTS))
    assert report["ok"]
    assert {carrier: row["flights"] for carrier, row in report["carriers"].items()} == {
        carrier: tally.flights for carrier, tally in right.carriers.items()
    }
    assert report["notices"] == right.notices.total()
    assert report["dead_letters"] == 0
    assert report["exit_code"] == 0
    return report


def test_two_at_once_get_every_count_right_and_leave_nothing(tmp_path: Path) -> None:
    both = [start(tmp_path, *DEMO, "--json", "--kill-at", when) for when in ("0.5", "random")]
    for report in [assert_all_right(finish(process)) for process in both]:
        assert report["restarts"] == 1
        assert report["counters"]["breaker_openings"] >= 1
        assert report["most_waiting"] >= 1
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_wrong_count_is_named_and_is_exit_code_1(tmp_path: Path) -> None:
    arguments = ("-m", "support.tampered_demo", "--flights", str(FLIGHTS))
    tests = str(Path(__file__).parents[1])
    code, out, err = finish(start(tmp_path, *arguments, PYTHONPATH=tests))
    assert code == 1, err
    right = expected(read_departures(FLIGHTS)).carriers["UA"].flights
    assert f"wrong: UA: {right - 1:,} flights counted, {right:,} in the file" in out
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
    assert processes_of(tmp_path) == []


def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, *DEMO)
    assert process.stderr is not None
    for line in process.stderr:
        if "goes down" in line:
            break
    process.kill()
    finish(process)
    try:
        deadline = time.monotonic() + 2
        while left := processes_of(tmp_path):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        (directory,) = tmp_path.iterdir()
        for cell_files in Path("/dev/shm").glob(f"{directory.name}-*"):
            shutil.rmtree(cell_files)


def test_without_a_nats_server_it_says_how_to_get_one(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, *DEMO, UNDERSTUDY_NATS_SERVER="/nowhere/nats-server"))
    assert code == 2
    assert "/nowhere/nats-server" in err
    assert list(tmp_path.iterdir()) == []
