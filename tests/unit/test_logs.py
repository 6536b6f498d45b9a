"""Log entries: what each names, whichever library wrote it."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog

from understudy.config.log_rules import LogRules
from understudy.runtime.cell.cell import failure_text
from understudy.runtime.telemetry.entries import current_batch
from understudy.runtime.telemetry.logs import (
    LogFormat,
    configure_logging,
    flush_suppressed,
    resolve_format,
)
from understudy.runtime.telemetry.trace import TraceContext, current_trace

CONTEXT = {"app": "flights", "actor": "delay-monitor", "cell": "delay-monitor/0"}


def entries(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_an_entry_names_when_what_and_who_in_this_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a person looks for first stands first."""
    configure_logging(level="info", format="json", context=CONTEXT)
    structlog.get_logger().info("started", port=8400)
    (entry,) = entries(capsys)
    assert list(entry)[:6] == ["time", "level", "event", "app", "actor", "cell"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    own = {"logger": __name__, "pid": os.getpid()}
    assert entry == {"level": "info", "event": "started", **CONTEXT, "port": 8400, **own}


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


class _Delivery:
    """What the context variable has in a cell."""

    trace_id = "a" * 32
    span_id = "b" * 16
    log_fields: ClassVar[dict[str, object]] = {
        "trace_id": trace_id,
        "span_id": span_id,
        "stream": "FLIGHTS",
        "sequence": 7,
        "subject": "flights.departed",
        "attempt": 2,
    }


class _Batch:
    log_fields: ClassVar[dict[str, object]] = {"stream": "FLIGHTS", "deliveries": 2, "first_sequence": 7}


@contextmanager
def handling(variable: ContextVar[Any], value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def test_an_entry_names_the_delivery_that_is_handled(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever library writes it, and also from a thread that has the handler's context."""
    configure_logging(level="info", format="json", context=CONTEXT)
    with handling(current_trace, _Delivery()):
        structlog.get_logger().info("one")
        logging.getLogger("x").info("two")
        thread = threading.Thread(target=copy_context().run, args=(structlog.get_logger().info, "three"))
        thread.start()
        thread.join()
    structlog.get_logger().info("four")
    *during, after = entries(capsys)
    assert [entry["event"] for entry in during] == ["one", "two", "three"]
    for entry in during:
        assert {name: entry[name] for name in _Delivery.log_fields} == _Delivery.log_fields
    assert _Delivery.log_fields.keys().isdisjoint(after)


def test_what_an_entry_says_itself_of_a_delivery_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be about another one, as a supervisor's entries are about cells."""
    configure_logging(level="info", format="json", context=CONTEXT)
    with handling(current_trace, _Delivery()):
        structlog.get_logger().info("one", sequence=9, actor="other", cell="other/1")
    (entry,) = entries(capsys)
    assert (entry["sequence"], entry["stream"]) == (9, "FLIGHTS")
    assert (entry["actor"], entry["cell"]) == ("other", "other/1")


def test_an_entry_names_the_batch_that_is_handled(capsys: pytest.CaptureFixture[str]) -> None:
    """And of one member, where it is about that, the rest too."""
    configure_logging(level="info", format="json", context=CONTEXT)
    with handling(current_batch, _Batch()):
        structlog.get_logger().info("all of them")
        with handling(current_trace, _Delivery()):
            structlog.get_logger().info("one of them")
    of_all, of_one = entries(capsys)
    assert (of_all["deliveries"], of_all["first_sequence"]) == (2, 7)
    assert "trace_id" not in of_all
    assert (of_one["deliveries"], of_one["sequence"], of_one["trace_id"]) == (2, 7, "a" * 32)


def test_nobody_can_say_what_every_entry_has(capsys: pytest.CaptureFixture[str]) -> None:
    """A field of such a name is kept under another."""
    configure_logging(level="info", format="json", context={})
    structlog.get_logger().info("sold", time="noon", level="gold", pid=1)
    (entry,) = entries(capsys)
    assert (entry["level"], entry["pid"]) == ("info", os.getpid())
    assert (entry["time_"], entry["level_"], entry["pid_"]) == ("noon", "gold", 1)


class _Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class _UnshowableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_what_cannot_be_shown_costs_no_more_than_its_field(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the entry nor what logs it: a handler doesn't fail because of its log."""
    configure_logging(level="info", format="json", context=CONTEXT)
    loop: list[object] = [1]
    loop.append(loop)
    structlog.get_logger().info(
        "odd",
        object=_Unshowable(),
        error=_UnshowableError(),
        loop=loop,
        float=float("nan"),
        big=2**80,
        bytes=b"\xff",
        surrogate="\ud800",
        inner={("a", 1): {2}},
    )
    (entry,) = entries(capsys)
    assert entry["object"] == "<_Unshowable that can't be shown: RuntimeError>"
    assert entry["error"] == "<_UnshowableError that can't be shown: RuntimeError>"
    assert entry["loop"] == [1, "…"]
    assert (entry["float"], entry["big"]) == ("nan", str(2**80))
    assert (entry["bytes"], entry["surrogate"]) == ("\\xff", "\\ud800")
    assert entry["inner"] == {"('a', 1)": [2]}


def test_an_entry_that_is_made_wrongly_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """What was meant is there, and nothing is raised."""
    configure_logging(level="info", format="json", context=CONTEXT)
    with handling(current_trace, _Delivery()):
        structlog.get_logger().warning("%d pieces", "many")
        structlog.get_logger().warning("sold", event="what")
        logging.getLogger("shop").warning("%d pieces", "many")
        try:
            raise _UnshowableError
        except _UnshowableError:
            structlog.get_logger().exception("failed")
    first, second, foreign, failed = entries(capsys)
    assert (first["event"], first["told"]) == ("a log entry can't be made", ["%d pieces", "many"])
    assert (second["told"], second["fields"]) == (["sold"], ["event"])
    assert (foreign["event"], foreign["level"]) == ("%d pieces", "warning")
    assert foreign["log_failure"] == "TypeError: %d format: a real number is required, not str"
    assert failed["exception"].endswith("_UnshowableError: <exception str() failed>")
    assert [entry["sequence"] for entry in (first, second, foreign, failed)] == [7] * 4


def test_a_debug_call_that_is_made_wrongly_is_nothing_at_info(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the level nothing is looked at."""
    configure_logging(level="info", format="json", context=CONTEXT)
    structlog.get_logger().debug("%d pieces", _Unshowable())
    assert entries(capsys) == []


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_secret_is_hidden_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], log_format: LogFormat
) -> None:
    """In the message, in fields, in an exception and in its traceback; in both formats."""
    configure_logging(level="info", format=log_format, context=CONTEXT, rules=LogRules(redact=("iban",)))
    url = "nats://clerk:hunter2@broker:4222"
    logging.getLogger("x").warning("cannot reach %s", url)
    structlog.get_logger().info("headers", headers={"Authorization": "Bearer hunter2"}, iban="hunter2")
    try:
        raise ConnectionError(f"{url} password=hunter2")
    except ConnectionError:
        structlog.get_logger().exception("failed", token="hunter2")
    text = capsys.readouterr().err
    assert text.count("***") >= 6
    assert "hunter2" not in text
    assert "broker:4222" in text


def test_a_repeated_error_is_written_a_few_times_and_then_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """By whichever library; what is no warning or error is written as often as it is logged."""
    rules = LogRules(repeats=2, repeat_window_seconds=60)
    configure_logging(level="info", format="json", context=CONTEXT, rules=rules)
    for number in range(10):
        with handling(current_trace, _Delivery()):
            structlog.get_logger().error("no answer", error="timeout", order=number, seconds=number / 7)
        logging.getLogger("nats").warning("slow consumer")
        structlog.get_logger().info("sold")
    flush_suppressed(all_of_them=True)
    found = entries(capsys)
    assert Counter(entry["event"] for entry in found) == {
        "no answer": 10,
        "slow consumer": 2,
        "sold": 10,
        "repeats were not logged": 1,
    }
    summary = found[-1]
    assert (summary["level"], summary["logger"]) == ("warning", "nats")
    assert (summary["suppressed"], summary["count"]) == ("slow consumer", 8)
    assert (summary["app"], summary["cell"]) == ("flights", "delay-monitor/0")
    assert 0 <= summary["seconds"] <= 60


@pytest.mark.parametrize("field", [{}, {"error": "ValueError: lost"}, {"reason": "lost"}])
def test_what_went_wrong_is_told_once(capsys: pytest.CaptureFixture[str], field: dict[str, str]) -> None:
    """By the entry, whoever names it, and by the count of its repeats, which has no traceback."""
    configure_logging(level="info", format="json", context=CONTEXT, rules=LogRules(repeats=1))
    for _ in range(3):
        structlog.get_logger().error("failed", exc_info=ValueError("lost"), **field)
    flush_suppressed(all_of_them=True)
    failed, summary = entries(capsys)
    assert failed["error"] == summary["error"] == "ValueError: lost"
    assert "various" not in summary


def test_a_flood_of_errors_that_all_differ_is_counted_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    """The count isn't of what its text says alone."""
    configure_logging(level="info", format="json", context=CONTEXT, rules=LogRules())
    for number in range(500):
        name = "".join(chr(ord("g") + int(digit)) for digit in str(number))
        structlog.get_logger().error("failed", error=f"no customer {name}", order=number)
    flush_suppressed(all_of_them=True)
    *written, summary = entries(capsys)
    assert (summary["suppressed"], summary["count"]) == ("failed", 500 - len(written))
    assert summary["various"] is True


def test_what_is_told_elsewhere_shows_no_secret_either() -> None:
    """Of a cell that fails, /readyz and the tree say why; of an event that does, its dead letter."""
    error = RuntimeError("cannot reach nats://clerk:hunter2@broker, iban=CH93")
    assert failure_text(error) == "RuntimeError: cannot reach nats://***@broker, iban=CH93"
    rules = LogRules(redact=("iban",))
    configure_logging(level="info", format="json", context=CONTEXT, rules=rules)
    assert failure_text(error) == "RuntimeError: cannot reach nats://***@broker, iban=***"


async def test_what_asyncio_says_is_the_same_event_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The task, which has a number of its own, is a field."""
    configure_logging(level="info", format="json", context=CONTEXT)

    async def lost(number: int) -> None:
        raise ValueError(f"lost {number}")

    tasks = [asyncio.create_task(lost(number)) for number in range(2)]
    await asyncio.wait(tasks)
    tasks.clear()
    gc.collect()
    found = [entry for entry in entries(capsys) if entry["logger"] == "asyncio"]
    assert [entry["event"] for entry in found] == ["Task exception was never retrieved"] * 2
    assert {entry["error"] for entry in found} == {"ValueError: lost 0", "ValueError: lost 1"}
    assert all(entry["details"].startswith("future: <Task finished ") for entry in found)


def test_a_repeat_is_one_whatever_delivery_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    """Trace ids, sequence and attempt differ each time, and say nothing of the error."""
    configure_logging(level="info", format="json", context=CONTEXT, rules=LogRules(repeats=2))
    for number in range(5):
        structlog.get_logger().error(
            "failed", error="timeout", sequence=number, subject=f"a.{number}", attempt=number
        )
    assert [entry["sequence"] for entry in entries(capsys)] == [0, 1]


def test_errors_that_differ_are_all_written(capsys: pytest.CaptureFixture[str]) -> None:
    """By text, by exception, by who says it."""
    configure_logging(level="info", format="json", context=CONTEXT, rules=LogRules(repeats=1))
    log = structlog.get_logger()
    for _ in range(3):
        log.error("failed", error="HTTP 503")
        log.error("failed", error="HTTP 402")
        log.error("failed", error="HTTP 402", cell="other/0")
        log.warning("failed", error="HTTP 402")
        for problem in (ValueError("x"), ValueError("y"), KeyError("x")):
            log.error("failed", exc_info=problem)
    assert len(entries(capsys)) == 7


def test_summaries_come_with_the_next_entry_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Or when the process that logs looks after them, which it does every few seconds."""
    rules = LogRules(repeats=1, repeat_window_seconds=0.001)
    configure_logging(level="info", format="json", context={}, rules=rules)
    for _ in range(50):
        structlog.get_logger().error("failed")
    logging.shutdown()
    found = entries(capsys)
    written = [entry for entry in found if entry["event"] == "failed"]
    assert len(written) + sum(entry.get("count", 0) for entry in found) == 50
    assert found[-1]["event"] in ("failed", "repeats were not logged")


@pytest.mark.parametrize("how", ["full", "nobody reads"])
def test_a_stream_that_takes_nothing_costs_the_entry_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """What was lost is told by the first entry that gets through again."""
    descriptor = os.open("/dev/full", os.O_WRONLY) if how != "nobody reads" else _unread_pipe()
    stream = os.fdopen(descriptor, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(level="info", format="json", context=CONTEXT)
    structlog.get_logger().error("first")
    logging.getLogger("x").error("second")
    path = tmp_path / "log"
    with path.open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    structlog.get_logger().error("third")
    stream.close()
    (entry,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (entry["event"], entry["lost_before"]) == ("third", 2)


def test_a_stream_that_is_closed_gets_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor does the file that has its descriptor since."""
    stream = (tmp_path / "log").open("w")
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(level="info", format="json", context=CONTEXT)
    descriptor = stream.fileno()
    stream.close()
    with (tmp_path / "other").open("w") as other:
        assert other.fileno() == descriptor
        structlog.get_logger().error("first")
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0, 0]


def _unread_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_entries_are_utf_8_whatever_the_locale_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stream of another encoding would make them something that no reader of JSON takes."""
    path = tmp_path / "log"
    with path.open("w", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging(level="info", format="json", context={})
        structlog.get_logger().info("Zürich → Genève")
    assert json.loads(path.read_bytes())["event"] == "Zürich → Genève"


def test_an_uncaught_exception_is_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    """And Ctrl-C isn't."""
    configure_logging(level="info", format="json", context=CONTEXT)
    try:
        raise ValueError("lost")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    (entry,) = entries(capsys)
    assert (entry["level"], entry["event"]) == ("critical", "process failed")
    assert entry["exception"].endswith("ValueError: lost")
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "KeyboardInterrupt\n"


def test_half_a_line_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pipe leaves it that doesn't wait, or a disk that is full within it."""
    reading, writing = os.pipe()
    capacity = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging(level="info", format="json", context=CONTEXT)
        structlog.get_logger().error("first", text="x" * 2 * capacity)
        assert len(os.read(reading, capacity)) == capacity
        structlog.get_logger().error("second")
        stream.close()
        rest, entry = reader.read().splitlines()
    assert rest == b""
    assert (json.loads(entry)["event"], json.loads(entry)["lost_before"]) == ("second", 1)
