"""The logger of what runs in other people's programs too, as a Publisher does."""

from __future__ import annotations

import logging
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from understudy.runtime.telemetry.redaction import Redaction, shown

_REDACTION = Redaction()


def get_logger(name: str) -> Any:
    """Return a logger of structlog's, or where nobody has configured that, of the standard library's.

    Unconfigured, structlog prints everything to stdout, where a script may have its data. Which of the two it
    is, is looked up when `structlog.get_logger` would: where loggers are kept from their first use on, once.

    Args:
        name: of the logger, in both libraries.
    """

    def make(logger: WrappedLogger, processors: Any, context: Any) -> Any:
        if structlog.is_configured():
            return structlog.get_config()["wrapper_class"](logger, processors=processors, context=context)
        return structlog.stdlib.BoundLogger(logging.getLogger(name), _PROCESSORS, context)

    # It need not be a class, only make a logger.
    wrapper_class: Any = make
    return structlog.wrap_logger(None, wrapper_class=wrapper_class, logger_factory_args=(name,))


class _Fields(dict[str, Any]):
    """A record's message: a text to most handlers, and a mapping to those that make JSON."""

    def __str__(self) -> str:
        fields = (f"{name}={shown(value)!r}" for name, value in self.items() if name != "event")
        return " ".join((shown(self.get("event", "")), *fields))


def _to_record(
    _logger: WrappedLogger, _method: str, fields: EventDict
) -> tuple[tuple[_Fields], dict[str, Any]]:
    options = {name: fields.pop(name) for name in ("exc_info", "stack_info") if name in fields}
    # In a process of ours the handler hides secrets.
    return (_Fields(_REDACTION.fields(fields)),), options


_PROCESSORS = (structlog.stdlib.filter_by_level, _to_record)
