"""Log entries: one pipeline on stderr for structlog and the standard library, in every process."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from understudy.runtime.telemetry.trace import current_trace

LogFormat = Literal["console", "json"]
_FIRST_KEYS = ("time", "level", "event", "app", "supervisor", "actor", "cell")
# Libraries that would report through handlers of their own, or report every start and stop as news.
_REROUTED = ("nats", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "Thespian")
_log = structlog.get_logger("python")


def resolve_format(format: str, stream: IO[str] | None = None) -> LogFormat:  # noqa: A002 - the setting's name
    """Return the format that `auto` means here: console on a terminal, else JSON.

    Called once, in the launcher: the processes below it must all agree.

    Args:
        format: the setting `log.format`.
        stream: where entries go; stderr if None.
    """
    if format == "console" or (format == "auto" and (stream or sys.stderr).isatty()):
        return "console"
    return "json"


def configure_logging(*, level: str, format: LogFormat, context: Mapping[str, str]) -> None:  # noqa: A002
    """Send everything that is logged in this process through one pipeline to stderr.

    Called first thing in each process, and again after a fork: it replaces whatever handlers the root logger
    has (Thespian puts its forwarder there, and killing the logger process behind it would crash the admin).

    Args:
        level: debug, info, warning or error; what is below is dropped where it is called.
        format: "console" for people, "json" for one object a line.
        context: what every entry of this process names: app, and actor, cell or supervisor.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt=None, utc=True, key="time"),
        _Bound(context),
        _add_trace,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Not cached: a fork that configures anew must reach loggers made before it.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _drop_colours,
                *_rendering(format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in _REROUTED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(threshold if level == "debug" else max(threshold, logging.WARNING))
    # What Python itself would print there, in a form that no reader of entries expects.
    threading.excepthook = _log_thread_failure
    sys.unraisablehook = _log_unraisable
    warnings.showwarning = _log_warning


def _log_thread_failure(failure: threading.ExceptHookArgs, /) -> None:
    if failure.exc_type is SystemExit:
        return
    exception = failure.exc_value or failure.exc_type()
    name = failure.thread.name if failure.thread is not None else "unknown"
    _log.error("thread failed", thread=name, exc_info=exception)


def _log_unraisable(unraisable: sys.UnraisableHookArgs, /) -> None:
    # The object itself may be half gone, so only its type is named.
    _log.error(
        unraisable.err_msg or "exception ignored",
        object=type(unraisable.object).__qualname__,
        exc_info=unraisable.exc_value or unraisable.exc_type(),
    )


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - Python's signature
    line: str | None = None,  # noqa: ARG001
) -> None:
    _log.warning(str(message), category=category.__name__, where=f"{filename}:{lineno}")


class _Bound:
    """Adds what is the same for every entry of the process, unless the entry says otherwise."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def __call__(self, _logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
        for name, value in self._values.items():
            entry.setdefault(name, value)
        entry.setdefault("pid", os.getpid())  # asked anew: a handler may fork
        return entry


def _add_trace(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    trace = current_trace.get()
    if trace is not None:
        entry.setdefault("trace_id", trace.trace_id)
        entry.setdefault("span_id", trace.span_id)
    return entry


def _drop_colours(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    entry.pop("color_message", None)  # uvicorn says everything twice
    return entry


def _milliseconds(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    moment = datetime.fromtimestamp(entry["time"], UTC)
    entry["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return entry


def _in_order(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    first = {name: entry.pop(name) for name in _FIRST_KEYS if name in entry}
    return {**first, **entry}


def _rendering(format: LogFormat) -> list[Processor]:  # noqa: A002
    if format == "console":
        return [
            _milliseconds,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                timestamp_key="time",
                # The default one prints every frame's local variables: pages of them, secrets included.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.StackInfoRenderer(),
        _milliseconds,
        _in_order,
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
    ]
