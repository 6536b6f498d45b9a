"""`understudy run` as a user starts it: up, fed, down; and every way it does not come up."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.processes import GONE_SECONDS
from support.terminal import Terminal, entries_until, until
from understudy.runtime.broker.embedded import EmbeddedServer


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


def test_an_embedded_run_is_fed_from_a_second_terminal_and_stops_clean(terminal: Terminal) -> None:
    """Neither command needs to be told where the server is; nothing is left."""
    launcher = terminal.start("run", "flights:app", "--embedded", "--http-port", "0")
    assert until(launcher, "ready")["http"].startswith("http://127.0.0.1:")
    published = terminal.type("publish", "flights.departed", "--json", '{"carrier": "UA"}')
    assert (published.returncode, published.stdout) == (0, "1 published\n")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "handled UA\n"
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert psutil.wait_procs(terminal.processes(), timeout=GONE_SECONDS)[1] == []
    assert not (terminal.directory / ".understudy" / "nats.url").exists()


def test_the_end_of_a_drained_node_s_own_server_is_nothing_to_warn_of(terminal: Terminal) -> None:
    """What `drain` says is its progress and the result."""
    launcher = terminal.start("run", "flights:app", "--embedded", "--http-port", "0")
    until(launcher, "ready")
    drained = terminal.type("drain")
    assert (drained.returncode, drained.stdout) == (
        0,
        f"cli-run on {socket.gethostname()}:{launcher.pid}: drained\n",
    )
    assert {line.split(": ", 1)[0] for line in drained.stderr.splitlines()} == {
        f"cli-run on {socket.gethostname()}:{launcher.pid}"
    }
    assert launcher.wait(60) == 0


@pytest.mark.parametrize("named", [None, "nats://me:hunter2@elsewhere:4222"])
def test_an_embedded_run_says_whose_server_it_uses(terminal: Terminal, named: str | None) -> None:
    """That it isn't its own, and not one that was named: either would surprise whoever isn't told."""
    if named is not None:
        terminal.environment["NATS_URL"] = named
    server = EmbeddedServer.start(terminal.directory / ".understudy")
    try:
        launcher = terminal.start("run", "flights:app", "--embedded", "--http-port", "0")
        told = [entry for entry in entries_until(launcher, "ready") if "server" in entry["event"]]
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 0
        assert server.is_alive()
    finally:
        server.stop()
    assert {entry["level"] for entry in told} == {"info"}
    unused = ("servers not used: --embedded goes before them", "nats://***@elsewhere:4222")
    joined = (
        "uses the nats-server that another run in this directory started; it ends with that run",
        server.url,
    )
    assert [(entry["event"], entry.get("servers") or entry["url"]) for entry in told] == (
        [joined] if named is None else [unused, joined]
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_app_is_imported_ends_the_run_clean(
    terminal: Terminal, number: signal.Signals
) -> None:
    """An operator may change his mind before anything is up; here as a script's background command."""
    (terminal.directory / "flights.py").write_text(
        "import time\nopen('importing', 'w').close()\ntime.sleep(60)\n"
    )
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launcher = terminal.start("run", "flights:app", "--embedded", "--http-port", "0")
    finally:
        signal.signal(signal.SIGINT, ignored)
    deadline = time.monotonic() + 60
    while not (terminal.directory / "importing").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    launcher.send_signal(number)
    assert launcher.communicate(timeout=60) == ("", "")
    assert launcher.returncode == 0
    assert psutil.wait_procs(terminal.processes(), timeout=GONE_SECONDS)[1] == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_as_good_as_none(terminal: Terminal, closed: str) -> None:
    """As some daemons start their children: a file opened next would be taken for stdout or stderr."""
    command = f"{sys.executable} -m understudy.runtime run flights:app --embedded --http-port 0"
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command} {closed}"], cwd=terminal.directory, env=terminal.environment, text=True
    )
    terminal.running.append(process)
    deadline = time.monotonic() + 60
    while not any((terminal.directory / "run").glob("*/*/*.cell")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 0


def refused(terminal: Terminal, status: int, *arguments: str) -> str:
    """Type a command that can't work; return what it says."""
    result = terminal.type(*arguments)
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    assert "Traceback" not in result.stderr
    assert psutil.wait_procs(terminal.processes(), timeout=GONE_SECONDS)[1] == []
    return result.stderr


def test_a_target_that_cannot_be_imported_is_status_2(terminal: Terminal) -> None:
    """Named, with where it was looked for; the embedded server isn't even started."""
    text = refused(terminal, 2, "run", "fligths:app", "--embedded")
    assert "fligths" in text
    assert str(terminal.directory) in text
    assert not (terminal.directory / ".understudy").exists()


def test_a_target_that_is_no_app_is_status_2(terminal: Terminal) -> None:
    """Before anything is started."""
    assert "flights:Monitor" in refused(terminal, 2, "run", "flights:Monitor", "--embedded")


def test_an_unknown_setting_is_status_2_and_the_nearest_is_named(terminal: Terminal) -> None:
    """With the file it stands in."""
    (terminal.directory / "understudy.toml").write_text("[http]\nprot = 1\n")
    assert refused(terminal, 2, "run", "flights:app") == (
        "understudy: http.prot is no setting; did you mean http.port? (understudy.toml: http.prot)\n"
    )


def test_a_port_in_use_is_status_2(terminal: Terminal) -> None:
    """Named; the embedded server that was started for it is stopped again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused(terminal, 2, "run", "flights:app", "--embedded", "--http-port", port)


def test_a_directory_that_cannot_be_written_is_status_2(terminal: Terminal) -> None:
    """Named, with the setting that names another."""
    (terminal.directory / ".understudy").touch()
    text = refused(terminal, 2, "run", "flights:app", "--embedded")
    assert f"{terminal.directory}/.understudy: the embedded nats-server can't write there" in text


def test_servers_that_do_not_answer_are_status_3(terminal: Terminal) -> None:
    """And no process is left of the tree that was begun."""
    text = refused(terminal, 3, "run", "flights:app", "--http-port", "0", "--servers", "nats://127.0.0.1:9")
    assert "no broker answers at nats://127.0.0.1:9" in text
