"""`understudy dead-letters` as far as it needs no server: its help, its usage, and what it prints."""

from __future__ import annotations

import asyncio
import time

import pytest

from understudy.runtime.cli.entry import main
from understudy.runtime.cli.letter_actions import Pace
from understudy.runtime.cli.letter_views import age, readable, table
from understudy.runtime.jetstream.stored_letters import StoredLetter

COMMANDS = ("list", "show", "replay", "discard", "export")
CHOICE = "say which: either IDs, or filters (--actor, --reason, --older-than, --newer-than), or --all\n"


def letter(**changes: object) -> StoredLetter:
    """Return a letter of billing's."""
    fields = {"id": 1, "app": "shop", "actor": "billing", "stored_at": 0, "headers": {}, "size": 0}
    return StoredLetter(body=None, **fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """One that can be typed; arguments in capitals."""
    assert main(["dead-letters", command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: understudy dead-letters {command}" in text
    assert "--app NAME" in text
    assert "[[" not in text


def test_the_group_s_help_names_all_with_or_without_being_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one line."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["dead-letters"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "..." not in text.replace("[ARGS]...", "")
    assert main(["dead-letters", "--help"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("replay", CHOICE),
        ("discard --yes", CHOICE),
        ("replay 1 --all", CHOICE),
        ("replay 1 --actor a", CHOICE),
        ("discard --all --reason rejected --yes", CHOICE),
        (
            "list --older-than 5",
            "--older-than is '5'; give a number and one of s, m, h, d, w, like 15m or 3d\n",
        ),
        ("export --newer-than -5m", "--newer-than is '-5m'; give a number and one of s, m, h, d, w, like"),
        ("list --reason tired", "--reason is 'tired'; give undecodable, rejected, exhausted or crashed\n"),
        ("list --actor a.b", "--actor: the name is 'a.b'; use 1 to 64 of the characters"),
        ("list --limit 0", "Invalid value for '--limit': "),
        ("show 0", "Invalid value for 'ID': "),
        ("show", "Missing argument 'ID'."),
        ("replay --all --rate 0", "--rate is 0; give a number above 0\n"),
        ("replay --all --rate nan", "--rate is nan; give a number above 0\n"),
        ("forget", "No such command 'forget'."),
    ],
)
def test_wrong_usage_is_status_2_before_anybody_connects(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    """On stderr, and it says what to give instead."""
    assert main(["dead-letters", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"understudy: {message}")


def test_what_a_terminal_would_obey_is_written_out() -> None:
    """Escapes of either kind, line breaks, and bytes that are no text."""
    assert readable("grüße ✓") == "grüße ✓"
    assert readable("a\x1b[31m\nb\x9b\u202e") == "a\\x1b[31m\\nb\\x9b\\u202e"
    assert readable("\udcff") == "\\xff"


def test_an_age_is_in_its_largest_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is behind the server's makes nothing younger than now."""
    now = 1_800_000_000_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    ages = {0: "0s", 59: "59s", 60: "1m", 3599: "59m", 3600: "1h", 86399: "23h", 86400: "1d", -5: "0s"}
    assert {seconds: age(now - seconds * 1_000_000_000) for seconds in ages} == ages


def test_a_table_fits_its_columns_whatever_the_letters_hold() -> None:
    """Wide characters take two; what is cut ends with dots; errors give way first."""
    headers = {"Understudy-Reason": "rejected", "Understudy-Subject": "s" * 90, "Understudy-Error": "件" * 99}
    lines = table([letter(id=123456, actor="a" * 60, headers=headers), letter()], columns=100).splitlines()
    assert lines[0].split() == ["ID", "AGE", "ACTOR", "REASON", "SUBJECT", "ERROR"]
    columns = [sum(2 if character == "件" else 1 for character in line) for line in lines]
    assert max(columns) <= 100
    assert lines[1].endswith("…")
    assert "s" * 23 + "…" in lines[1]
    assert lines[2].split()[0] == "1"


def test_a_message_that_is_no_dead_letter_says_nothing() -> None:
    """Anybody may publish into the stream."""
    stranger = letter(headers={"Understudy-Sequence": "-1", "Understudy-Attempts": "x", "Nats-Msg-Id": "a"})
    assert (stranger.subject, stranger.stream, stranger.reason, stranger.stream_created) == ("", "", "", "")
    assert (stranger.sequence, stranger.attempts) == (0, 0)
    assert stranger.durable == "shop-billing"


def test_the_original_s_headers_have_their_own_names_again() -> None:
    """Ours, and the letter's own, aren't among them; those that a replay gave the event are."""
    found = letter(
        headers={
            "Understudy-Original-Nats-Msg-Id": "m",
            "Understudy-Original-nats-ttl": "1s",
            "Understudy-Original-Id": "o",
            "Understudy-Replay-For": "shop-billing",
            "Understudy-Reason": "rejected",
            "Nats-Msg-Id": "shop-billing.2026-01-01T00:00:00.5Z.7",
            "a": "b",
        }
    )
    assert found.original_headers == {
        "Nats-Msg-Id": "m",
        "nats-ttl": "1s",
        "Understudy-Original-Id": "o",
        "Understudy-Replay-For": "shop-billing",
        "a": "b",
    }
    assert found.stream_created == "2026-01-01T00:00:00.5Z"


async def test_a_pace_lets_through_evenly_and_makes_up_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause, not all at once what could have gone meanwhile."""
    now = 100.0
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(round(seconds, 6))
        now += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    pace = Pace(10)
    for _ in range(3):
        await pace.wait()
    now += 5
    for _ in range(2):
        await pace.wait()
    assert waits == [0, 0.1, 0.1, 0, 0.1]
    await Pace(None).wait()
    assert len(waits) == 5
