"""Cells that the operator restarts, under every strategy: stopped in good order, and not counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tree import Tree, cell, kill, supervisor
from understudy.actors.supervision import Strategy

WHY = "restarted by the operator"


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_siblings_go_on_and_no_restart_is_used_up(tmp_path: Path, strategy: Strategy) -> None:
    """Also at a supervisor that bears no restart at all."""
    inner = supervisor("inner", cell("steady", 0), cell("steady", 1), strategy=strategy, max_restarts=0)
    with Tree(tmp_path, supervisor("root", inner, cell("steady", 2), max_restarts=0)) as tree:
        tree.wait_until_up()
        others = [tree.child(name).pid for name in ("inner", "steady/1", "steady/2")]
        for generation in (2, 3):
            tree.restart("steady/0")
            child = tree.wait_for_child("steady/0", generation=generation)
            assert (child.restarts, child.crashed, child.last_reason) == (0, False, WHY)
        assert [tree.child(name).pid for name in ("inner", "steady/1", "steady/2")] == others
        assert [line for line in tree.history() if line.endswith("steady/0")] == [
            *("start steady/0", "stop steady/0"),
            *("start steady/0", "stop steady/0", "start steady/0"),
        ]
        assert tree.starts()[-1].endswith(f" False {WHY}")
        tree.stop()


def test_several_cells_stop_in_reverse_order_and_start_in_order(tmp_path: Path) -> None:
    """Wherever in the tree they are; who isn't named goes on."""
    inner = supervisor("inner", cell("steady", 0), cell("steady", 1), cell("steady", 2))
    with Tree(tmp_path, supervisor("root", inner, cell("steady", 3))) as tree:
        tree.wait_until_up()
        before = len(tree.history())
        tree.restart("steady/0", "steady/2", "steady/3")
        for name in ("steady/0", "steady/2", "steady/3"):
            tree.wait_for_child(name, generation=2)
        inside = [line for line in tree.history()[before:] if not line.endswith("steady/3")]
        assert inside == ["stop steady/2", "stop steady/0", "start steady/0", "start steady/2"]
        assert tree.child("steady/1").generation == 1
        tree.stop()


def test_one_that_waits_for_its_backoff_is_started_at_once(tmp_path: Path) -> None:
    """And once: its backoff, when it has passed, starts no second one."""
    with Tree(tmp_path, supervisor("root", cell("failing"), cell("steady"))) as tree:
        # By then it waits for seconds.
        tree.wait_for_child("failing/0", state="backoff", generation=8)
        waiting = tree.child("failing/0")
        tree.restart("failing/0")
        tree.wait_for_child("failing/0", state="backoff", generation=waiting.generation + 1)
        generations = [int(line.split()[1]) for line in tree.starts() if line.startswith("failing/0 ")]
        assert generations == list(range(1, len(generations) + 1))
        assert tree.child("steady/0").generation == 1
        tree.stop()


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_one_that_had_ended_for_good_is_started_again(tmp_path: Path, restart: str) -> None:
    """The operator knows better than its spec."""
    brief = cell("brief", restart=restart)  # type: ignore[arg-type] # one of the three
    with Tree(tmp_path, supervisor("root", brief, cell("steady"))) as tree:
        tree.wait_until_up()
        (tmp_path / "finish").touch()
        tree.wait_for_child("brief/0", state="stopped")
        (tmp_path / "finish").unlink()
        tree.restart("brief/0")
        tree.wait_for_child("brief/0", generation=2)
        tree.stop()


def test_one_that_does_not_stop_is_killed_and_started_again(tmp_path: Path) -> None:
    """After the time that a drain may take; that too is no failure, and nothing is suspect."""
    with Tree(tmp_path, supervisor("root", cell("stubborn"), max_restarts=0), stop_seconds=1.0) as tree:
        tree.wait_until_up()
        tree.restart("stubborn/0")
        child = tree.wait_for_child("stubborn/0", generation=2)
        assert (child.restarts, child.crashed, child.last_reason) == (0, False, "did not stop in time")


def test_one_that_dies_meanwhile_is_started_once(tmp_path: Path) -> None:
    """Whether it was asked to stop by then or not."""
    with Tree(tmp_path, supervisor("root", cell("stubborn"), max_restarts=0), stop_seconds=30.0) as tree:
        tree.wait_until_up()
        tree.restart("stubborn/0")
        tree.wait_for_child("stubborn/0", state="stopping")
        kill(tree.child("stubborn/0").pid)
        child = tree.wait_for_child("stubborn/0", generation=2)
        assert (child.generation, child.restarts, child.crashed) == (2, 0, False)
