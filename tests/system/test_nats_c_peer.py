"""The benchmarks' peer in C, which needs a compiler and libnats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEER = "nats.c, overlapping pulls"


@pytest.mark.timeout(180)
def test_it_is_compiled_and_measured(tmp_path: Path) -> None:
    """Where something is missing, the skip names what to install."""
    written = tmp_path / "report.json"
    result = subprocess.run(
        (
            *(sys.executable, "-m", "benchmarks", "--scenario", "drain", "--messages", "3000"),
            *("--rounds", "1", "--json", written),
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (scenario,) = json.loads(written.read_text())["scenarios"]
    if PEER in scenario["left_out"]:
        # A machine that has no C compiler or libnats can pass all the same; what to install is named.
        pytest.skip(f"{PEER}: {scenario['left_out'][PEER]}")
    rates = {contender["name"]: contender["rate"] for contender in scenario["contenders"]}
    assert rates[PEER] > 0
