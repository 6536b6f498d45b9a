"""What a cell says of itself while something keeps it from going on."""

from __future__ import annotations

from structlog.testing import capture_logs

from understudy.actors.options import make_options
from understudy.runtime.cell.condition import Condition
from understudy.runtime.cell.trials import Mode


def test_a_cell_says_once_that_it_waits_for_a_breaker() -> None:
    """Not again after each trial that has failed, but again when it is another breaker, or another time."""
    condition = Condition(make_options({}, "actor A"), lambda: None)
    with capture_logs() as logs:
        for mode, breaker in (
            *((Mode.NONE, "mail"), (Mode.TRIAL, ""), (Mode.NONE, "mail"), (Mode.TRIAL, "")),
            *((Mode.NONE, "payments"), (Mode.TRIAL, ""), (Mode.ALL, ""), (Mode.NONE, "payments")),
        ):
            condition.mode(mode, breaker)
    assert [(entry["event"], entry.get("breaker")) for entry in logs] == [
        *(("paused", "mail"), ("paused", "payments"), ("resumed", None), ("paused", "payments")),
    ]
