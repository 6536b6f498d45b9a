"""What the demonstration concludes and shows; that it runs is tests/integration/test_demo.py."""

import signal
from collections import Counter
from dataclasses import replace
from typing import NoReturn

import pytest
import structlog
import typer

from understudy.examples.flights.app import CarrierStatistics
from understudy.examples.flights.bookings import Entry
from understudy.examples.flights.rebooking import Trip
from understudy.examples.flights.settlement import Rebooked
from understudy.examples.flights.tally import CarrierTally, Tally
from understudy.examples.flights.trouble import Fate
from understudy.runtime.cli import demo_processes
from understudy.runtime.cli.demo import read_fraction
from understudy.runtime.cli.demo_evidence import Evidence
from understudy.runtime.cli.demo_processes import DemoFailed
from understudy.runtime.cli.demo_report import Report, print_tables
from understudy.runtime.cli.demo_scenario import Kill, Observed
from understudy.runtime.cli.demo_screen import Screen
from understudy.runtime.cli.entry import main

RIGHT = Tally(
    carriers={"UA": CarrierTally(flights=2, cancelled=1, total_delay_minutes=61.0)},
    announced=1,
    notices=Counter({("UA", 1, "EWR", "2013-01-01T05:15", 61.0): 1}),
)
NOTICE = {
    "carrier": "UA", "flight": 1, "origin": "EWR", "scheduled": "2013-01-01T05:15", "delay_minutes": 61.0
}  # fmt: skip
EVIDENCE = Evidence(
    states={"UA": CarrierStatistics(flights=2, cancelled=1, delay_minutes=61.0)},
    announced=1,
    ledger={"notices": {"one": NOTICE}, "requests": 3, "repeated": 1, "refused": 1, "conflicts": 0},
    rebookings={
        "UA1": Rebooked(phase="completed", why="", trip=Trip(seat=1, receipt=2)),
        "UA2": Rebooked(phase="compensated", why="charge: declined", trip=Trip(seat=4)),
    },
    entries=[
        Entry(1, "seats", "UA1", 1),
        Entry(2, "charges", "UA1", 80),
        Entry(3, "messages", "UA1", 1),
        Entry(4, "seats", "UA2", 1),
        Entry(5, "seats", "UA2", -1),
    ],
    fates=dict.fromkeys(Fate, 0) | {Fate.WORKS: 5, Fate.REFUSED: 1, Fate.LIES: 2},
    redelivered={},
    unsettled={},
    dead_letters=0,
)
REPORT = Report(
    right=RIGHT,
    due=frozenset({"UA1", "UA2"}),
    evidence=EVIDENCE,
    observed=Observed(
        publish_seconds=1.0,
        handled_seconds=2.0,
        kills=[Kill(cell="notifier/1", published=1, recovery_seconds=0.5)],
        most_waiting=1,
        counters={"taken_over": 2, "committed": 1},
    ),
    exit_code=0,
    stop_seconds=1.0,
)


def test_a_right_run_has_nothing_wrong() -> None:
    assert REPORT.wrong == []


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            replace(REPORT, evidence=replace(EVIDENCE, states={})),
            "UA: flights: 0 counted, 2 in the file",
        ),
        (
            replace(REPORT, evidence=replace(EVIDENCE, announced=2)),
            "late flights: 2 announced in the stream, 1 in the file",
        ),
        (
            replace(
                REPORT,
                evidence=replace(
                    EVIDENCE, ledger={**EVIDENCE.ledger, "notices": {"one": NOTICE, "two": NOTICE}}
                ),
            ),
            "notices: sent again: 1",
        ),
        (
            replace(REPORT, evidence=replace(EVIDENCE, entries=EVIDENCE.entries[:-1])),
            "rebookings: compensated, but not so in the service's ledger: 1, such as UA2 (charge: declined; "
            "seats [1]; charges none; messages none)",
        ),
        (
            replace(REPORT, evidence=replace(EVIDENCE, dead_letters=3)),
            "dead letters: 3, where none belongs",
        ),
        (
            replace(REPORT, evidence=replace(EVIDENCE, unsettled={"flights-notifier": 2})),
            "flights-notifier: pending or unacknowledged after the stop: 2",
        ),
        (replace(REPORT, exit_code=75), "the runtime ended with 75 after SIGTERM"),
        (replace(REPORT, exit_code=None), "the runtime had to be killed after SIGTERM"),
    ],
)
def test_whatever_is_wrong_is_named(report: Report, line: str) -> None:
    assert line in report.wrong


def test_it_is_told_how_each_notice_came_to_be_sent_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(REPORT)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {
        "killed notifier/1 after 1; up again in 0.50 s",
        "taken over 2 events by replacements",
        "states 1 carrier in 1 commit",
        "not counted again 0 departures that came twice",
        "notices sent 1",
        "requests for them 3: 1 repeat recognised by key, 1 refused while down",
        "rebookings 1 completed, 1 compensated",
        "seats, money 1 seat held, 1 given back; $80 charged, 0 refunded",
        "All counts are right: 2 flights of 1 carriers, each counted once; 1 of them late, and one notice "
        "sent of each; 2 rebookings, 1 completed, 1 compensated, and the service's ledger agrees.",
    } <= set(lines)
    assert (
        "requests for them 8: 5 done, 0 recognised by key, 1 refused for good, 0 failed, 0 hung, 2 hung when "
        "done, 0 refused while down" in " ".join(lines)
    )


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


def test_what_its_own_connection_logs_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broker that dies ends it with an error that says so; stdout is for its report."""

    def open_stage(*_: object, **__: object) -> NoReturn:
        log = structlog.get_logger("understudy.connection")
        log.debug("broker error", error="reset by peer")
        log.warning("broker connection lost")
        raise DemoFailed("the broker is gone")

    monkeypatch.setattr(demo_processes, "open_stage", open_stage)
    # It takes what would end the tests otherwise.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["demo", "--flights", "500"]) == 1
    assert capsys.readouterr() == ("", "understudy: the broker is gone\n")
