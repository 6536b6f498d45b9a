"""`make bench` from end to end, over so few messages that its counts mean something and its rates nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGES = 3_000

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not in the wheel"),
]


def run(module: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "--messages", str(MESSAGES), "--rounds", "1", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(directory), "PYTHONPATH": str(ROOT / "tests")},
    )


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


def test_it_measures_every_scenario_accounts_for_every_message_and_leaves_nothing(tmp_path: Path) -> None:
    directory, written = tmp_path / "temporary", tmp_path / "report.json"
    directory.mkdir()
    result = run("benchmarks", "--json", str(written), directory=directory)
    assert result.returncode == 0, result.stderr
    report = json.loads(written.read_text())
    assert report["conserved"]
    assert [scenario["name"] for scenario in report["scenarios"]] == ["drain", "publish", "publish-each"]
    assert set(report["scenarios"][0]["left_out"]) <= {"nats.c, overlapping pulls"}
    for scenario in report["scenarios"]:
        ours, *others = scenario["contenders"]
        assert "understudy" in ours["name"]
        assert ours["first_divided_by_this"] == 1
        assert others
        for contender in scenario["contenders"]:
            assert contender["rate"] > 0
            assert contender["cpu_microseconds"] > 0
            assert f"  {contender['name']} " in result.stdout
            assert f"{scenario['name']} 1/1  {contender['name']}: " in result.stderr
    assert list(directory.iterdir()) == []


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
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_what_can_not_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    result = run("benchmarks", "--json", str(tmp_path / "missing" / "report.json"), directory=tmp_path)
    assert result.returncode == 2
    assert "report.json can't be written: No such file or directory" in result.stderr
    result = run("benchmarks", "--directory", str(tmp_path / "missing"), directory=tmp_path)
    assert result.returncode == 2
    assert "missing is no directory that can be written to" in result.stderr


def test_an_unknown_scenario_is_wrong_usage(tmp_path: Path) -> None:
    result = run("benchmarks", "--scenario", "drian", directory=tmp_path)
    assert result.returncode == 2
    assert "choose from" in result.stderr
