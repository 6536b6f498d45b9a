"""One failure of each kind under load, as the table of docs/faults.md has them all."""

from __future__ import annotations

import pytest

from support.fault_app import VICTIMS
from support.fault_table import Row, Trial, render, try_in_turn, try_often
from support.faults import FAULTS, Fault

BY_NAME = {fault.what: fault for fault in FAULTS}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "faults",
    [
        [
            "exception in `on_start`",
            "SIGSEGV in a handler",
            "a thread that keeps the GIL",
            "SIGSTOP, after 1 s SIGCONT",
            "the broker: SIGKILL and start",
        ],
        # The one starts all victims anew, and the other everything.
        ["SIGKILL of the victims' supervisor", "SIGKILL of the launcher"],
    ],
    ids=["each to a victim", "to all"],
)
def test_a_failure_costs_no_event_and_no_bystander(faults: list[str]) -> None:
    """Nothing is lost, what comes again was in a handler, and only who should be is started anew."""
    account = try_in_turn([(BY_NAME[what], victim) for what, victim in zip(faults, VICTIMS, strict=False)])
    assert account.differences == []
    assert len(account.trials) == len(faults)
    assert account.lost == 0
    assert account.events > 0


def test_the_account_sees_a_restart_that_should_not_be() -> None:
    """A fault that is said to touch nobody, and kills."""
    killing = BY_NAME["SIGKILL"]
    untold = Fault("nothing at all", killing.inflict, (), "")
    assert try_often(untold, 1).differences == ["victim-0/0 was started anew"]


def test_the_page_has_a_row_for_every_failure() -> None:
    """With what was measured, and with names for what is started anew and what isn't."""
    trials = [
        Trial(20.4, frozenset(), ""),
        Trial(1010.2, frozenset(), ""),
        Trial(30.0, frozenset(), "it died"),
    ]
    page = render([Row(fault, trials, 100, 0, 1234, []) for fault in FAULTS], 3, "make faults", "2.15.1")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [fault.what for fault in FAULTS]
    assert {tuple(row[-4:]) for row in rows} == {("30", "1,010", "0", "1,234")}
    killed = next(row for row in rows if row[0] == "SIGKILL")
    others = "the other victims, bystander, `ops`, root, admin, logger, launcher"
    assert killed[1:5] == ["the victim", "`ops`", others, "it died"]
    assert all(len(line) <= 110 for line in page.splitlines() if not line.startswith("|"))
