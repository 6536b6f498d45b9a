"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from support.nats import NatsServer

# A shell without job control has what it runs in the background ignore SIGINT, and so would our children.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
