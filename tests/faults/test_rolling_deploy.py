"""A rolling deploy under load; `python -m support.rolling` is its long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.nats import NatsServer
from support.rolling import roll


@pytest.mark.timeout(300)
def test_two_nodes_replaced_one_after_another_lose_repeat_and_disorder_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """With a new handler in the new version, over a shared durable and a sole owner's.

    The bound on delays only tells a handover from a wait for the server, which gives back what nobody
    acked after 15 s and an owner's pin after 30: how long a busy machine takes is no fault.
    """
    account = roll(nats_server, tmp_path, nodes=2, rounds=1, rate=1000, late_seconds=14)
    assert account.differences(timed=False) == []
