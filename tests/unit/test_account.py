"""What explains that an event was handled again, in the account of a run with faults."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.account import Kill, Outage, Recorded, Stage, Suspension, account_of

SECOND = 1_000_000_000
ACTOR = Recorded("orders", keys=1, concurrency=2, held=4, ack_wait_seconds=8.0, is_sole_owner=True)


def account(
    directory: Path,
    *runs: tuple[int, float, int],
    kills: Sequence[Kill] = (),
    outages: Sequence[Outage] = (),
    suspensions: Sequence[Suspension] = (),
) -> Stage:
    """Return the account of these runs: pid, time in seconds, number."""
    directory.mkdir(exist_ok=True)
    for pid, at, number in runs:
        with (directory / f"orders.{pid}").open("ab") as file:
            file.write(struct.pack("<QqqII", number + 1, round(at * SECOND), 0, number, 1))
    return account_of(ACTOR, directory, 2, kills, outages, suspensions)


def kill(pid: int, at: float) -> Kill:
    """Return a process' death, at a time in seconds."""
    return Kill(pid, round(at * SECOND))


def suspension(began: float, ended: float) -> Suspension:
    """Return a suspension, from and to in seconds."""
    return Suspension(round(began * SECOND), round(ended * SECOND))


def test_a_repeat_that_nothing_explains_is_a_difference(tmp_path: Path) -> None:
    stage = account(tmp_path, (7, 100, 0), (7, 101, 1), (7, 102, 0), kills=[kill(8, 101)])
    assert stage.differences() == ["1 repeats unexplained"]
    assert "not killed" in stage.examples[0]


def test_what_a_killed_process_had_in_hand_may_come_again(tmp_path: Path) -> None:
    """As many as it handles at once, and no more."""
    runs = [(pid, at, number) for pid, at in ((7, 100), (8, 101)) for number in (0, 1, 2)]
    stage = account(tmp_path, *runs, kills=[kill(7, 100.5)])
    assert (stage.after_kill, stage.unexplained) == (2, 1)


@pytest.mark.parametrize("kills", [[kill(7, 101), kill(7, 1000)], [kill(7, 5), kill(7, 101)]])
def test_processes_may_have_had_the_same_pid_one_after_the_other(tmp_path: Path, kills: list[Kill]) -> None:
    stage = account(tmp_path, (7, 100, 0), (7, 100, 1), (8, 102, 0), kills=kills)
    assert (stage.after_kill, stage.unexplained) == (1, 0)


def test_a_suspension_of_about_the_ack_wait_may_have_deliveries_come_again(tmp_path: Path) -> None:
    runs = [(7, 108.5, 0), (7, 108.5, 1), (7, 108.7, 0)]
    short, long = suspension(100, 104), suspension(104.2, 108.2)
    assert account(tmp_path, *runs, suspensions=[short, long]).after_suspension == 1


@pytest.mark.parametrize(
    "suspensions", [[], [suspension(100, 104)], [suspension(80, 84), suspension(90, 94)]]
)
def test_a_shorter_or_earlier_one_explains_nothing(tmp_path: Path, suspensions: list[Suspension]) -> None:
    runs = [(7, 108.5, 0), (7, 108.5, 1), (7, 108.7, 0)]
    assert account(tmp_path, *runs, suspensions=suspensions).unexplained == 1


def test_no_ack_is_written_while_all_stand_still(tmp_path: Path) -> None:
    """What was handled just before a suspension and an outage after it may come again."""
    outage = Outage(round(104.1 * SECOND), round(104.2 * SECOND), round(105 * SECOND))
    runs = [(7, 50, 1), (7, 100, 0), (7, 109, 0)]
    assert account(tmp_path, *runs, outages=[outage]).unexplained == 1
    stage = account(tmp_path / "other", *runs, outages=[outage], suspensions=[suspension(100.01, 104)])
    assert (stage.after_outage, stage.unexplained) == (1, 0)
