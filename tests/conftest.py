"""Fixtures for all tests."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
import structlog

from support.nats import NatsServer

# A shell without job control has what it runs in the background ignore SIGINT, and so would our children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Leave the logging as it was, whatever a test or a command run in its process configures.

    Else entries of the next test may be filtered, or go to the last one's standard error, which is closed.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = threading.excepthook, sys.unraisablehook, warnings.showwarning
    yield
    threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


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
