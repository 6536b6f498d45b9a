"""One failure of each kind under load, as the table of docs/faults.md has them all."""

from __future__ import annotations

import pytest

from support.fault_table import try_often
from support.faults import FAULTS, Fault

BY_NAME = {fault.what: fault for fault in FAULTS}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "what",
    [
        "exception in `on_start`",
        "SIGSEGV in a handler",
        "a thread that keeps the GIL",
        "SIGSTOP, after 1 s SIGCONT",
        "SIGKILL of the victims' supervisor",
        "SIGKILL of the launcher",
        "the broker: SIGKILL and start",
    ],
)
def test_a_failure_costs_no_event_and_no_bystander(what: str) -> None:
    """Nothing is lost, what comes again was in a handler, and only who should be is started anew."""
    row = try_often(BY_NAME[what], 1)
    assert row.differences == []
    assert row.lost == 0
    assert row.events > 0


def test_the_account_sees_a_restart_that_should_not_be() -> None:
    """A fault that is said to touch nobody, and kills."""
    killing = BY_NAME["SIGKILL"]
    untold = Fault("nothing at all", killing.inflict, (), "")
    assert try_often(untold, 1).differences == ["victim-0/0 was started anew"]
