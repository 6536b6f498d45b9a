"""Who is started again, who isn't, and who dies with whom, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from support.tree import STOP_SECONDS, Tree, cell, kill, supervisor, wait_until
from understudy.runtime.cell.status import boottime


def test_a_killed_cell_is_restarted_alone_and_told_why(tmp_path: Path) -> None:
    """Its sibling keeps its process; the replacement is told of the crash."""
    with Tree(tmp_path, supervisor("root", cell("steady", 0), cell("steady", 1))) as tree:
        tree.wait_until_up()
        killed, sibling = tree.child("steady/0"), tree.child("steady/1")
        kill(killed.pid)
        replacement = tree.wait_for_child("steady/0", generation=2)
        assert replacement.pid != killed.pid
        assert replacement.restarts == 1
        assert tree.child("steady/1") == sibling
        assert tree.starts()[-1] == f"steady/0 2 {replacement.pid} True killed by SIGKILL"
        assert [entry["cell"] for entry in tree.log("cell exited")] == ["steady/0"]
        tree.stop()


def test_children_start_in_order_each_after_the_one_before(tmp_path: Path) -> None:
    """The order of the declaration is the order of the starts, nested supervisors included."""
    inner = supervisor("inner", cell("steady", 1), cell("steady", 2))
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner, cell("steady", 3))) as tree:
        tree.wait_until_up()
        assert [line.split()[0] for line in tree.starts()] == [f"steady/{index}" for index in range(4)]
        tree.stop()


def test_a_stop_ends_children_in_reverse_order_and_leaves_nobody(tmp_path: Path) -> None:
    """The root's last word is `stopped`, with nothing timed out."""
    with Tree(tmp_path, supervisor("root", *(cell("steady", index) for index in range(3)))) as tree:
        tree.wait_until_up()
        tree.stop()
        tree.assert_nobody_left()
        assert [entry["cell"] for entry in tree.log("cell stopped")] == ["steady/2", "steady/1", "steady/0"]
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ())


def test_a_cell_that_does_not_stop_is_killed_and_named(tmp_path: Path) -> None:
    """Its sibling doesn't wait for it beyond its share of the time, and stops as it should."""
    with Tree(tmp_path, supervisor("root", cell("steady"), cell("stubborn")), stop_seconds=3) as tree:
        tree.wait_until_up()
        tree.stop()
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ("stubborn/0",))
        assert [entry["cell"] for entry in tree.log("cell stopped")] == ["steady/0", "stubborn/0"]


def test_a_cell_below_another_supervisor_that_does_not_drain_is_named(tmp_path: Path) -> None:
    """Its supervisor passes it on."""
    inner = supervisor("inner", cell("stubborn"))
    with Tree(tmp_path, supervisor("root", cell("steady"), inner)) as tree:
        tree.wait_until_up()
        stubborn = tree.child("stubborn/0").pid
        tree.launcher.terminate()
        wait_until(lambda: "stop stubborn/0" in tree.history())
        kill(stubborn)
        tree.wait()
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ("stubborn/0",))


# Who stands still is waited for until the end, and until then the other must not have stopped.
@pytest.mark.parametrize(("how", "stop_seconds"), [(signal.SIGKILL, STOP_SECONDS), (signal.SIGSTOP, 5)])
def test_a_supervisor_that_dies_or_stands_still_in_the_drain_is_named(
    tmp_path: Path, how: signal.Signals, stop_seconds: float
) -> None:
    """Its cells died with it, so the drain was none, though nobody is left to say which."""
    inner = supervisor("inner", cell("steady"), cell("stubborn"))
    with Tree(tmp_path, supervisor("root", inner), stop_seconds=stop_seconds) as tree:
        tree.wait_until_up()
        pid = tree.child("inner").pid
        assert pid is not None
        tree.launcher.terminate()
        wait_until(lambda: "stop stubborn/0" in tree.history())
        os.kill(pid, how)
        tree.wait()
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ("supervisor inner",))


def test_a_cell_that_fails_to_start_does_not_hold_up_its_siblings_or_escalate(tmp_path: Path) -> None:
    """It is tried again and again, with growing delays, and the others are up."""
    with Tree(tmp_path, supervisor("root", cell("failing"), cell("steady"), max_restarts=0)) as tree:
        tree.wait_until_up()
        steady = tree.child("steady/0")
        tree.wait_for_child("failing/0", state="backoff", generation=5)
        assert tree.child("failing/0").last_reason == "no database"
        assert tree.child("steady/0") == steady
        tree.stop()


def test_a_cell_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    """After its start timeout, and its siblings start all the same."""
    late = cell("late", start_timeout_seconds=0.6)
    with Tree(tmp_path, supervisor("root", late, cell("steady"))) as tree:
        tree.wait_until_up()
        assert tree.child("late/0").last_reason == "not up within 0.6 s"
        assert tree.child("steady/0").state == "up"
        tree.stop()


def test_a_cell_that_dies_before_it_is_ready_is_noticed_at_once(tmp_path: Path) -> None:
    """Thespian tells nothing of a child that dies early; its pidfd does."""
    with Tree(tmp_path, supervisor("root", cell("late"))) as tree:
        first = tree.wait_for_child("late/0", state="starting")
        began = time.monotonic()
        kill(first.pid)
        tree.wait_for_child("late/0", state="starting", generation=2)
        # What comes up too late is killed after 30 s.
        assert time.monotonic() - began < 10
        tree.stop()


def test_a_stopped_cell_hangs_and_is_killed_and_its_sibling_is_not(tmp_path: Path) -> None:
    """SIGKILL ends a process that SIGSTOP holds."""
    with Tree(
        tmp_path, supervisor("root", cell("steady", 0, hang_timeout_seconds=1.0), cell("steady", 1))
    ) as tree:
        tree.wait_until_up()
        stopped, sibling = tree.child("steady/0"), tree.child("steady/1")
        assert stopped.pid is not None
        os.kill(stopped.pid, signal.SIGSTOP)
        replacement = tree.wait_for_child("steady/0", generation=2)
        assert replacement.last_reason.startswith("hang: no heartbeat for ")
        assert replacement.crashed
        assert tree.child("steady/1") == sibling
        tree.stop()


def test_a_suspended_machine_kills_nobody(tmp_path: Path) -> None:
    """A supervisor that stood still itself can't blame its children."""
    tight = [cell("steady", index, hang_timeout_seconds=1.0) for index in range(2)]
    with Tree(tmp_path, supervisor("root", tight[0], supervisor("inner", tight[1]))) as tree:
        tree.wait_until_up()
        before = [tree.child(name) for name in ("steady/0", "steady/1", "inner")]
        for pid in (tree.launcher.pid, *tree.seen):
            os.kill(pid, signal.SIGSTOP)
        # A suspension that would look like a hang several times over is a time and nothing else.
        time.sleep(3)
        # Those who watch last: the others may be late.
        for pid in (*reversed(tree.seen), tree.launcher.pid):
            os.kill(pid, signal.SIGCONT)
        resumed = boottime()
        wait_until(
            lambda: (
                {entry["supervisor"] for entry in tree.log("was held up; deadlines are reset")}
                == {"root", "inner"}
            ),
            what="both noticed",
        )
        # Both have looked at their children again, after longer than a hang takes.
        for name in ("root", "inner"):
            wait_until(partial(tree.has_looked_since, resumed + 1.0, name), what=f"{name} has looked")
        assert [tree.child(name) for name in ("steady/0", "steady/1", "inner")] == before
        tree.stop()


def test_too_many_restarts_escalate_to_the_parent_which_restarts_the_subtree(tmp_path: Path) -> None:
    """The subtree's cells all start anew; the cell beside it doesn't."""
    inner = supervisor("inner", cell("steady", 1), cell("steady", 2), max_restarts=1, max_seconds=60)
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner)) as tree:
        tree.wait_until_up()
        outside, old_inner = tree.child("steady/0"), tree.child("inner")
        kill(tree.child("steady/1").pid)
        tree.wait_for_child("steady/1", generation=2)
        # Intensity counts the restarts of all children together.
        kill(tree.child("steady/2").pid)
        new_inner = tree.wait_for_child("inner", generation=2)
        assert new_inner.pid != old_inner.pid
        assert new_inner.last_reason == (
            "escalated: steady/2 ended (killed by SIGKILL), one restart more than 1 within 60 s"
        )
        tree.wait_for_child("steady/1", generation=3)
        tree.wait_for_child("steady/2", generation=2)
        assert tree.child("steady/0") == outside
        tree.stop()


def test_the_roots_escalation_ends_the_tree(tmp_path: Path) -> None:
    """Its state file says who ended, how and how often."""
    with Tree(tmp_path, supervisor("root", cell("steady", 0), cell("steady", 1), max_restarts=0)) as tree:
        tree.wait_until_up()
        kill(tree.child("steady/0").pid)
        tree.wait()
        tree.assert_nobody_left()
        status = tree.state()
        assert status is not None
        assert status.state == "escalated"
        assert status.reason == ("steady/0 ended (killed by SIGKILL), one restart more than 0 within 5 s")


def test_a_killed_supervisor_takes_its_subtree_along_and_is_restarted_with_it(tmp_path: Path) -> None:
    """The cells aren't blamed: nobody saw how they died. Generations and counts go on."""
    inner = supervisor("inner", cell("steady", 1), cell("steady", 2))
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner)) as tree:
        tree.wait_until_up()
        outside, killed = tree.child("steady/0"), tree.child("inner")
        kill(killed.pid)
        tree.wait_for_child("inner", generation=2)
        replacement = tree.wait_for_child("steady/1", generation=2)
        assert tree.child("steady/0") == outside
        assert tree.starts()[-2] == (
            f"steady/1 2 {replacement.pid} False its supervisor ended: killed by SIGKILL"
        )
        tree.stop()


def test_a_process_that_was_forked_as_its_supervisor_died_leaves_nothing(tmp_path: Path) -> None:
    """The next supervisor never hears of it; a file that says how a process ended stays."""
    with Tree(tmp_path, supervisor("root", supervisor("inner", cell("steady")))) as tree:
        tree.wait_until_up()
        empty, told = (tmp_path / f"{pid}.crash" for pid in (ended_process(), ended_process()))
        empty.touch()
        told.write_text("Fatal Python error: Segmentation fault")
        kill(tree.child("inner").pid)
        tree.wait_for_child("inner", generation=2)
        assert (empty.exists(), told.exists()) == (False, True)
        tree.stop()


def ended_process() -> int:
    """Return the pid of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_everything_dies_with_the_launcher(tmp_path: Path) -> None:
    """No process of ours is left soon after its SIGKILL."""
    inner = supervisor("inner", cell("steady", 1))
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner)) as tree:
        tree.wait_until_up()
        tree.launcher.kill()
        tree.launcher.wait()
        tree.assert_nobody_left()


def test_nobody_but_the_launcher_ends_by_sigterm_or_sigint(tmp_path: Path) -> None:
    """A service manager and Ctrl-C signal every process; only the launcher acts."""
    inner = supervisor("inner", cell("steady", 1))
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner)) as tree:
        tree.wait_until_up()
        before = [tree.child(name) for name in ("steady/0", "steady/1", "inner")]
        for pid in tree.seen:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        beat = tree.state("inner")
        assert beat is not None
        wait_until(lambda: (now := tree.state("inner")) and now.heartbeat > beat.heartbeat)
        assert [tree.child(name) for name in ("steady/0", "steady/1", "inner")] == before
        tree.stop()
