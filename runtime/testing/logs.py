"""Log entries in a test: what was logged, as it would have been written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import structlog

from understudy.config.log_rules import LogRules
from understudy.runtime.telemetry.entries import Entry
from understudy.runtime.telemetry.logs import REROUTED, install_handler, make_handler


@contextlib.contextmanager
def capture_logs(
    *, level: str = "debug", context: Mapping[str, object] | None = None, redact: Sequence[str] = ()
) -> Iterator[list[Entry]]:
    """Collect what is logged in the block, by structlog and by the standard library, and write nothing.

    Example:
        with capture_logs() as entries:
            await monitor.departed(Departed(carrier="UA", delay_minutes=75))
        assert [entry["event"] for entry in entries] == ["delayed"]

    An entry is what a cell would write, with secrets hidden; repeats are all there. `app`, `node`, `actor`
    and `cell` are there only if the context names them, and the delivery's fields while a cell handles one.

    Not for use in several threads at once, but what other threads log in the meantime is collected too.
    Loggers that the code under test keeps with what it has bound (`log = log.bind(…)`) have to be bound in
    the block.

    Args:
        level: debug, info, warning or error; what is below is dropped.
        context: what every entry names.
        redact: names whose values are secret, as the setting `log.redact`.

    Yields:
        The entries so far, in their order.
    """
    loggers = [logging.getLogger(), *map(logging.getLogger, REROUTED)]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    configuration, was_configured = structlog.get_config(), structlog.is_configured()
    entries: list[Entry] = []
    rules = LogRules(redact=tuple(redact), repeats=None)
    install_handler(make_handler(entries.append, context or {}, rules), level=level)
    try:
        yield entries
    finally:
        for logger, handlers, propagate, threshold in before:
            logger.handlers[:] = handlers
            logger.propagate = propagate
            logger.setLevel(threshold)
        if was_configured:
            structlog.configure(**configuration)
        else:
            structlog.reset_defaults()
