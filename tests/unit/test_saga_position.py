"""Where outcomes take a saga: a pure function, whose every sequence of outcomes ends well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.saga_position import (
    ENDED,
    Abandoned,
    Done,
    Failed,
    Halted,
    Outcome,
    Phase,
    PlannedStep,
    Position,
    Replied,
    Resumed,
    TimedOut,
    advance,
    begin,
    find,
)

PLAN = [PlannedStep("reserve"), PlannedStep("charge", awaits_reply=True), PlannedStep("notify", False, False)]
plans = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5).map(
    lambda flags: [PlannedStep(f"step-{index}", *two) for index, two in enumerate(flags)]
)


def through(outcomes: list[str]) -> Position:
    """The position after these outcomes, each of the turn that it finds."""
    position = begin(PLAN)
    for outcome in outcomes:
        position = advance(PLAN, position, at(outcome, position.turn))
    return position


def at(outcome: str, turn: int) -> Outcome:
    """An outcome by its name."""
    outcomes: dict[str, Outcome] = {
        "done": Done(turn),
        "replied": Replied(turn),
        "failed": Failed(turn, "no"),
        "did nothing": Failed(turn, "no", did_nothing=True),
        "halted": Halted(turn, "can't be tried"),
        "timed out": TimedOut(turn),
        "resumed": Resumed(),
        "abandoned": Abandoned("why not"),
    }
    return outcomes[outcome]


@pytest.mark.parametrize(
    ("outcomes", "phase", "step", "undo"),
    [
        ([], Phase.RUNNING, "reserve", ()),
        (["done"], Phase.RUNNING, "charge", ("reserve",)),
        (["done", "done", "replied"], Phase.RUNNING, "notify", ("reserve", "charge")),
        (["done", "done", "replied", "done"], Phase.COMPLETED, "", ("reserve", "charge")),
        (["did nothing"], Phase.COMPENSATED, "", ()),
        (["failed"], Phase.COMPENSATING, "reserve", ("reserve",)),
        (["failed", "done"], Phase.COMPENSATED, "", ()),
        (["done", "done", "timed out"], Phase.COMPENSATING, "charge", ("reserve", "charge")),
        (["done", "done", "did nothing"], Phase.COMPENSATING, "reserve", ("reserve",)),
        (["done", "done", "timed out", "done", "done"], Phase.COMPENSATED, "", ()),
        (["done", "done", "replied", "failed"], Phase.COMPENSATING, "charge", ("reserve", "charge")),
        (["failed", "failed"], Phase.STUCK, "reserve", ("reserve",)),
        (["failed", "failed", "resumed", "done"], Phase.COMPENSATED, "", ()),
        (["failed", "failed", "abandoned"], Phase.ABANDONED, "reserve", ("reserve",)),
        (["abandoned", "resumed", "done"], Phase.ABANDONED, "reserve", ()),
        (["done", "halted"], Phase.STUCK, "charge", ("reserve",)),
        (["done", "halted", "resumed", "done", "replied"], Phase.RUNNING, "notify", ("reserve", "charge")),
        (["failed", "halted", "resumed", "done"], Phase.COMPENSATED, "", ()),
    ],
)
def test_outcomes_lead_here(outcomes: list[str], phase: Phase, step: str, undo: tuple[str, ...]) -> None:
    position = through(outcomes)
    assert (position.phase, position.step, position.undo) == (phase, step, undo)


def test_a_step_with_a_reply_waits_for_it_when_its_command_is_sent() -> None:
    sent = through(["done", "done"])
    assert sent.waiting
    assert sent.step == "charge"
    assert advance(PLAN, sent, Done(sent.turn)) is sent


def test_what_stops_it_is_said() -> None:
    stuck = through(["done", "did nothing", "failed"])
    assert stuck.error == "charge: no"
    assert stuck.problem == "reserve can't be undone: no"
    assert through(["done", "did nothing", "failed", "resumed"]).problem == ""
    assert through(["done", "done", "timed out"]).error == "charge: no reply in time"


def test_a_step_that_is_declared_no_more_leaves_it_stuck_until_it_is_again() -> None:
    position = Position(step="pay", undo=("reserve",))
    stuck = advance(PLAN, position, Failed(0, ""))
    assert (stuck.phase, stuck.problem) == (Phase.STUCK, "the step 'pay' is no longer declared")
    again = advance(PLAN, stuck, Resumed())
    assert (again.phase, again.step, again.direction) == (Phase.RUNNING, "pay", "do")


@given(
    plan=plans,
    outcomes=st.lists(
        st.tuples(
            st.sampled_from(
                sorted(
                    (
                        *("done", "replied", "failed", "did nothing", "halted"),
                        *("timed out", "resumed", "abandoned"),
                    )
                )
            ),
            st.integers(-1, 1),
        )
    ),
)
def test_outcomes_of_other_turns_change_nothing(
    plan: list[PlannedStep], outcomes: list[tuple[str, int]]
) -> None:
    position = begin(plan)
    for outcome, off in outcomes:
        after = advance(plan, position, at(outcome, position.turn + off))
        if off and outcome not in ("resumed", "abandoned"):
            assert after is position
        assert after is position or after.turn == position.turn + 1
        assert after.is_active == (after.phase in (Phase.RUNNING, Phase.COMPENSATING))
        # Something to be done, exactly while it is active.
        assert not after.is_active or find(plan, after.step) is not None
        position = after


@given(plan=plans, data=st.data())
def test_every_sequence_of_outcomes_ends_and_undoes_what_was_done_in_reverse(
    plan: list[PlannedStep], data: st.DataObject
) -> None:
    position = begin(plan)
    done: list[str] = []
    undone: list[str] = []
    resumed = changes = 0
    while position.phase not in ENDED:
        changes += 1
        assert changes <= 5 * len(plan) + 10
        if position.phase is Phase.STUCK:
            # Parked is where it may stay; an operator has it tried again three times at most here.
            outcome = "resumed" if resumed < 3 else "abandoned"
            resumed += 1
        elif position.waiting:
            outcome = data.draw(st.sampled_from(["replied", "timed out", "did nothing"]))
        elif position.direction == "undo":
            outcome = data.draw(st.sampled_from(["done", "done", "failed", "halted"]))
        else:
            outcome = data.draw(st.sampled_from(["done", "done", "done", "failed", "did nothing", "halted"]))
        before = position
        position = advance(plan, before, at(outcome, before.turn))
        assert position is not before
        step = find(plan, before.step)
        assert step is not None
        if before.phase is Phase.RUNNING and before.direction == "do":
            # Whatever may have been done, and can be undone.
            certain = outcome == "replied" or (outcome == "done" and not step.awaits_reply)
            if (certain or outcome in ("failed", "timed out")) and step.has_compensation:
                done.append(step.name)
        elif before.phase is Phase.COMPENSATING and outcome == "done":
            undone.append(step.name)
    if position.phase is Phase.COMPENSATED:
        assert undone == done[::-1]
    else:
        assert undone == done[::-1][: len(undone)]
        assert position.phase is not Phase.COMPLETED or not undone


@given(plan=plans, data=st.data())
def test_in_whatever_order_new_versions_have_the_steps_none_is_done_or_undone_twice(
    plan: list[PlannedStep], data: st.DataObject
) -> None:
    """Of those that can be undone; steps may also be taken away, and come back when it is stuck of that."""
    plan = [PlannedStep(step.name, step.awaits_reply) for step in plan]
    parts = st.lists(st.sampled_from(plan), unique_by=lambda step: step.name)
    versions = data.draw(st.lists(st.permutations(plan) | parts, max_size=4))
    position, now = begin(plan), plan
    done: list[str] = []
    undone: list[str] = []
    while position.phase not in ENDED:
        if position.phase is Phase.STUCK:
            assert position.problem
            position, now = advance(plan, position, Resumed()), plan
            continue
        changes: bool = data.draw(st.booleans())
        fails: bool = data.draw(st.booleans())
        if versions and changes:
            now = versions.pop()
        # Not for ever.
        outcome = "failed" if fails and versions else "replied" if position.waiting else "done"
        before = position
        position = advance(now, before, at(outcome, before.turn))
        if position.phase is Phase.STUCK or position.waiting:
            continue
        (done if before.direction == "do" else undone).append(before.step)
    assert len(set(done)) == len(done)
    assert undone == ([] if position.phase is Phase.COMPLETED else done[::-1])
