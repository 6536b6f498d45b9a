"""What the demonstration concludes and shows; that it runs is tests/integration/test_demo.py."""

from collections import Counter
from dataclasses import replace

import pytest
import typer

from understudy.examples.flights.tally import CarrierTally, Tally
from understudy.runtime.cli.demo import read_fraction
from understudy.runtime.cli.demo_report import Report
from understudy.runtime.cli.demo_scenario import Observed
from understudy.runtime.cli.demo_screen import Screen

RIGHT = Tally(
    carriers={"UA": CarrierTally(flights=2, cancelled=1, total_delay_minutes=5.0)}, notices=Counter()
)
REPORT = Report(
    right=RIGHT,
    counted=RIGHT,
    ledger={"notices": {}, "repeated": 0, "refused": 0},
    observed=Observed(),
    exit_code=0,
    stop_seconds=1.0,
)


def test_a_right_run_has_nothing_wrong() -> None:
    assert REPORT.wrong == []


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            replace(REPORT, counted=Tally(carriers={}, notices=Counter())),
            "UA: 0 flights counted, 2 in the file",
        ),
        (replace(REPORT, observed=Observed(dead_letters=3)), "dead letters: 3, where none belongs"),
        (
            replace(REPORT, observed=Observed(unsettled={"flights-notifier": 2})),
            "flights-notifier: 2 deliveries pending or unacknowledged after the stop",
        ),
        (replace(REPORT, exit_code=75), "the runtime ended with 75 after SIGTERM"),
        (replace(REPORT, exit_code=None), "the runtime had to be killed after SIGTERM"),
    ],
)
def test_whatever_is_wrong_is_named(report: Report, line: str) -> None:
    assert line in report.wrong


@pytest.mark.parametrize(("text", "fraction"), [("0", 0.0), ("0.25", 0.25), ("1", 1.0)])
def test_the_moment_of_the_kill_is_a_fraction(text: str, fraction: float) -> None:
    assert read_fraction(text) == fraction


def test_the_moment_of_the_kill_may_be_random() -> None:
    assert 0 <= read_fraction("random") < 1


@pytest.mark.parametrize("text", ["-0.1", "1.5", "nan", "inf", "half", ""])
def test_any_other_moment_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="neither a number from 0 to 1 nor 'random'"):
        read_fraction(text)


def test_off_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(1_000) as screen:
        screen.start_bars()
        screen.say("the [notices] service is down")
        for published in range(0, 1_001, 50):
            screen.advance(published=published, counted=published // 2)
    lines = [line.split(" s  ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "the [notices] service is down"
    assert lines[-1] == "1,000 of 1,000 published, 500 counted"
    assert len(lines) == 11
