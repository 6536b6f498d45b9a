"""The short form of `python -m support.random_faults`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.random_faults import storm


@pytest.mark.timeout(240)
def test_faults_at_random_cost_no_event_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Every repeat is explained, each key's order unbroken; memory and descriptors are as at the start."""
    account = storm(tmp_path, seconds=20, seed=os.getpid())
    assert account.differences() == [], account
    assert account.faults
    assert account.events > 1000
