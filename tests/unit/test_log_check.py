"""The check of a log finds what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.log_check import check_log, main

GOOD: dict[str, Any] = {
    "time": "2026-11-21T12:00:00.000Z",
    "level": "info",
    "event": "sold",
    "app": "shop",
    "node": "host:1",
    "actor": "clerk",
    "cell": "clerk/0",
    "trace_id": "a" * 32,
    "span_id": "b" * 16,
    "stream": "SHOP",
    "sequence": 1,
    "subject": "shop.sold",
    "attempt": 1,
    "logger": "understudy.actor",
    "pid": 2,
}


def line(**changes: object) -> bytes:
    entry = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return json.dumps(entry).encode() + b"\n"


def test_a_batchs_line_has_the_batchs_fields() -> None:
    """With the ids of its span if it is traced, else without."""
    batch = line(sequence=None, subject=None, attempt=None, deliveries=2, first_sequence=1, last_sequence=2)
    untraced = line(
        **dict.fromkeys(("sequence", "subject", "attempt", "trace_id", "span_id")),
        deliveries=2,
        first_sequence=1,
        last_sequence=2,
    )
    assert check_log([batch, untraced]).problem_count == 0


def test_good_lines_are_counted() -> None:
    """By level; those of deliveries, processes and suppressed repeats too."""
    summary = line(event="repeats were not logged", count=7, level="error", trace_id=None, pid=3)
    account = check_log([line(), line(), summary])
    assert (account.lines, account.by_level) == (3, {"info": 2, "error": 1})
    assert (account.of_deliveries, account.suppressed, account.processes) == (2, 7, 2)
    assert account.problem_count == 0


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"Fatal Python error: Segmentation fault\n", "is no JSON object"),
        (b'{"time":"2026\n', "is no JSON object"),
        (b"7\n", "is no JSON object"),
        (line(app=None), "has no app"),
        (line(node=None), "has no node"),
        (line(pid="2"), "has no pid"),
        (line(event=""), "has no event"),
        (line(level="loud"), "has a wrong level"),
        (line(time="noon"), "has a wrong time"),
        (line(actor=None), "names a cell and not its actor"),
        (line(sequence=None, attempt=None), "names a delivery without its sequence, attempt"),
        (line(first_sequence=1, last_sequence=2), "names a batch without its deliveries"),
        (line(trace_id="x"), "has a wrong trace_id"),
        (line(log_failure="TypeError"), "could not be shown"),
        (line(url="nats://clerk:hunter2@host"), "shows the secret that begins with hun"),
    ],
)
def test_a_bad_line_is_found(bad: bytes, problem: str) -> None:
    """And only that one."""
    account = check_log([line(), bad, line()], ["hunter2"])
    assert account.problem_count == 1
    assert account.problems[0].startswith(f"line 2 {problem}: ")


def test_the_command_says_by_its_status_whether_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For scripts."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(line())
    bad.write_bytes(line(token="hunter2"))
    assert main([str(good), "--secret", "hunter2"]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == 1
    assert main([str(good), str(bad), "--secret", "hunter2"]) == 1
