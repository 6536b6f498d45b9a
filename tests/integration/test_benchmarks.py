"""`make bench` from end to end, over so few messages that its counts mean something and its rates nothing."""

from __future__ import annotations

import json
import os
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


def test_it_measures_every_scenario_accounts_for_every_message_and_leaves_nothing(tmp_path: Path) -> None:
    directory, written = tmp_path / "temporary", tmp_path / "report.json"
    directory.mkdir()
    result = run("benchmarks", "--json", str(written), directory=directory)
    assert result.returncode == 0, result.stderr
    report = json.loads(written.read_text())
    assert report["conserved"]
    assert [scenario["name"] for scenario in report["scenarios"]] == ["drain", "publish", "publish-each"]
    for scenario in report["scenarios"]:
        ours, *others = scenario["contenders"]
        assert "understudy" in ours["name"]
        assert ours["understudy_is_times_faster"] == 1
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


def test_an_unknown_scenario_is_wrong_usage(tmp_path: Path) -> None:
    result = run("benchmarks", "--scenario", "drian", directory=tmp_path)
    assert result.returncode == 2
    assert "choose from" in result.stderr
