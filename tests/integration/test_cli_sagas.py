"""`understudy sagas` against a real server: what it lists and shows, and what becomes of what it is told."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.cells import bench, until
from support.nats import NatsServer
from support.rebooking import Delayed, Desk, Payments, Rebooking
from understudy.actors.saga_position import Phase
from understudy.runtime.cli.entry import main
from understudy.runtime.jetstream.topology import state_bucket

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def desk(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Desk]:
    """One saga that is complete, and one that is stuck."""
    Rebooking.did = []
    Rebooking.plan = {}
    Rebooking.waits_for_reply(600)
    Payments.answers, Payments.keys = {}, []
    async with bench(nats_server.url, tmp_path) as made:
        desk = Desk(made)
        await desk.open()
        await desk.publish(Delayed(booking="complete"))
        await desk.reaches("complete", Phase.COMPLETED)
        Rebooking.plan = {"notify do": ["rejects"], "charge undo": ["rejects"]}
        await desk.publish(Delayed(booking="stuck"))
        await desk.reaches("stuck", Phase.STUCK)
        yield desk


class Terminal(io.StringIO):
    """Somebody who can be asked."""

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return True


class Output:
    """Runs the command, and has what it printed."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr."""
        self._capsys.readouterr()
        # Without a thread of its own it couldn't have an event loop of its own.
        status = await asyncio.to_thread(main, ["sagas", *arguments, "--servers", self._url])
        printed = self._capsys.readouterr()
        return (
            status,
            printed.out,
            "\n".join(line for line in printed.err.splitlines() if not line.startswith("{")),
        )


@pytest.fixture
def sagas(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Output:
    """The command."""
    return Output(desk.bench.url, capsys)


async def test_list_shows_where_each_is(sagas: Output) -> None:
    status, out, _ = await sagas.run("list")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["ID", "SAGA", "STATE", "STEP", "AGE", "WHY"]
    assert lines[1].split()[:4] == ["stuck", "rebooking", "stuck", "charge"]
    assert "charge can't be undone: not today; notify: not today"[:40] in lines[1]
    assert lines[2].split()[:3] == ["complete", "rebooking", "completed"]
    assert all(len(line) <= 100 for line in lines)


async def test_list_picks_by_saga_state_age_and_limit(sagas: Output) -> None:
    for arguments, expected in {
        "--state stuck": ["stuck"],
        "--state completed": ["complete"],
        "--state running": [],
        "--saga rebooking --app air": ["stuck", "complete"],
        "--newer-than 1h": ["stuck", "complete"],
        "--older-than 1h": [],
        "--limit 1": ["stuck"],
    }.items():
        status, out, err = await sagas.run("list", "--json", *arguments.split())
        assert status == 0
        assert [json.loads(line)["id"] for line in out.splitlines()] == expected, arguments
        assert err.startswith("no sagas with") == (not expected)
    assert err == "1 more, all older; --limit 2 shows them"


async def test_what_is_read_leaves_no_consumer_behind(sagas: Output, desk: Desk) -> None:
    """The server would keep each list's for five minutes."""
    bucket = f"KV_{state_bucket('air')}"
    before = {consumer.name for consumer in await desk.bench.client.jetstream().consumers_info(bucket)}

    async def are_as_before() -> bool:
        found = await desk.bench.client.jetstream().consumers_info(bucket)
        return {consumer.name for consumer in found} == before

    status, _, _ = await sagas.run("list")
    assert status == 0
    await until(are_as_before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--state running", "no sagas with --state running"),
        ("--saga other", "no sagas with --saga other; there are rebooking of air"),
        (
            "--app shop --older-than 1h",
            "no sagas with --app shop --older-than 1h; there are rebooking of air",
        ),
    ],
)
async def test_that_there_are_none_is_said_with_what_was_asked_for(
    sagas: Output, arguments: str, message: str
) -> None:
    assert await sagas.run("list", *arguments.split()) == (0, "", message)


async def test_a_server_without_sagas_has_none(
    nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    none = Output(nats_server.url, capsys)
    assert await none.run("list") == (0, "", "no sagas")
    assert await none.run("list", "--saga", "other") == (0, "", "no sagas with --saga other")
    assert await none.run("resume", "--all") == (0, "", "0 sagas told to resume")
    status, _, err = await none.run("resume", "one")
    assert (status, err.splitlines()[0]) == (1, "there is no saga 'one'")


async def test_one_that_can_not_be_read_is_told_and_hides_no_other(sagas: Output, desk: Desk) -> None:
    """What an operator has written by hand, or a version to come."""
    kv = await desk.bench.client.jetstream().key_value("air-state")
    await kv.put("air-rebooking.broken", b"{}")
    status, out, err = await sagas.run("list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["stuck", "complete"]
    assert err.startswith("the saga under air-rebooking.broken can't be read: ")
    status, _, err = await sagas.run("show", "broken")
    assert status == 1
    assert "the saga under air-rebooking.broken can't be read: " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["list", "--state", "lost"],
            "--state is 'lost'; give running, compensating, stuck, completed, compensated or abandoned",
        ),
        (["list", "--older-than", "x"], "--older-than is 'x'; give a number and one of s, m, h, d, w"),
        (["resume"], "say which: either IDs, or --all for all that are stuck"),
        (["resume", "stuck", "--all"], "say which: either IDs, or --all for all that are stuck"),
        (["abandon", "stuck"], "there is nobody to ask whether to abandon them; give --yes"),
    ],
)
async def test_what_it_can_not_do_is_usage(
    sagas: Output, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    status, out, err = await sagas.run(*arguments)
    assert (status, out) == (2, "")
    assert message in err


async def test_show_has_all_of_it(sagas: Output) -> None:
    status, out, _ = await sagas.run("show", "stuck", "--json")
    shown = json.loads(out)
    assert status == 0
    assert shown["data"] == {"seat": "12A", "receipt": "R1"}
    assert (shown["state"], shown["step"], shown["direction"]) == ("stuck", "charge", "undo")
    assert shown["to_undo"] == ["charge", "reserve"]
    assert (shown["error"], shown["problem"]) == (
        "notify: not today",
        "charge can't be undone: not today",
    )
    status, out, _ = await sagas.run("show", "stuck")
    assert status == 0
    assert out.splitlines()[0] == "saga stuck, rebooking of air"
    assert "  to undo  charge, reserve" in out.splitlines()
    status, _, err = await sagas.run("show", "none")
    assert status == 1
    assert err == "there is no saga 'none'; 'understudy sagas list' shows which there are"
    status, _, err = await sagas.run("show", "stuck", "--app", "nope", "--saga", "rebooking")
    assert status == 1
    assert err.startswith("there is no saga 'stuck' with --app nope --saga rebooking; ")


async def test_resume_has_it_tried_again(sagas: Output, desk: Desk) -> None:
    status, _, err = await sagas.run("resume", "--all")
    assert (status, err) == (0, "1 saga told to resume")
    await desk.reaches("stuck", Phase.COMPENSATED)


async def test_who_is_asked_is_asked_about_what_is_there(
    sagas: Output, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What isn't is said before; without any there is no question."""
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    missing = "there is no saga 'none'"
    assert await sagas.run("abandon", "none") == (1, "", f"{missing}\n0 sagas told to abandon")
    assert await sagas.run("abandon", "none", "stuck") == (
        1,
        "",
        f"{missing}\nAbandon 1 saga? What it has done is not undone. [y/N] nothing abandoned",
    )
    assert sys.stdin.read() == ""
    status, out, _ = await sagas.run("show", "stuck", "--json")
    assert (status, json.loads(out)["state"]) == (0, "stuck")
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    assert (await sagas.run("abandon", "--all"))[0] == 0
    await desk.reaches("stuck", Phase.ABANDONED)


async def test_what_is_told_while_the_app_is_down_is_done_when_it_is_up(sagas: Output, desk: Desk) -> None:
    await desk.saga.stop()
    status, _, err = await sagas.run("abandon", "stuck", "complete", "none", "--yes", "--reason", "by hand")
    assert status == 1
    assert err.splitlines() == [
        "saga 'complete' has ended: completed",
        "there is no saga 'none'",
        "1 saga told to abandon",
    ]
    await desk.saga.start()
    record = await desk.reaches("stuck", Phase.ABANDONED)
    assert record.position.problem == "by hand"
