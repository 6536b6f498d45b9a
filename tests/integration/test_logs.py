"""The log of a whole run: every line of every process, as it is written to stderr."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from support import log_app
from support.launched import Launched
from support.log_check import check_log
from support.nats import NatsServer
from support.tree import wait_until
from understudy.actors import codec
from understudy.actors.event import Event, subject_of
from understudy.runtime.jetstream.publisher import Publisher

PASSWORD = "hunter2"
TOKEN = "swordfish"
SECONDS = 60.0
FLOOD = 1000
REPEATS = 5
OF_A_DELIVERY = ("trace_id", "span_id", "stream", "sequence", "subject", "attempt")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


def launch(server: NatsServer, directory: Path) -> Launched:
    """The app with a password in its broker's URL."""
    servers = server.url.replace("//", f"//clerk:{PASSWORD}@")
    environment = {"UNDERSTUDY_LOG__REPEAT_WINDOW_SECONDS": "1"}
    return Launched(directory, "support.log_app:app", servers=servers, environment=environment)


@pytest.fixture(scope="module")
def run(server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One run for many tests; what goes wrong in one of them is mended when the next comes."""
    with launch(server, tmp_path_factory.mktemp("run")) as run:
        yield run.wait_until_ready()


def tell(run: Launched, server: NatsServer, deed: str, *, expected: str) -> list[dict[str, Any]]:
    """Have the teller do something; return what is logged from then on, once the expected entry is there."""
    before = len(run.log())
    publish(server, log_app.Told(deed=deed))
    wait_until(lambda: expected in [entry["event"] for entry in run.log()[before:]], SECONDS, expected)
    return run.log()[before:]


def publish(server: NatsServer, *events: Event) -> None:
    headers = {"Content-Type": codec.MSGPACK, "Authorization": f"Bearer {TOKEN}", "X-Shop": "north"}

    async def send() -> None:
        async with Publisher.connect(server.url) as publisher:
            for event in events:
                await publisher.publish_raw(subject_of(event), codec.encode(event), headers)

    asyncio.run(send())


async def last_sequence(server: NatsServer) -> int:
    client = await nats.connect(server.url)
    try:
        return (await client.jetstream().stream_info("LOGS")).state.last_seq
    finally:
        await client.close()


def written_and_counted(entries: list[dict[str, Any]]) -> tuple[int, list[int]]:
    """Return how many entries of the flood were written, and how many each summary says were not."""
    summaries = [entry for entry in entries if entry.get("suppressed") == "no answer"]
    return sum(entry["event"] == "no answer" for entry in entries), [entry["count"] for entry in summaries]


def flood(run: Launched, server: NatsServer) -> list[dict[str, Any]]:
    """Have the teller say the same over and over; return what is logged, once all of it is accounted for.

    A process that stands still in the middle of it says it in two windows.
    """
    before = len(run.log())
    publish(server, log_app.Told(deed="flood"))

    def is_all_there() -> bool:
        written, counts = written_and_counted(run.log()[before:])
        return written + sum(counts) == FLOOD

    wait_until(is_all_there, SECONDS, "written or counted")
    return run.log()[before:]


def one(entries: list[dict[str, Any]], event: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["event"] == event)


def test_every_process_names_app_and_node_and_each_what_it_is(run: Launched) -> None:
    """Launcher, supervisor and cell."""
    node = f"{os.uname().nodename}:{run.process.pid}"
    starting, up, opening = run.log("starting")[0], run.log("cell up")[0], run.log("opening the shop")[0]
    for entry in (starting, up, opening):
        assert (entry["app"], entry["node"]) == ("logs", node)
    assert {"supervisor", "actor", "cell"}.isdisjoint(starting)
    assert (up["supervisor"], up["actor"], up["cell"]) == ("root", "teller", "teller/0")
    assert (opening["actor"], opening["cell"]) == ("teller", "teller/0")
    assert {"supervisor", "sequence", "trace_id"}.isdisjoint(opening)
    assert [starting["pid"], up["child_pid"]] == [run.process.pid, opening["pid"]]


def test_what_a_handler_logs_names_its_delivery_whichever_way(run: Launched, server: NatsServer) -> None:
    """By the context's logger, structlog and the standard library; secrets in headers are hidden."""
    entries = tell(run, server, "log", expected="headers")
    found = [one(entries, event) for event in ("by the context", "by structlog", "by the standard library")]
    for entry in found:
        assert (entry["actor"], entry["cell"]) == ("teller", "teller/0")
        assert (entry["stream"], entry["subject"], entry["attempt"]) == ("LOGS", "logs.told", 1)
        assert {name: entry[name] for name in OF_A_DELIVERY} == {
            name: found[0][name] for name in OF_A_DELIVERY
        }
    headers = one(entries, "headers")["headers"]
    assert (headers["Authorization"], headers["X-Shop"]) == ("***", "north")


def test_handlers_of_every_kind_name_what_they_handle(run: Launched, server: NatsServer) -> None:
    """In a thread, with state, and of several events at once."""
    before = len(run.log())
    publish(server, log_app.InThread(), log_app.Counted(), *(log_app.Gathered() for _ in range(3)))
    events = ("in a thread", "counted", "in a batch")
    wait_until(lambda: {*events} <= {entry["event"] for entry in run.log()[before:]}, SECONDS, "all")
    in_thread, counted, in_batch = (one(run.log()[before:], event) for event in events)
    assert in_thread["thread"].startswith("handler")
    for entry, subject in ((in_thread, "logs.in_thread"), (counted, "logs.counted")):
        assert [entry[name] for name in ("stream", "subject", "attempt")] == ["LOGS", subject, 1]
        assert {*OF_A_DELIVERY} <= entry.keys()
    first = counted["sequence"] + 1
    numbers = [in_batch[name] for name in ("deliveries", "first_sequence", "last_sequence")]
    assert numbers == [3, first, first + 2]
    assert {"trace_id", "sequence"}.isdisjoint(in_batch)


def test_a_failure_shows_its_traceback_and_no_password(run: Launched, server: NatsServer) -> None:
    """Which stands in the exception's text and in the source line that raised it; the last failure's too."""
    entries = tell(run, server, "fail", expected="dead letter")
    failed, letter = one(entries, "handler failed"), one(entries, "dead letter")
    for entry in (failed, letter):
        assert entry["error"] == "ConnectionError: cannot reach https://***@shop.example/"
        assert entry["exception"].endswith(entry["error"])
    assert [failed["attempt"], letter["attempt"]] == [1, 2]
    names = [name for name in OF_A_DELIVERY if name not in ("span_id", "attempt")]
    assert [failed[name] for name in names] == [letter[name] for name in names]
    assert (letter["reason"], "attempts" in letter) == ("exhausted", False)


def test_a_flood_is_written_a_few_times_and_then_counted(run: Launched, server: NatsServer) -> None:
    """The count comes by itself, some seconds after the window's end."""
    entries = flood(run, server)
    summary = one(entries, "repeats were not logged")
    written, counts = written_and_counted(entries)
    # Each window has a few, and the last one may have had no more than these.
    assert REPEATS * len(counts) <= written <= REPEATS * (len(counts) + 1)
    assert (summary["suppressed"], summary["cell"]) == ("no answer", "teller/0")
    assert "sequence" not in summary


def test_what_python_says_itself_is_an_entry(run: Launched, server: NatsServer) -> None:
    """A warning, and what a thread has raised."""
    entries = tell(run, server, "warn", expected="thread failed")
    assert one(entries, "this is odd")["category"] == "UserWarning"
    assert one(entries, "thread failed")["exception"].startswith("Traceback")


def test_what_cannot_be_logged_fails_no_delivery(run: Launched, server: NatsServer) -> None:
    """The event is handled, in its first attempt."""
    entries = tell(run, server, "cannot be shown", expected="by the end")
    assert {entry["attempt"] for entry in entries if "attempt" in entry} == {1}
    assert not [entry for entry in entries if entry["event"] == "handler failed"]


def test_a_crash_is_an_entry_with_where_each_thread_was(run: Launched, server: NatsServer) -> None:
    """Of a cell its supervisor writes it, beside the reason."""
    entries = tell(run, server, "crash", expected="took over")
    entry, took_over = one(entries, "cell crashed"), one(entries, "took over")
    assert (entry["level"], entry["reason"]) == ("error", "killed by SIGSEGV")
    assert (entry["supervisor"], entry["cell"]) == ("root", "teller/0")
    assert (took_over["cell"], took_over["reason"]) == ("teller/0", "killed by SIGSEGV")
    # Nothing else was at hand, and it was the stream's last.
    stored = asyncio.run(last_sequence(server))
    assert took_over["suspects"] == [stored]
    assert entry["crash_dump"].startswith("Fatal Python error: Segmentation fault")
    assert "log_app.py" in entry["crash_dump"]


def test_every_line_is_an_entry_and_none_shows_a_secret(nats_server: NatsServer, tmp_path: Path) -> None:
    """From the start over whatever goes wrong to the end."""
    expected = {
        "log": "headers",
        "fail": "dead letter",
        "warn": "thread failed",
        "crash": "dead letter",
    }
    with launch(nats_server, tmp_path) as run:
        run.wait_until_ready()
        flood(run, nats_server)
        for deed, event in expected.items():
            tell(run, nats_server, deed, expected=event)
        assert len(run.log("cell crashed")) == 3
        assert run.stop() == 0
        written, _ = written_and_counted(run.log())
    with run.log_path.open("rb") as log:
        account = check_log(log, [PASSWORD, TOKEN])
    assert account.problems == []
    # The launcher, the supervisor, three cells, and the first that came for the one that crashed.
    assert account.processes >= 6
    assert account.suppressed == FLOOD - written
    assert not list(run.runs.rglob("*.crash"))


@pytest.mark.parametrize("name", ["admin", "logger", "root"])
def test_a_crash_of_the_control_plane_is_an_entry_of_the_launcher(
    nats_server: NatsServer, tmp_path: Path, name: str
) -> None:
    """And all else that is then written is an entry too."""
    with Launched(tmp_path, "support.log_app:app", servers=nats_server.url) as run:
        run.wait_until_ready()
        pid = dict(zip(("admin", "logger", "root"), run.control_plane(), strict=True))[name]
        os.kill(pid, signal.SIGSEGV)
        run.wait(SECONDS)
        (crashed,) = run.log("process crashed")
        assert crashed["child_pid"] == pid
        assert crashed["crash_dump"].startswith("Fatal Python error: Segmentation fault")
        with run.log_path.open("rb") as log:
            assert check_log(log).problems == []
