"""Log entries: what each names, whichever library wrote it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import warnings
from io import StringIO
from typing import Any

import pytest
import structlog

from understudy.runtime.telemetry.logs import configure_logging, resolve_format
from understudy.runtime.telemetry.trace import TraceContext, current_trace

CONTEXT = {"app": "flights", "actor": "delay-monitor", "cell": "delay-monitor/0"}


def entries(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_an_entry_names_time_level_event_app_actor_cell_and_pid_in_this_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a person looks for first stands first."""
    configure_logging(level="info", format="json", context=CONTEXT)
    structlog.get_logger().info("started", port=8400)
    (entry,) = entries(capsys)
    assert list(entry)[:6] == ["time", "level", "event", "app", "actor", "cell"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry == {"level": "info", "event": "started", **CONTEXT, "pid": os.getpid(), "port": 8400}


@pytest.mark.parametrize("name", ["somebody.elses", "nats", "uvicorn.access", "asyncio"])
def test_the_standard_library_goes_the_same_way(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Whatever handlers a library had put up are gone, and nothing is written twice."""
    logger = logging.getLogger(name)
    if name != "somebody.elses":
        logger.addHandler(logging.StreamHandler(StringIO()))
        logger.propagate = False
    configure_logging(level="info", format="json", context=CONTEXT)
    logger.warning("slow consumer on %s", "x", extra={"pending": 3})
    (entry,) = entries(capsys)
    assert (entry["level"], entry["event"]) == ("warning", "slow consumer on x")
    assert (entry["app"], entry["cell"]) == ("flights", "delay-monitor/0")
    assert entry["pending"] == 3


def test_what_is_below_the_level_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """For both libraries."""
    configure_logging(level="warning", format="json", context={})
    structlog.get_logger().info("no")
    logging.getLogger("x").info("no")
    structlog.get_logger().warning("yes")
    assert [entry["event"] for entry in entries(capsys)] == ["yes"]


def test_what_libraries_call_news_is_only_for_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """Their every start and stop would bury ours."""
    for level, expected in (("info", []), ("debug", ["started"])):
        configure_logging(level=level, format="json", context={})
        logging.getLogger("uvicorn.error").info("started", extra={"color_message": "started"})
        found = entries(capsys)
        assert [entry["event"] for entry in found] == expected
        assert all("color_message" not in entry for entry in found)


def test_trace_ids_are_there_while_a_delivery_is_handled_and_only_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are those of the context variable, for both libraries."""
    configure_logging(level="info", format="json", context={})
    trace = TraceContext("a" * 32, "b" * 16)
    token = current_trace.set(trace)
    structlog.get_logger().info("during")
    logging.getLogger("x").info("during")
    current_trace.reset(token)
    structlog.get_logger().info("after")
    during, foreign, after = entries(capsys)
    for entry in (during, foreign):
        assert (entry["trace_id"], entry["span_id"]) == (trace.trace_id, trace.span_id)
    assert "trace_id" not in after


@pytest.mark.parametrize("library", ["structlog", "logging"])
def test_an_exception_is_one_string(capsys: pytest.CaptureFixture[str], library: str) -> None:
    """So that an entry stays one line."""
    configure_logging(level="info", format="json", context={})
    logger = structlog.get_logger() if library == "structlog" else logging.getLogger("x")
    try:
        raise ValueError("lost\nluggage")
    except ValueError:
        logger.exception("failed")
    (entry,) = entries(capsys)
    assert entry["exception"].startswith("Traceback (most recent call last):")
    assert entry["exception"].endswith("ValueError: lost\nluggage")


def test_a_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    """As after a fork: loggers made before it follow, and no entry comes twice."""
    configure_logging(level="error", format="json", context={"app": "a"})
    logger = structlog.get_logger()
    logger.error("first")
    logging.getLogger().addHandler(logging.StreamHandler())  # as Thespian does
    configure_logging(level="info", format="json", context={"app": "b"})
    logger.info("second")
    logging.getLogger("x").info("third")
    assert [(entry["event"], entry["app"]) for entry in entries(capsys)] == [
        ("first", "a"),
        ("second", "b"),
        ("third", "b"),
    ]


def test_a_value_that_json_lacks_is_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """An entry is never lost for what somebody put into it."""
    configure_logging(level="info", format="json", context={})
    structlog.get_logger().info("odd", value={1, 2}.__class__, path=b"\xff")
    (entry,) = entries(capsys)
    assert entry["value"] == "<class 'set'>"


def test_the_console_shows_event_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    """No colours unless it is a terminal."""
    configure_logging(level="info", format="console", context={"app": "flights"})
    structlog.get_logger().info("started")
    text = capsys.readouterr().err
    assert "started" in text
    assert "app=flights" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("setting", "terminal", "expected"),
    [
        ("auto", True, "console"),
        ("auto", False, "json"),
        ("json", True, "json"),
        ("console", False, "console"),
    ],
)
def test_auto_is_console_on_a_terminal_and_else_json(setting: str, terminal: bool, expected: str) -> None:
    """What was asked for holds anywhere."""

    class Stream(StringIO):
        def isatty(self) -> bool:
            return terminal

    assert resolve_format(setting, Stream()) == expected


def test_what_python_would_print_itself_is_an_entry_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A thread's exception, one in a destructor, a warning: whoever reads stderr reads JSON."""

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a destructor")

    def fail() -> None:
        raise ValueError("in a thread")

    configure_logging(level="info", format="json", context=CONTEXT)
    thread = threading.Thread(target=fail, name="pool-1")
    thread.start()
    thread.join()
    Broken()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # As catch_warnings and pytest leave it, Python's own.
        configure_logging(level="info", format="json", context=CONTEXT)
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    failed, ignored, warned = entries(capsys)
    assert (failed["level"], failed["event"], failed["thread"]) == ("error", "thread failed", "pool-1")
    assert failed["exception"].endswith("ValueError: in a thread")
    assert (ignored["level"], ignored["event"]) == ("error", "exception ignored")
    assert ignored["exception"].endswith("ValueError: in a destructor")
    assert (warned["level"], warned["event"]) == ("warning", "this is old")
    assert warned["category"] == "DeprecationWarning"
    assert warned["where"].startswith(__file__)
    assert all(entry["cell"] == "delay-monitor/0" for entry in (failed, ignored, warned))


def test_a_thread_that_exits_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """As Python has it: sys.exit() in a thread ends the thread."""
    configure_logging(level="info", format="json", context=CONTEXT)
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    assert entries(capsys) == []


def test_a_console_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """They would be pages of them, and what a handler keeps in one may be a secret."""
    configure_logging(level="info", format="console", context=CONTEXT)
    secret = "hunter2"
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger().exception("failed")
    text = capsys.readouterr().err
    assert "ValueError: 7" in text
    assert secret not in text.replace('secret = "hunter2"', "")
