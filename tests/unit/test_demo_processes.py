"""A process of the demonstration that ends by itself is named, with how it ended."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from understudy.runtime.cli.demo_processes import LOG, DemoFailed, Stage

WAITS = "input()"
ENDS = "raise SystemExit(70)"
IS_KILLED = "import os; os.kill(os.getpid(), 9)"


@contextmanager
def stage(directory: Path, *, service: str = WAITS, runtime: str = WAITS) -> Iterator[Stage]:
    """A stage whose processes run some Python, and have ended where that ends."""
    (directory / LOG).touch()
    with ExitStack() as stack:
        processes = []
        for code in (service, runtime):
            process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
            stack.enter_context(process)
            if code != WAITS:
                process.wait()
            processes.append(process)
        yield Stage(
            directory,
            nats_url="nats://127.0.0.1:1",
            service_url="http://127.0.0.1:1",
            service=processes[0],
            runtime=processes[1],
        )


def test_what_runs_is_left_alone(tmp_path: Path) -> None:
    with stage(tmp_path) as here:
        here.check_runtime()
        here.check_service()
        assert (here.runtime.poll(), here.service.poll()) == (None, None)


@pytest.mark.parametrize(("code", "words"), [(ENDS, "ended with 70"), (IS_KILLED, "was killed by SIGKILL")])
def test_how_the_service_ended_is_said(tmp_path: Path, code: str, words: str) -> None:
    with stage(tmp_path, service=code) as here, pytest.raises(DemoFailed) as failure:
        here.check_service()
    assert str(failure.value) == f"the service {words}, though nobody stopped it"


def test_a_service_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with stage(tmp_path) as here, pytest.raises(DemoFailed, match="doesn't answer"):
        here.tell_service("/down", {"seconds": 1})


def test_of_a_runtime_that_ended_the_errors_are_shown_and_what_is_no_entry(tmp_path: Path) -> None:
    log = [
        json.dumps({"level": "info", "event": "ready"}),
        json.dumps({"level": "warning", "event": "handler failed", "exception": "Traceback"}),
        json.dumps({"level": "error", "event": "control plane died"}),
        "Segmentation fault",
        json.dumps({"level": "info", "event": "stopped"}),
    ]
    with stage(tmp_path, runtime=ENDS) as here:
        here.log.write_text("\n".join(log))
        # It answers no more: whoever looks at its cells learns why.
        here.http_url = "http://127.0.0.1:1"
        with pytest.raises(DemoFailed) as failure:
            here.cells()
    assert str(failure.value).splitlines() == [
        "the runtime ended with 70, though nobody stopped it; its errors:",
        '{"level": "error", "event": "control plane died"}',
        "Segmentation fault",
    ]


def test_of_a_runtime_that_was_killed_there_may_be_no_errors(tmp_path: Path) -> None:
    with stage(tmp_path, runtime=IS_KILLED) as here, pytest.raises(DemoFailed) as failure:
        here.check_runtime()
    assert str(failure.value).endswith("was killed by SIGKILL, though nobody stopped it; its errors:\n(none)")
