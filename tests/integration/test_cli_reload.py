"""`understudy run --reload`: what a save leads to, and how it all ends."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.lines import read_lines
from support.processes import GONE_SECONDS
from support.running import until as wait_until
from support.terminal import APP, Terminal, entries_until, until
from understudy.config.load import load_settings
from understudy.runtime.cli import reload
from understudy.runtime.cli.entry import main
from understudy.runtime.cli.reload import Reloader
from understudy.runtime.system import SAME_SIGNAL_SECONDS

COMMAND = ("run", "flights:app", "--reload", "--http-port", "0")
NOT_RELOADED = "not reloaded; mend this and save again"

# Writes down what it handles.
NOTING = """
import asyncio, os
from understudy import Actor, App, Event, Stream, handles

class Departed(Event, subject="flights.departed"):
    carrier: str

class Monitor(Actor, concurrency=4):
    @handles
    async def departed(self, event: Departed) -> None:
        await asyncio.sleep(SECONDS)
        with open("handled", "a") as file:
            file.write(f"{event.carrier} VERSION\\n")

app = App("cli-run", streams=[Stream("FLIGHTS", subjects=["flights.>"])], children=[Monitor])
"""

# Stops when it may.
RELUCTANT = APP.replace(
    "    @handles",
    """    async def on_stop(self):
        import asyncio, pathlib
        while not pathlib.Path("may-stop").exists():
            await asyncio.sleep(0.01)

    @handles""",
)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


def save(terminal: Terminal, text: str, name: str = "flights.py") -> None:
    """Save as many editors do: a new file that takes the old one's name."""
    path = terminal.directory / name
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(".new")
    new.write_text(text)
    new.rename(path)


def start(terminal: Terminal, *options: str) -> subprocess.Popen[str]:
    """Start a run that is up."""
    process = terminal.start(*COMMAND, *options, own_session=True)
    until(process, "ready")
    return process


def launcher_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the launcher below a reloading run."""
    (launcher,) = [
        child for child in psutil.Process(process.pid).children() if "flights:app" in child.cmdline()
    ]
    return launcher


def handled(process: subprocess.Popen[str], terminal: Terminal, carrier: str) -> str:
    """Publish an event, and return what its handler prints."""
    assert (
        terminal.type("publish", "flights.departed", "--json", f'{{"carrier": "{carrier}"}}').returncode == 0
    )
    assert process.stdout is not None
    return process.stdout.readline().strip()


def assert_nobody_left(terminal: Terminal) -> None:
    assert psutil.wait_procs(terminal.processes(), timeout=GONE_SECONDS)[1] == []


def test_a_save_restarts_the_tree_with_the_new_code_on_the_same_server(terminal: Terminal) -> None:
    """The log says which file it was; at the end nothing is left."""
    process = start(terminal, "--embedded")
    url = (terminal.directory / ".understudy" / "nats.url").read_text()
    assert handled(process, terminal, "UA") == "handled UA"
    save(terminal, APP.replace('"handled"', '"now handled"'))
    entries = entries_until(process, "ready")
    assert [entry["files"] for entry in entries if entry["event"] == "changed"] == [["flights.py"]]
    assert [entry["event"] for entry in entries if entry["event"] in {"draining", "stopped", "starting"}] == [
        "draining",
        "stopped",
        "starting",
    ]
    assert handled(process, terminal, "AA") == "now handled AA"
    assert (terminal.directory / ".understudy" / "nats.url").read_text() == url
    process.terminate()
    assert process.wait(60) == 0
    assert_nobody_left(terminal)
    assert not (terminal.directory / ".understudy" / "nats.url").exists()


def test_what_cannot_be_started_keeps_the_old_run_and_shows_why(terminal: Terminal) -> None:
    """A syntax error, an exception, no App, a wrong declaration, a crash; then a good save goes on."""
    process = start(terminal, "--embedded")
    launcher = launcher_of(process)
    for text, problem in (
        ("def (", "SyntaxError: invalid syntax"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (APP.replace("app =", "ap ="), "has no 'app'; did you mean 'ap'?"),
        (APP.replace("Actor)", "Actor, capacity=1)"), "capacity"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    ):
        save(terminal, text)
        assert problem in refused(process), text
    assert launcher.is_running()
    assert handled(process, terminal, "UA") == "handled UA"
    save(terminal, APP)
    until(process, "ready")
    assert not launcher.is_running()
    process.terminate()
    assert process.wait(60) == 0
    assert_nobody_left(terminal)


def test_settings_are_watched_and_checked_too(terminal: Terminal) -> None:
    """Wrong ones keep the old run; right ones hold from then on."""
    process = start(terminal, "--embedded")
    save(terminal, "[http]\nprot = 1\n", "understudy.toml")
    assert "did you mean http.port?" in refused(process)
    save(terminal, "shutdown_timeout_seconds = 7\n", "understudy.toml")
    until(process, "ready")
    process.terminate()
    assert until(process, "draining")["timeout_seconds"] == 7
    assert process.wait(60) == 0


def refused(process: subprocess.Popen[str]) -> str:
    """Return why a save wasn't taken over."""
    entries = entries_until(process, NOT_RELOADED)
    assert [entry["event"] for entry in entries] == ["changed", NOT_RELOADED]
    return str(entries[-1]["error"])


def test_saves_that_come_together_are_one_reload(terminal: Terminal) -> None:
    """Also of a package that is new; what is no source changes nothing."""
    process = start(terminal, "--embedded")
    process.send_signal(signal.SIGSTOP)
    for name in (
        "notes.txt",
        ".hidden/a.py",
        "__pycache__/b.py",
        "environment/pyvenv.cfg",
        "environment/c.py",
    ):
        save(terminal, "", name)
    save(terminal, "x = 1", "extra/__init__.py")
    save(terminal, "y = 1", "extra/more.py")
    save(terminal, APP + "import extra.more\n")
    process.send_signal(signal.SIGCONT)
    entries = entries_until(process, "ready")
    assert [entry["files"] for entry in entries if entry["event"] == "changed"] == [
        ["extra/__init__.py", "extra/more.py", "flights.py"]
    ]
    # It is watched from now on.
    save(terminal, "y = 2", "extra/more.py")
    assert until(process, "changed")["files"] == ["extra/more.py"]
    until(process, "ready")
    process.terminate()
    assert process.wait(60) == 0


def test_what_is_held_at_a_reload_is_handled_once(terminal: Terminal) -> None:
    """By the old code or by the new one; the new one works on what the old one gave back."""
    # So slow that no reload takes as long as all of them.
    save(terminal, NOTING.replace("VERSION", "1").replace("SECONDS", "0.05"))
    process = start(terminal, "--embedded")
    carriers = [f"c{number}" for number in range(4000)]
    bodies = (f'{{"carrier": "{carrier}"}}\n' for carrier in carriers)
    (terminal.directory / "events").write_text("".join(bodies))
    published = terminal.type("publish", "flights.departed", "--file", "events")
    assert published.returncode == 0, published.stderr
    path = terminal.directory / "handled"
    wait_until(lambda: read_lines(path))
    save(terminal, NOTING.replace("VERSION", "2").replace("SECONDS", "0"))
    entries = entries_until(process, "ready")
    assert sum(entry.get("given_back", 0) for entry in entries) > 0
    wait_until(lambda: len(read_lines(path)) >= len(carriers))
    process.terminate()
    assert process.wait(60) == 0
    runs = [line.split() for line in read_lines(path)]
    assert Counter(carrier for carrier, _ in runs) == Counter(carriers)
    assert {version for _, version in runs} == {"1", "2"}


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_drains_and_a_second_one_kills(terminal: Terminal, signals: int) -> None:
    """The terminal sends it to the whole group; the launcher has each only once."""
    save(terminal, RELUCTANT)
    process = start(terminal, "--embedded")
    os.killpg(process.pid, signal.SIGINT)
    until(process, "draining")
    if signals == 1:
        (terminal.directory / "may-stop").touch()
    else:
        # Before, it counts as the first.
        time.sleep(SAME_SIGNAL_SECONDS)
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == (0 if signals == 1 else 130)
    assert_nobody_left(terminal)


def test_the_first_signal_during_a_reload_ends_it_without_a_kill(terminal: Terminal) -> None:
    """The launcher drains already, and would take another for its second."""
    save(terminal, RELUCTANT)
    process = start(terminal, "--embedded")
    save(terminal, APP)
    until(process, "draining")
    process.terminate()
    # A signal that came through would have been heard by the time the actor may stop.
    wait_until(lambda: "SIGTERM" not in signals_pending(process.pid))
    (terminal.directory / "may-stop").touch()
    assert until(process, "stopped")["exit_status"] == 0
    assert process.wait(60) == 0
    assert_nobody_left(terminal)


def signals_pending(pid: int) -> set[str]:
    """Return the signals that a process hasn't taken yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    (pending,) = [line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:")]
    return {one.name for one in signal.Signals if int(pending, 16) >> (one - 1) & 1}


def test_nothing_survives_a_sigkill(terminal: Terminal) -> None:
    """The launcher and the server are bound to the life of what watches."""
    process = start(terminal, "--embedded")
    process.kill()
    process.wait()
    assert_nobody_left(terminal)


def test_a_run_that_ends_by_itself_is_started_again_by_the_next_save(terminal: Terminal) -> None:
    """With what was held taken over; until then the exit status would be its own."""
    process = start(terminal, "--embedded")
    launcher_of(process).kill()
    assert until(process, "the run was ended")["reason"] == "killed by SIGKILL"
    ended = until(process, "the run has ended; the next save starts it again")
    assert (ended["level"], ended["exit_status"]) == ("error", 137)
    save(terminal, APP + "\n")
    until(process, "ready")
    launcher_of(process).terminate()
    ended = until(process, "the run has ended; the next save starts it again")
    assert (ended["level"], ended["exit_status"]) == ("info", 0)
    save(terminal, APP)
    until(process, "ready")
    assert handled(process, terminal, "UA") == "handled UA"
    launcher_of(process).kill()
    until(process, "the run has ended; the next save starts it again")
    process.terminate()
    assert process.wait(60) == 137
    assert_nobody_left(terminal)


def test_files_are_looked_at_though_no_event_tells_of_them(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a save was missed for good."""
    monkeypatch.chdir(terminal.directory)
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("watchfiles.watch", lambda *_, **__: itertools.repeat(set()))
    wake_ups = Reloader("flights:app", None, {}, load_settings())._wake_ups()
    assert list(itertools.islice(wake_ups, 5)) == [True] * 5


def test_a_first_start_that_is_refused_ends_it(terminal: Terminal) -> None:
    """No save would free the port, or bring a broker."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        used = terminal.type("run", "flights:app", "--embedded", "--reload", "--http-port", port)
    assert used.returncode == 2
    assert port in used.stderr
    silent = terminal.type(*COMMAND, "--servers", "nats://127.0.0.1:9")
    assert silent.returncode == 3
    assert "no broker answers at nats://127.0.0.1:9" in silent.stderr
    save(terminal, "def (")
    broken = terminal.type(*COMMAND, "--embedded")
    assert broken.returncode == 2
    assert "SyntaxError" in broken.stderr
    assert not (terminal.directory / ".understudy" / "nats.url").exists()
    assert_nobody_left(terminal)


def test_without_the_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, before anything is started."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "watchfiles" else find_spec(name)
    )
    assert main(["run", "flights:app", "--reload"]) == 2
    assert capsys.readouterr().err == (
        "understudy: --reload needs the package watchfiles; install it: pip install 'understudy[reload]'\n"
    )
