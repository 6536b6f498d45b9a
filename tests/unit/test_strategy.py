"""Which children are stopped and started again with one that ended, as OTP decides."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.options import RestartType
from understudy.actors.supervision import Strategy
from understudy.runtime.supervision.strategy import Decision, Member, decide

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MANY: tuple[Strategy, ...] = ("one_for_all", "rest_for_one")
RESTART_TYPES: tuple[RestartType, ...] = get_args(RestartType)


def children(*described: str) -> list[Member]:
    """Return children a, b, c, … of these restart types; one marked with `-` doesn't run."""
    restarts = {restart[:4]: restart for restart in RESTART_TYPES}
    return [
        Member(chr(ord("a") + index), restarts[one.strip("-")], not one.startswith("-"))
        for index, one in enumerate(described)
    ]


FOUR = children("perm", "perm", "perm", "perm")


@pytest.mark.parametrize(
    ("strategy", "stop", "start"),
    [("one_for_one", "", "b"), ("one_for_all", "dca", "abcd"), ("rest_for_one", "dc", "bcd")],
)
def test_a_strategy_names_who_is_stopped_and_who_is_started(
    strategy: Strategy, stop: str, start: str
) -> None:
    """Stopped in reverse start order, started in start order; one restart, however many it takes along."""
    assert decide(strategy, FOUR, "b", normal=False) == Decision(tuple(stop), tuple(start), counts=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("restart", "normal", "restarted"),
    [
        ("perm", True, True),
        ("perm", False, True),
        ("tran", True, False),
        ("tran", False, True),
        ("temp", True, False),
        ("temp", False, False),
    ],
)
def test_the_restart_type_says_whether_an_end_is_one_for_the_siblings_too(
    strategy: Strategy, restart: str, normal: bool, restarted: bool
) -> None:
    """What isn't started again neither counts nor touches anyone."""
    decision = decide(strategy, children("perm", restart, "perm"), "b", normal=normal)
    assert (decision == Decision()) is not restarted
    assert decision.counts is restarted


@pytest.mark.parametrize("strategy", MANY)
def test_a_temporary_sibling_is_stopped_and_never_started_again(strategy: Strategy) -> None:
    """Although it was not its own end."""
    assert decide(strategy, children("perm", "temp", "perm"), "a", normal=False) == Decision(
        ("c", "b"), ("a", "c"), counts=True
    )


@pytest.mark.parametrize("strategy", MANY)
def test_a_transient_sibling_that_had_ended_normally_is_started_again(strategy: Strategy) -> None:
    """OTP's `start_children` starts every child that is left."""
    assert decide(strategy, children("perm", "-tran", "-perm"), "a", normal=False) == Decision(
        (), ("a", "b", "c"), counts=True
    )


def test_a_stranger_is_refused() -> None:
    """A supervisor restarts only its own children."""
    with pytest.raises(ValueError, match=r"^'d' is not a child: a, b$"):
        decide("one_for_one", children("perm", "perm"), "d", normal=False)


ends = st.lists(st.tuples(st.sampled_from(RESTART_TYPES), st.booleans()), min_size=1, max_size=8).flatmap(
    lambda members: st.tuples(
        st.just([Member(str(index), restart, runs) for index, (restart, runs) in enumerate(members)]),
        st.integers(0, len(members) - 1),
        st.booleans(),
    )
)


@given(strategy=st.sampled_from(STRATEGIES), end=ends)
def test_whatever_the_tree_a_decision_keeps_to_these_rules(
    strategy: Strategy, end: tuple[list[Member], int, bool]
) -> None:
    """Orders, temporaries, who is out of reach, and that every stopped child but a temporary comes back."""
    members, index, normal = end
    ended = members[index]
    decision = decide(strategy, members, ended.name, normal=normal)
    by_name = {member.name: member for member in members}
    order = list(by_name)
    assert list(decision.stop) == sorted(decision.stop, key=order.index, reverse=True)
    assert list(decision.start) == sorted(decision.start, key=order.index)
    assert all(by_name[name].runs for name in decision.stop)
    assert ended.name not in decision.stop
    assert all(by_name[name].restart != "temporary" for name in decision.start)
    assert {name for name in decision.stop if by_name[name].restart != "temporary"} <= set(decision.start)
    assert decision.counts == (ended.name in decision.start) == bool(decision.start)
    if not decision.counts:
        assert decision == Decision()
        assert ended.restart == "temporary" or (ended.restart == "transient" and normal)
    touched = {*decision.stop, *decision.start} - {ended.name}
    reach = {"one_for_one": set(), "rest_for_one": set(order[index + 1 :]), "one_for_all": set(order)}
    assert touched <= reach[strategy]
    if decision.counts:
        # Nobody within reach is forgotten: who ran is stopped, who may start again is started.
        others = reach[strategy] - {ended.name}
        assert set(decision.stop) == {name for name in others if by_name[name].runs}
        assert touched - set(decision.stop) == {
            name for name in others if not by_name[name].runs and by_name[name].restart != "temporary"
        }
