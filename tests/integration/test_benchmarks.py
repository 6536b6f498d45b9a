"""`make bench` from end to end, over so few messages that its counts mean something and its rates nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.processes import GONE_SECONDS, processes_of

ROOT = Path(__file__).parents[2]
MESSAGES = 3_000

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not in the wheel"),
]


def run(
    module: str, *arguments: str, directory: Path, messages: int = MESSAGES
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "--messages", str(messages), "--rounds", "1", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        # The peer in C is a matter of the system tests: here it has to be left out.
        env=os.environ
        | {"TMPDIR": str(directory), "PYTHONPATH": str(ROOT / "tests"), "CC": "no-such-compiler"},
    )


def assert_nobody_left(directory: Path) -> None:
    """Fail unless what was started with this TMPDIR is gone soon."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := processes_of(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def measure(
    *arguments: str, directory: Path, messages: int = MESSAGES
) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """The scenarios of a run's JSON, after what holds for every run: all is conserved, nothing is left."""
    temporary, written = directory / "temporary", directory / "report.json"
    temporary.mkdir()
    result = run("benchmarks", "--json", str(written), *arguments, directory=temporary, messages=messages)
    assert result.returncode == 0, result.stderr
    assert list(temporary.iterdir()) == []
    assert_nobody_left(temporary)
    report = json.loads(written.read_text())
    assert report["conserved"]
    for scenario in report["scenarios"]:
        ours, *others = scenario["contenders"]
        assert ours["first_divided_by_this"] == 1
        assert others
        for contender in scenario["contenders"]:
            assert contender["samples"]
            assert f"  {contender['name']} " in result.stdout
            assert f"{scenario['name']} 1/1  {contender['name']}: " in result.stderr
    return report["scenarios"], result


def names_of(scenario: dict[str, Any]) -> list[str]:
    return [contender["name"] for contender in scenario["contenders"]]


def test_without_a_name_it_measures_what_is_quick(tmp_path: Path) -> None:
    """And draws a picture of it."""
    picture = tmp_path / "picture.svg"
    scenarios, result = measure("--plot", str(picture), directory=tmp_path)
    drawn = picture.read_bytes()
    assert drawn.startswith(b"<?xml")
    assert b">understudy publish, one by one<" in drawn
    assert [scenario["name"] for scenario in scenarios] == ["drain", "publish", "publish-each"]
    for scenario in scenarios:
        for contender in scenario["contenders"]:
            assert contender["rate"] > 0
        # The kernel counts in ticks of 10 ms, and so few messages may need none.
        for cpu in ("cpu_microseconds", "broker_cpu_microseconds"):
            assert max(contender[cpu] for contender in scenario["contenders"]) > 0
    drain = scenarios[0]
    assert names_of(drain) == [
        "understudy run",
        "understudy run, public API",
        "nats-py, careful",
        "nats-py fetch(256) loop",
        "nats-py fetch(256) loop, uvloop",
        "FastStream pull, typed",
        "FastStream push",
    ]
    missing = (
        "it needs a C compiler and libnats; on Debian and Ubuntu: apt install gcc libc6-dev libnats-dev "
        "(there is no no-such-compiler)"
    )
    assert drain["left_out"] == {"nats.c, overlapping pulls": missing}
    assert f"  left out: nats.c, overlapping pulls: {missing}\n" in result.stdout
    assert "÷ nats.c, overlapping pulls, msgs/s: not measured (wanted: at least 0.6)" in result.stdout
    goal = drain["goals"][0]
    assert goal["other"] == "nats-py fetch(256) loop"
    rates = {contender["name"]: contender["rate"] for contender in drain["contenders"]}
    assert goal["reached"] == pytest.approx(rates[goal["ours"]] / rates[goal["other"]])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [["drain-1k", "batches", "headers"], ["keys", "chain"]], ids=" ".join)
def test_it_drains_other_messages_and_by_other_actors(tmp_path: Path, names: list[str]) -> None:
    scenarios, _ = measure(*(word for name in names for word in ("--scenario", name)), directory=tmp_path)
    assert [scenario["name"] for scenario in scenarios] == names
    assert all(contender["rate"] > 0 for scenario in scenarios for contender in scenario["contenders"])


def test_a_short_backlog_is_drained_four_times_a_round(tmp_path: Path) -> None:
    (measured,), result = measure("--scenario", "backlog", directory=tmp_path, messages=1_000)
    samples = {contender["name"]: len(contender["samples"]) for contender in measured["contenders"]}
    assert samples == {
        "understudy run, 20,000": 1,
        "understudy run, 10,000": 1,
        "understudy run, 1,000": 1,
        "understudy run, 100": 4,
        "nats-py, careful, 20,000": 1,
        "nats-py, careful, 100": 4,
    }
    assert "  understudy run, 20,000 ÷ understudy run, 100, msgs/s: " in result.stdout


def test_latency_is_taken_at_a_steady_rate(tmp_path: Path) -> None:
    """A picture may be one of pixels, too."""
    picture = tmp_path / "picture.png"
    scenarios, _ = measure(
        *("--scenario", "latency", "--scenario", "latency-half", "--seconds", "1", "--plot", str(picture)),
        directory=tmp_path,
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    for scenario in scenarios:
        assert names_of(scenario) == ["understudy run", "understudy run, public API", "nats-py, careful"]
        for contender in scenario["contenders"]:
            assert 0 < contender["p50_milliseconds"] <= contender["p99_milliseconds"]
    # Never faster; slower where the machine stood still when it was about to end.
    assert all(0 < contender["rate"] < 102 for contender in scenarios[0]["contenders"])


def test_asks_are_answered_and_accounted_for(tmp_path: Path) -> None:
    (measured,), _ = measure(
        *("--scenario", "ask", "--only", "nats-py request, core NATS"), directory=tmp_path, messages=1_000
    )
    assert names_of(measured) == ["understudy ask", "nats-py request, core NATS"]
    for contender in measured["contenders"]:
        assert 0 < contender["p50_milliseconds"] <= contender["p99_milliseconds"]
        assert contender["rate"] > 0


def test_a_killed_cell_s_successor_is_timed(tmp_path: Path) -> None:
    """Everything is handled; what the server has to be waited for comes after `ack_wait`, which is 10 s."""
    (measured,), _ = measure("--scenario", "kill", directory=tmp_path, messages=30_000)
    ours, raw = measured["contenders"]
    for contender in (ours, raw):
        assert 0 < contender["first_milliseconds"] <= contender["last_milliseconds"]
        assert contender["recovered"] > 0
    # Where the machine stood still before the kill, some of that had passed.
    assert raw["last_milliseconds"] > 5_000
    assert ours["last_milliseconds"] < 0.7 * raw["last_milliseconds"]


def test_memory_is_taken_from_the_kernel(tmp_path: Path) -> None:
    scenarios, _ = measure(
        *("--scenario", "slow-handler", "--scenario", "start-up", "--seconds", "1"),
        directory=tmp_path,
        messages=200,
    )
    slow, start_up = scenarios
    assert all(contender["pss_megabytes"] > 5 for contender in slow["contenders"])
    assert names_of(start_up) == ["1 cell", "5 cells", "20 cells"]
    for contender, cells in zip(start_up["contenders"], (1, 5, 20), strict=True):
        assert contender["ready_seconds"] > 0
        assert contender["pss_megabytes_all"] > cells * contender["pss_megabytes_each"]
    # Linear: of a larger tree, a cell more takes no more memory.
    _, few, many = (contender["pss_megabytes_added"] for contender in start_up["contenders"])
    assert 0 < many < 1.5 * few


def test_what_guarantees_cost_is_put_into_their_page(tmp_path: Path) -> None:
    """Its table is replaced, each row divided by the plain actor's; the text around it stays as it is."""
    original = (ROOT / "docs" / "guarantees.md").read_text()
    page = tmp_path / "guarantees.md"
    page.write_text(original)
    rows = ("outputs before the ack", "batches, idempotency on the server", "call through a closed breaker")
    (measured,), _ = measure(
        *("--scenario", "guarantees", "--page", str(page)),
        *(word for row in rows for word in ("--only", row)),
        directory=tmp_path,
    )
    # Whole batches of half of what was asked for.
    assert measured["messages"] == 1_280
    rates = {contender["name"]: contender["rate"] for contender in measured["contenders"]}
    assert set(rates) == {"plain actor", *rows}
    begin, end = "<!-- made by `make guarantees` -->\n", "<!-- end of what it made -->\n"
    before, _, rest = page.read_text().partition(begin)
    table, _, after = rest.partition(end)
    assert (before, after) == (original.partition(begin)[0], original.partition(end)[2])
    cells = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    plain = rates["plain actor"]
    assert {row[0].removeprefix("| "): row[2] for row in cells} == {
        name: f"{rate / plain:.2f}" for name, rate in rates.items()
    }
    assert table.count("\n| plain actor | `Actor` | 1.00 | 1.00 to 1.00 | ") == 1
    text = " ".join(table.split())
    assert "1,280 messages a run; medians of 1 interleaved rounds" in text
    assert "--page PAGE --rounds=1 --messages=3000 '--only=outputs before the ack' '--only=batches, " in text


def test_the_page_has_every_guarantee() -> None:
    """Written by a run of all of them, under the names by which each is measured alone."""
    table = (ROOT / "docs" / "guarantees.md").read_text()
    result = run("benchmarks", "--scenario", "guarantees", "--only", "nobody", directory=ROOT)
    assert result.returncode == 2
    known = re.findall(r"'([^']+)'", result.stderr.partition("there are ")[2])
    assert len(known) > 15
    for name in known:
        assert f"| {name} | " in table


def test_a_message_too_many_is_named_and_is_exit_code_1(tmp_path: Path) -> None:
    result = run("support.tampered_benchmark", "--scenario", "drain", directory=tmp_path)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert (
        "benchmarks: understudy run: 3,000 published, 3,001 in the stream; 3,000 acked as the process says, "
        "0 dead letters, 0 pending; after 3,000 deliveries the consumer's ack floor is 3,000" in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--messages", "3000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert_nobody_left(tmp_path)


def test_what_can_not_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    result = run("benchmarks", "--json", str(tmp_path / "missing" / "report.json"), directory=tmp_path)
    assert result.returncode == 2
    assert "report.json can't be written: No such file or directory" in result.stderr
    result = run("benchmarks", "--directory", str(tmp_path / "missing"), directory=tmp_path)
    assert result.returncode == 2
    assert "missing is no directory that can be written to" in result.stderr
    result = run("benchmarks", "--plot", str(tmp_path / "picture.gif"), directory=tmp_path)
    assert result.returncode == 2
    assert "picture.gif is neither an .svg nor a .png file" in result.stderr
    page = tmp_path / "page.md"
    page.write_text("# No table\n")
    result = run("benchmarks", "--scenario", "drain", "--page", str(page), directory=tmp_path)
    assert result.returncode == 2
    assert "--page: give --scenario guarantees" in result.stderr
    result = run("benchmarks", "--scenario", "guarantees", "--page", str(page), directory=tmp_path)
    assert result.returncode == 2
    assert "page.md: there is no <!-- made by `make guarantees` -->" in result.stderr


def test_an_unknown_scenario_is_wrong_usage(tmp_path: Path) -> None:
    result = run("benchmarks", "--scenario", "drian", directory=tmp_path)
    assert result.returncode == 2
    assert "choose from" in result.stderr
