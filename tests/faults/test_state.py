"""Cells with state that die at chosen moments: states and outputs are those of a plain computation."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.nats import NatsServer
from support.state_app import MOMENTS, ONCE_MOMENTS
from support.state_fight import fight
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


def test_an_idempotent_actor_changes_its_state_once(nats_server: NatsServer, tmp_path: Path) -> None:
    """Repeats come at once, beside what is being handled, and later; the state keeps no ids of its own."""
    account = soak(nats_server, tmp_path, messages=3_000, kills=len(ONCE_MOMENTS), seed=1, once=True)
    assert account.differences == []
    assert account.kills == dict.fromkeys(ONCE_MOMENTS, 1)
    for actor, counts in account.counts.items():
        assert counts["duplicates"] > 0, actor
        assert counts["already_applied"] > 0, actor
        assert counts["mark_conflicts"] == 0, actor


def test_a_broker_that_is_killed_between_commit_mark_and_ack_has_no_state_changed_twice(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The long form stops it for a while, too, and has actors that wait for their acks, and batches."""
    moments = ("mark", "ack")
    account = soak(
        nats_server, tmp_path, messages=800, kills=2, seed=1, once=True, fault="kill", only=moments
    )
    assert account.differences == []
    assert account.kills == dict.fromkeys(moments, 1)


@pytest.mark.parametrize("once", [False, True], ids=["each once", "each twice, idempotent"])
def test_two_nodes_that_fight_for_a_key_lose_nothing(
    nats_server: NatsServer, tmp_path: Path, once: bool
) -> None:
    """Nobody is pinned, by force; `support.state_fight` is the long form."""
    account = fight(nats_server, tmp_path, events=300, once=once)
    assert account.differences == []
    assert account.count == account.outputs == 300
    for node, counts in account.counts.items():
        assert counts["committed"] > 0, node
    assert sum(counts["conflicts"] for counts in account.counts.values()) > 0


def test_marks_that_are_made_before_the_commit_are_found_out(nats_server: NatsServer, tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    account = soak(nats_server, tmp_path, messages=1_000, kills=1, seed=1, once=True, broken="mark-first")
    assert account.differences != []


def test_suspects_that_are_handled_first_are_found_out(nats_server: NatsServer, tmp_path: Path) -> None:
    """Else the test above would prove nothing of the order."""
    account = soak(
        nats_server, tmp_path, messages=1_000, kills=2, seed=1, broken="suspects-first", only=("later",)
    )
    assert any("has published for" in one for one in account.differences), account.differences


def test_commits_that_are_not_waited_for_are_found_out(nats_server: NatsServer, tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    account = soak(nats_server, tmp_path, messages=3_000, kills=len(MOMENTS), seed=1, broken="ack-first")
    assert account.differences != []
