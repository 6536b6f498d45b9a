"""Log entries: one pipeline on stderr for structlog and the standard library, in every process."""

from __future__ import annotations

import functools
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Literal, TextIO

import structlog

from understudy.config.log_rules import LogRules
from understudy.runtime.telemetry.entries import Entry, EntryHandler, to_record
from understudy.runtime.telemetry.redaction import Redaction
from understudy.runtime.telemetry.repeats import Repeats
from understudy.runtime.telemetry.writing import ConsoleWriter, Writer

LogFormat = Literal["console", "json"]
# Libraries that would report through handlers of their own, or report every start and stop as news.
REROUTED = ("nats", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "Thespian")
# As they were before Thespian, which puts a forwarder in place of the root and with that loses all loggers
# that there are: nobody would hear of them again.
_ROOT = logging.root
_LOGGERS = logging.Logger.manager
# Until anything is installed.
_REDACTION = Redaction()
_log = structlog.get_logger("python")
# The methods of a logger, each with the level at which it writes; `log` may write at any.
_METHODS = {
    **dict.fromkeys(("debug",), logging.DEBUG),
    **dict.fromkeys(("info", "msg"), logging.INFO),
    **dict.fromkeys(("warning", "warn"), logging.WARNING),
    **dict.fromkeys(("error", "exception"), logging.ERROR),
    **dict.fromkeys(("critical", "fatal", "log"), logging.CRITICAL),
}


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


def configure_logging(
    *,
    level: str,
    format: LogFormat,  # noqa: A002
    context: Mapping[str, str],
    rules: LogRules | None = None,
    is_final: bool = False,
) -> None:
    """Send everything that is logged in this process through one pipeline to stderr.

    Called first thing in each process, and again after a fork: it replaces whatever handlers the root logger
    has (Thespian puts its forwarder there, and killing the logger process behind it would crash the admin).

    Args:
        level: debug, info, warning or error; what is below is dropped where it is called.
        format: "console" for people, "json" for one object a line.
        context: what every entry of this process names: app and node, and actor, cell or supervisor.
        rules: what is left out of entries, and of repeats.
        is_final: whether neither this process nor a fork of it configures anew, so that structlog's loggers
            can be kept from their first use on: a call below the level then costs a fifth.
    """
    writer = (ConsoleWriter if format == "console" else Writer)(sys.stderr)
    install_handler(make_handler(writer, context, rules or LogRules()), level=level, is_final=is_final)
    # What Python itself would print there, in a form that no reader of entries expects.
    sys.excepthook = _log_failure
    threading.excepthook = _log_thread_failure
    sys.unraisablehook = _log_unraisable
    warnings.showwarning = _log_warning


def make_handler(
    write: Callable[[Entry], None], context: Mapping[str, object], rules: LogRules
) -> EntryHandler:
    """Return what makes entries of all that is logged.

    Args:
        write: takes each.
        context: what every entry names.
        rules: what is left out.
    """
    redaction = Redaction(rules.redact)
    return EntryHandler(
        context=context,
        redaction=redaction,
        repeats=Repeats(rules.repeats, rules.repeat_window_seconds, redaction.text),
        write=write,
    )


def install_handler(handler: EntryHandler, *, level: str, is_final: bool = False) -> None:
    """Have everything from a level up go to this handler alone, whichever library logs it.

    Args:
        handler: makes the entries.
        level: as in `configure_logging`.
        is_final: as in `configure_logging`.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, to_record],
        wrapper_class=_logger_class(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # A fork that configures anew must reach loggers made before it, so it alone may keep them.
        cache_logger_on_first_use=is_final,
    )
    logging.root = logging.Logger.root = _ROOT
    logging.Logger.manager = _LOGGERS
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(threshold)
    for name in REROUTED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(threshold if level == "debug" else max(threshold, logging.WARNING))


def flush_suppressed(*, all_of_them: bool = False) -> None:
    """Say how many repeats were not written, where their time is over; to be called now and again.

    Args:
        all_of_them: also where it isn't, since this process is about to end.
    """
    for handler in _ROOT.handlers:
        if isinstance(handler, EntryHandler):
            handler.flush_suppressed(all_of_them=all_of_them)


def without_secrets(text: str) -> str:
    """Return a text as entries of this process would show it; for what is told elsewhere than in the log."""
    installed = (handler for handler in _ROOT.handlers if isinstance(handler, EntryHandler))
    handler = next(installed, None)
    return (_REDACTION if handler is None else handler.redaction).text(text)


def _logger_class(threshold: int) -> type[structlog.typing.FilteringBoundLogger]:
    """Return what structlog makes loggers of: such as do nothing below the threshold, and never raise."""
    filtering = structlog.make_filtering_bound_logger(threshold)
    methods = {
        name: _guarded(getattr(filtering, name)) for name, level in _METHODS.items() if level >= threshold
    }
    return type("Logger", (filtering,), methods)


def _guarded(method: Any) -> Any:
    """Return a logging method that doesn't raise for what it was called with, such as `info("%d", "x")`."""

    @functools.wraps(method)
    def write(self: Any, *arguments: Any, **fields: Any) -> Any:
        try:
            return method(self, *arguments, **fields)
        except (TypeError, ValueError, KeyError) as problem:
            _log.error("a log entry can't be made", told=arguments, fields=list(fields), error=str(problem))
            return None

    return write


def _log_failure(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    _log.critical("process failed", exc_info=(kind, error, traceback))


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
