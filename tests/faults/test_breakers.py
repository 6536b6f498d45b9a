"""A service that dies under load: what it costs the events, and how often it is called meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.nats import NatsServer
from support.outage import outage


@pytest.mark.timeout(360)
def test_a_dead_service_costs_few_attempts_and_is_tried_by_one_cell_at_a_time(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Of four cells on two nodes; no event is lost or given up, and they go on when it is back."""
    account = outage(nats_server, tmp_path, dead_seconds=3, reset_seconds=0.5)
    assert account.differences(timed=False) == [], account
    assert account.events > 1000
