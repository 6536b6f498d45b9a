"""The command line: what each ending says, on which stream, with which exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from understudy.config.load import load_settings
from understudy.runtime.cli import entry
from understudy.runtime.cli.entry import main
from understudy.runtime.system import CLEAN, DRAIN_TIMED_OUT, ESCALATED, KILLED

COMMANDS = ("run", "check", "publish", "ask", "dead-letters", "tree", "drain", "demo")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests, and a port where nothing answers."""
    for name in os.environ:
        if name.startswith(("UNDERSTUDY_", "NATS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """With or without being asked."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """One that can be typed."""
    assert main([command, "--help"]) == 0
    assert f"Example: understudy {command}" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["pause", "resume", "restart"])
def test_help_of_actor_teaches_with_examples_too(capsys: pytest.CaptureFixture[str], action: str) -> None:
    """Each action is a command of its own, which `actor --help` names in one line."""
    assert main(["actor", "--help"]) == 0
    assert re.search(rf"^  {action} +[A-Z][^\n]*[^.]\.$", capsys.readouterr().out, re.MULTILINE)
    assert main(["actor", action, "--help"]) == 0
    assert f"Example: understudy actor {action} " in capsys.readouterr().out


def test_the_top_level_help_says_where_settings_come_from_and_what_exit_codes_mean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One code a line, each command in one line, nothing cut; on the usual width."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "..." not in text.replace("[ARGS]...", "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z][^\n]*\.$", text, re.MULTILINE)
    assert "UNDERSTUDY_* variables" in text
    assert "understudy.toml" in text
    codes = re.findall(r"^ +(\d+)  \S", text, re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "70", "75", "130", "141"]
    assert {
        CLEAN, entry.CLEAN, entry.DIFFERENT, entry.USAGE, entry.BROKER,
        entry.INTERNAL, ESCALATED, DRAIN_TIMED_OUT, entry.INTERRUPTED, KILLED, entry.PIPE_CLOSED,
    } == set(map(int, codes))  # fmt: skip


@pytest.mark.parametrize("command", ["run", "check", "publish", "ask"])
def test_help_names_what_goes_into_each_place(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """In capitals, rather than by the type that Python has for it."""
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    argument = "SUBJECT" if command in ("publish", "ask") else "TARGET"
    assert f"Usage: understudy {command} [OPTIONS] {argument}\n" in text
    assert f"Arguments:\n  {argument}  Where " in text
    assert "--servers URL " in text
    assert "--config FILE " in text
    assert re.search(r"<\w|\{\w+\}", text) is None


def test_help_of_run_tells_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """They stand in a file of their own, so the help could tell others."""
    assert main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    settings = load_settings()
    assert f"--http-port PORT Port for probes, by default {settings.http.port};" in text
    assert re.search(rf"--log-level LEVEL [^.]*\b{settings.log.level} \(the default\)", text)
    assert re.search(rf"--log-format FORMAT [^.]*\b{settings.log.format} \(the default:", text)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The installed one, whatever else is given."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"understudy {metadata.version('understudy')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_nothing_that_only_a_command_needs(arguments: list[str]) -> None:
    """So that it answers at once."""
    heavy = {
        "nats",
        "thespian",
        "uvicorn",
        "starlette",
        "pybreaker",
        "pydantic_settings",
        "structlog",
        "rich",
    }
    code = (
        f"import sys; from understudy.runtime.cli import main; main({arguments});"
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"


def test_garbage_is_looked_for_rarely_until_a_run_has_loaded_what_it_needs() -> None:
    """And never in what it has loaded, nor by what is forked from it."""
    code = """
import gc
from understudy.runtime.system import System
usual = gc.get_threshold()

def begin(self, **_):
    print(gc.isenabled(), gc.get_threshold() == usual, gc.get_freeze_count() > 10_000)

System.__init__, System.run = begin, lambda _: 0
from understudy.runtime.cli import main
main(["--version"])
print(gc.isenabled(), gc.get_threshold()[0] > usual[0])
main(["run", "understudy.examples.flights.app:app"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["True True", "True True True"], result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'TARGET'.\n  understudy run --help says more"),
        (["rnu"], "No such command 'rnu'."),
        (["run", "--embeded", "a:b"], "No such option: --embeded"),
        (
            ["run", "a:b", "--http-port", "abc"],
            "Invalid value for '--http-port': 'abc' should be an integer\n  understudy run --help says more",
        ),
        (["drain", "--timeout", "abc"], "Invalid value for '--timeout': 'abc' should be a number"),
        (
            ["dead-letters", "list", "--limit", "0"],
            "Invalid value for '--limit': '0' should be greater than or equal to 1",
        ),
        (["dead-letters", "show", "x"], "Invalid value for 'ID': 'x' should be an integer"),
        (["dead-letters", "discard", "1", "x"], "Invalid value for 'ID': 'x' should be an integer"),
        (
            ["publish", "a", "--json"],
            "Option '--json' requires an argument.\n  understudy publish --help says more",
        ),
        (["publish", "a"], "give either --json TEXT or --file FILE (- for stdin)"),
        (
            ["publish", "a", "--json", "{}", "--file", "x"],
            "give either --json TEXT or --file FILE (- for stdin)",
        ),
        (["publish", "a.>", "--json", "{}"], "'a.>' is no subject to publish to: tokens joined by dots"),
        (["publish", "a..b", "--json", "{}"], "'a..b' is no subject to publish to: tokens joined by dots"),
        (["publish", "a", "--json", "{"], "--json is not JSON: Input data was truncated"),
        (["publish", "a", "--file", "none"], "--file none: No such file or directory"),
        (["ask", "a"], "give either --json TEXT or --file FILE (- for stdin)"),
        (["ask", "a.*", "--json", "{}"], "'a.*' is no subject to publish to: tokens joined by dots"),
        (["ask", "a", "--json", "{", "--timeout", "1"], "--json is not JSON: Input data was truncated"),
        (["ask", "a", "--json", "{}", "--timeout", "0"], "--timeout is 0; give a number of seconds above 0"),
        (["ask", "a", "--file", "none"], "--file none: No such file or directory"),
        (
            ["run", "a:b", "--embedded", "--servers", "x"],
            "--embedded starts a server of its own; leave out --servers",
        ),
        (
            ["check", "a:b", "--servers", "http://x"],
            "nats.servers = http://x: each should be like nats://host:4222",
        ),
    ],
)
def test_wrong_usage_is_status_2_and_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """On stderr, without a traceback."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"understudy: {message}")
    assert "Traceback" not in captured.err


def test_a_guessed_address_where_nothing_answers_is_status_3_with_both_remedies(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name the servers, or start one."""
    from understudy.config import layers, load

    default = layers.default_layer()
    monkeypatch.setattr(
        load,
        "default_layer",
        lambda: layers.Layer(
            values={**default.values, ("nats", "servers"): ["nats://127.0.0.1:9"]}, origin=default.origin
        ),
    )
    assert main(["publish", "a", "--json", "{}"]) == 3
    text = capsys.readouterr().err
    assert text.startswith("understudy: no broker answers at nats://127.0.0.1:9")
    assert "--servers nats://host:4222" in text
    assert "--embedded" in text


def test_a_named_address_where_nothing_answers_is_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the remedies of one who named none."""
    assert main(["publish", "a", "--json", "{}", "--servers", "nats://127.0.0.1:9"]) == 3
    text = capsys.readouterr().err
    assert text == "understudy: no broker answers at nats://127.0.0.1:9: Connection refused\n"


def test_elsewhere_than_on_linux_it_says_how_to_run_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of ours that only Linux has is touched."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["run", "a:b"]) == 2
    assert capsys.readouterr().err == f"understudy: {entry.NOT_LINUX}\n"


def test_an_error_of_our_own_is_status_70_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own status, 1, would say that a check found a difference."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("understudy.runtime.cli.publish.settings_from", fail)
    assert main(["publish", "a", "--json", "{}"]) == 70
    assert capsys.readouterr().err.endswith("RuntimeError: boom\n")


def test_an_interrupt_is_status_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no traceback."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("understudy.runtime.cli.publish.settings_from", interrupt)
    assert main(["publish", "a", "--json", "{}"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_while_the_commands_are_loaded_shows_no_traceback() -> None:
    """The signal ends it, which a shell tells as 130 too; Python's own status, 1, means a difference here."""
    code = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "understudy.runtime.cli.publish":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from understudy.runtime.cli.program import main
main(["--help"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_python_minus_m_is_the_same_command() -> None:
    """Where the script isn't on PATH."""
    result = subprocess.run(
        [sys.executable, "-m", "understudy.runtime", "publish", "a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("understudy: give either")


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
@pytest.mark.parametrize("command", [["drain"], ["actor", "pause", "billing"]])
def test_a_timeout_is_a_time(command: list[str], seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is asked of a node: a drain can't be taken back."""
    assert main([*command, "--timeout", seconds]) == 2
    assert f"--timeout is {seconds}; give a number of seconds above 0" in capsys.readouterr().err
