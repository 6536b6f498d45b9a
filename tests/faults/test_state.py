"""Cells with state that die at chosen moments: states and outputs are those of a plain computation."""

from __future__ import annotations

from pathlib import Path

from support.nats import NatsServer
from support.state_app import MOMENTS
from support.state_soak import soak


def test_states_and_outputs_are_those_of_a_plain_computation(nats_server: NatsServer, tmp_path: Path) -> None:
    """Over duplicates, failures and a death at every moment; `support.state_soak` is the long form."""
    account = soak(nats_server, tmp_path, messages=3_000, kills=len(MOMENTS), seed=1)
    assert account.differences == []
    assert account.kills == dict.fromkeys(MOMENTS, 1)
    for actor, counts in account.counts.items():
        assert counts["already_applied"] > 0, actor
        assert counts["published_again"] > 0, actor
    assert account.counts["unordered"]["redelivered"] > 0


def test_commits_that_are_not_waited_for_are_found_out(nats_server: NatsServer, tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    account = soak(nats_server, tmp_path, messages=3_000, kills=len(MOMENTS), seed=1, broken="ack-first")
    assert account.differences != []
