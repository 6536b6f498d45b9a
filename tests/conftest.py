"""Fixtures for all tests."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from support.cells import Bench, bench
from support.nats import NatsServer
from understudy.runtime.jetstream import subscription

# A shell without job control has what it runs in the background ignore SIGINT, and so would our children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, or to think of one, says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A cell that stops waits until its last pull requests have expired, and most tests stop one. The processes
# that tests start have the values of the product. Who waits for a mailbox to be full has one of at most 8: of
# a larger one, the last bit of room is worth no request, and these may end before they are filled.
EXPIRES = {
    "EXPIRES_SECONDS": subscription.EXPIRES_SECONDS,
    "IDLE_EXPIRES_SECONDS": subscription.IDLE_EXPIRES_SECONDS,
}
subscription.EXPIRES_SECONDS = 0.25
subscription.IDLE_EXPIRES_SECONDS = 0.5


def _log_plainly() -> None:
    """Have structlog write tracebacks as Python does, and nothing into what commands print.

    By default rich draws them with all locals. A tenth of a second goes by meanwhile, which on a busy machine
    is longer than pins and `ack_wait` of our tests last. Cells and commands that share a test's process would
    share standard output, too: past `capsys`, pytest shows entries with what else a failed test has printed.
    """
    structlog.reset_defaults()
    *processors, _ = structlog.get_config()["processors"]
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*processors, renderer], logger_factory=structlog.PrintLoggerFactory(sys.__stderr__)
    )


_log_plainly()


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Leave the logging as it was, whatever a test or a command run in its process configures.

    Else entries of the next test may be filtered, or go to the last one's standard error, which is closed.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    _log_plainly()


@pytest.fixture
def long_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pull requests that live as long as the product's: a connection that breaks leaves some behind."""
    for name, seconds in EXPIRES.items():
        monkeypatch.setattr(subscription, name, seconds)


@pytest.fixture
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server of the test's own, which it may stop, kill and restart."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="module")
def module_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server shared by a module's tests; they use names of their own and leave it running."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def orders(
    nats_server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    """A broker for the orders app, with the fast lane unless a test says otherwise."""
    async with bench(nats_server.url, tmp_path, fast_lane=getattr(request, "param", True)) as made:
        yield made
