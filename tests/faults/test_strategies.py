"""Groups of children that are restarted together, and children that end for good, on real processes."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from support.tree import Tree, cell, kill, supervisor, wait_until
from understudy.actors.supervision import Strategy
from understudy.runtime.cell.status import boottime
from understudy.runtime.specs import CellSpec
from understudy.runtime.supervision.processes import is_alive, read_process

BOTH: tuple[Strategy, ...] = ("one_for_all", "rest_for_one")
# Many times what a stand-in takes to end if it doesn't wait.
UNHEARD_SECONDS = 1.0


def is_zombie(pid: int | None) -> bool:
    process = None if pid is None else read_process(pid)
    return process is not None and process.is_zombie


def steady(count: int) -> list[CellSpec]:
    return [cell("steady", index) for index in range(count)]


def test_one_for_all_stops_the_others_in_reverse_order_and_starts_all_in_order(tmp_path: Path) -> None:
    """As one restart; who was stopped for it isn't blamed, and is told for whom."""
    root = supervisor("root", *steady(3), strategy="one_for_all", max_restarts=1, max_seconds=60)
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        before = len(tree.history())
        kill(tree.child("steady/1").pid)
        for index in range(3):
            tree.wait_for_child(f"steady/{index}", generation=2)
        assert tree.history()[before:] == [
            *("stop steady/2", "stop steady/0"),
            *("start steady/0", "start steady/1", "start steady/2"),
        ]
        told = [line.split(maxsplit=4) for line in tree.starts()[-3:]]
        assert [(name, crashed, reason) for name, _, _, crashed, reason in told] == [
            ("steady/0", "False", "restarted with steady/1 (killed by SIGKILL)"),
            ("steady/1", "True", "killed by SIGKILL"),
            ("steady/2", "False", "restarted with steady/1 (killed by SIGKILL)"),
        ]
        assert [entry["cell"] for entry in tree.log("cell exited")] == ["steady/1"]
        # The three are one restart of the one that is borne; the next is too much.
        kill(tree.child("steady/0").pid)
        tree.wait()
        status = tree.state()
        assert status is not None
        assert status.reason == "steady/0 ended (killed by SIGKILL), one restart more than 1 within 60 s"


def test_rest_for_one_leaves_those_before_alone(tmp_path: Path) -> None:
    """Those after it are stopped and started, and the last one dies alone."""
    with Tree(tmp_path, supervisor("root", *steady(4), strategy="rest_for_one")) as tree:
        tree.wait_until_up()
        first, before = tree.child("steady/0"), len(tree.history())
        kill(tree.child("steady/1").pid)
        tree.wait_for_child("steady/3", generation=2)
        assert tree.history()[before:] == [
            *("stop steady/3", "stop steady/2"),
            *("start steady/1", "start steady/2", "start steady/3"),
        ]
        before = len(tree.history())
        kill(tree.child("steady/3").pid)
        tree.wait_for_child("steady/3", generation=3)
        assert tree.history()[before:] == ["start steady/3"]
        assert tree.child("steady/0") == first
        tree.stop()


def test_a_subtree_is_a_sibling_like_any_other(tmp_path: Path) -> None:
    """It is drained as a whole, and its cells are told that it was for the strategy's sake."""
    inner = supervisor("inner", cell("steady", 1), cell("steady", 2))
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner, strategy="one_for_all")) as tree:
        tree.wait_until_up()
        before = len(tree.history())
        kill(tree.child("steady/0").pid)
        tree.wait_for_child("inner", generation=2)
        assert tree.history()[before:] == [
            *("stop steady/2", "stop steady/1"),
            *("start steady/0", "start steady/1", "start steady/2"),
        ]
        assert tree.child("inner").last_reason == "restarted with steady/0 (killed by SIGKILL)"
        tree.stop()


@pytest.mark.parametrize("strategy", BOTH)
def test_a_sibling_that_does_not_stop_for_the_group_is_killed(tmp_path: Path, strategy: Strategy) -> None:
    """After the run's shutdown timeout, and then the group goes on; what it handled isn't suspect."""
    root = supervisor("root", cell("steady"), cell("stubborn"), strategy=strategy)
    with Tree(tmp_path, root, stop_seconds=3) as tree:
        tree.wait_until_up()
        stubborn = tree.child("stubborn/0")
        kill(tree.child("steady/0").pid)
        replacement = tree.wait_for_child("stubborn/0", generation=2)
        assert replacement.last_reason == "did not stop in time"
        assert not replacement.crashed
        assert stubborn.pid is not None
        assert not is_alive(stubborn.pid, stubborn.start_ticks)
        assert tree.child("steady/0").generation == 2
        tree.launcher.kill()


def test_a_member_that_dies_while_its_group_stops_is_stopped_and_counts_nothing(tmp_path: Path) -> None:
    """As in OTP: one restart is borne here, and two have died."""
    root = supervisor(
        "root",
        *(cell("steady", 0), cell("steady", 1), cell("stubborn")),
        strategy="one_for_all",
        max_restarts=1,
        max_seconds=60,
    )
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        kill(tree.child("steady/1").pid)
        stubborn = tree.wait_for_child("stubborn/0", state="stopping")
        kill(tree.child("steady/0").pid)
        tree.wait_for_child("steady/0", state="backoff")
        kill(stubborn.pid)
        tree.wait_for_child("stubborn/0", generation=2)
        assert [line.split()[:4] for line in tree.starts()[3:]] == [
            ["steady/0", "2", str(tree.child("steady/0").pid), "True"],
            ["steady/1", "2", str(tree.child("steady/1").pid), "True"],
            ["stubborn/0", "2", str(tree.child("stubborn/0").pid), "False"],
        ]
        assert [entry["cell"] for entry in tree.log("restarting")] == ["steady/1"]
        tree.launcher.kill()


def test_a_death_outside_of_the_group_widens_it(tmp_path: Path) -> None:
    """It counts, and every child is started once."""
    root = supervisor(
        "root",
        *(cell("steady", 0), cell("steady", 1), cell("stubborn")),
        strategy="rest_for_one",
        max_restarts=2,
        max_seconds=60,
    )
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        before = len(tree.history())
        kill(tree.child("steady/1").pid)
        stubborn = tree.wait_for_child("stubborn/0", state="stopping")
        kill(tree.child("steady/0").pid)
        tree.wait_for_child("steady/0", state="backoff")
        kill(stubborn.pid)
        tree.wait_for_child("stubborn/0", generation=2)
        assert tree.history()[before:] == [
            *("stop stubborn/0", "start steady/0", "start steady/1", "start stubborn/0")
        ]
        assert [entry["cell"] for entry in tree.log("restarting")] == ["steady/1", "steady/0"]
        tree.launcher.kill()


def test_a_death_while_the_group_starts_begins_it_anew(tmp_path: Path) -> None:
    """The one that is just starting is stopped again; the one whose turn hadn't come starts once."""
    (tmp_path / "go").touch()
    root = supervisor(
        "root", cell("steady", 0), cell("slow"), cell("steady", 1), strategy="one_for_all", max_seconds=60
    )
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        (tmp_path / "go").unlink()
        kill(tree.child("steady/1").pid)
        wait_until(lambda: tree.history()[-1] == "start slow/0", what="slow starting again")
        before = len(tree.history())
        kill(tree.child("steady/0").pid)
        wait_until(lambda: tree.history()[before:][-1:] == ["start slow/0"], what="and again")
        (tmp_path / "go").touch()
        tree.wait_for_child("steady/1", generation=2)
        assert tree.history()[before:] == [
            *("stop slow/0", "start steady/0", "start slow/0", "start steady/1")
        ]
        assert [tree.child(name).generation for name in ("steady/0", "slow/0", "steady/1")] == [3, 3, 2]
        tree.stop()


def test_a_child_that_cannot_start_takes_nobody_along_but_goes_with_its_group(tmp_path: Path) -> None:
    """It waits alone, whatever the strategy; a sibling's restart starts it too, once at a time."""
    root = supervisor("root", cell("failing"), cell("steady"), strategy="one_for_all")
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        up = tree.child("steady/0")
        waiting = tree.wait_for_child("failing/0", state="backoff", generation=6)
        assert waiting.failures >= 6
        assert waiting.starts_at is not None
        assert waiting.starts_at < boottime() + 2
        assert tree.child("steady/0") == up
        before = len(tree.history())
        kill(up.pid)
        tree.wait_for_child("steady/0", generation=2)
        # The first of them fails again, and may be started once more before or after the second is.
        assert list(dict.fromkeys(tree.history()[before:])) == ["start failing/0", "start steady/0"]
        tree.wait_for_child("failing/0", state="backoff", generation=waiting.generation + 2)
        generations = [int(line.split()[1]) for line in tree.starts() if line.startswith("failing")]
        assert generations == list(range(1, len(generations) + 1))
        tree.stop()


def test_a_child_that_waits_alone_waits_with_its_group_from_then_on(tmp_path: Path) -> None:
    """Its own backoff passes while the group is still being stopped, and starts nothing."""
    root = supervisor("root", cell("failing"), cell("steady"), cell("stubborn"), strategy="one_for_all")
    with Tree(tmp_path, root, stop_seconds=3) as tree:
        tree.wait_until_up()
        tree.wait_for_child("failing/0", state="backoff", generation=3)
        kill(tree.child("steady/0").pid)
        tree.wait_for_child("stubborn/0", generation=2)
        history = tree.history()
        asked = history.index("stop stubborn/0")
        # The first of them fails again, and may be started once more before the second is.
        started = list(dict.fromkeys(history[asked + 1 :]))
        assert started[:2] == ["start failing/0", "start steady/0"]
        # In its turn with the group, and not once more by a timer of its own.
        generations = [int(line.split()[1]) for line in tree.starts() if line.startswith("failing")]
        assert generations == list(range(1, len(generations) + 1))
        tree.launcher.kill()


def test_a_stop_ends_a_group_that_is_being_restarted(tmp_path: Path) -> None:
    """Nothing is started any more."""
    root = supervisor("root", cell("steady"), cell("stubborn"), strategy="one_for_all")
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        kill(tree.child("steady/0").pid)
        stubborn = tree.wait_for_child("stubborn/0", state="stopping")
        tree.launcher.terminate()
        wait_until(lambda: (now := tree.state()) and now.state == "stopping", what="the root stopping")
        kill(stubborn.pid)
        tree.wait()
        assert len(tree.starts()) == 2
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ("stubborn/0",))


# Children that end for good


@pytest.mark.parametrize("strategy", ["one_for_one", *BOTH])
def test_a_transient_child_that_stops_itself_is_left_stopped(tmp_path: Path, strategy: Strategy) -> None:
    """It touches nobody and counts nothing, and the drain asks nothing of it."""
    root = supervisor(
        "root", cell("brief", restart="transient"), cell("steady"), strategy=strategy, max_restarts=0
    )
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        up = tree.child("steady/0")
        (tmp_path / "finish").touch()
        ended = tree.wait_for_child("brief/0", state="stopped")
        assert (ended.last_reason, ended.pid, ended.crashed) == ("stopped by itself", None, False)
        assert tree.child("steady/0") == up
        tree.stop()
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ())
        assert len(tree.starts()) == 2


def test_children_that_stop_themselves_wait_until_their_supervisor_has_heard_it(tmp_path: Path) -> None:
    """Their supervisor stands still: who has ended unheard has died, and would be started again."""
    children = [cell("brief", index, restart="transient") for index in range(4)]
    with Tree(tmp_path, supervisor("root", *children, max_restarts=0)) as tree:
        tree.wait_until_up()
        pids = [tree.child(child.name).pid for child in children]
        os.kill(tree.root, signal.SIGSTOP)
        try:
            (tmp_path / "finish").touch()
            with contextlib.suppress(AssertionError):
                wait_until(lambda: all(map(is_zombie, pids)), UNHEARD_SECONDS)
        finally:
            os.kill(tree.root, signal.SIGCONT)
        for child in children:
            ended = tree.wait_for_child(child.name, state="stopped")
            assert (ended.last_reason, ended.generation) == ("stopped by itself", 1)
        tree.stop()


def test_a_transient_child_that_dies_is_restarted(tmp_path: Path) -> None:
    """That was no stop of its own, and neither is an exit with status 0 that it hasn't announced."""
    # Until the file is taken away, it is restarted and exits again.
    root = supervisor("root", cell("brief", restart="transient"), max_restarts=1000)
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        kill(tree.child("brief/0").pid)
        assert tree.wait_for_child("brief/0", generation=2).last_reason == "killed by SIGKILL"
        (tmp_path / "exit").touch()
        wait_until(lambda: tree.child("brief/0").last_reason == "exit status 0")
        (tmp_path / "exit").unlink()
        tree.wait_for_child("brief/0", generation=3)
        tree.stop()


def test_a_transient_child_that_had_stopped_itself_starts_again_with_its_group(tmp_path: Path) -> None:
    """As OTP does; a temporary one does not, though it was none of its doing."""
    root = supervisor(
        "root",
        *(cell("brief", restart="transient"), cell("steady", 0)),
        *(cell("steady", 1, restart="temporary"), cell("steady", 2)),
        strategy="one_for_all",
    )
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        (tmp_path / "finish").touch()
        tree.wait_for_child("brief/0", state="stopped")
        (tmp_path / "finish").unlink()
        before = len(tree.history())
        kill(tree.child("steady/2").pid)
        tree.wait_for_child("steady/2", generation=2)
        assert tree.history()[before:] == [
            *("stop steady/1", "stop steady/0"),
            *("start brief/0", "start steady/0", "start steady/2"),
        ]
        assert tree.child("brief/0").state == "up"
        temporary = tree.child("steady/1")
        assert (temporary.state, temporary.last_reason) == (
            "stopped",
            "restarted with steady/2 (killed by SIGKILL)",
        )
        tree.stop()


@pytest.mark.parametrize("strategy", ["one_for_one", *BOTH])
def test_a_temporary_child_that_dies_is_left_dead(tmp_path: Path, strategy: Strategy) -> None:
    """No restart, no count, nobody else touched."""
    root = supervisor(
        "root",
        *(cell("steady", 0, restart="temporary"), cell("failing", restart="temporary"), cell("steady", 1)),
        strategy=strategy,
        max_restarts=0,
    )
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        assert tree.child("failing/0").state == "stopped"
        up = tree.child("steady/1")
        kill(tree.child("steady/0").pid)
        ended = tree.wait_for_child("steady/0", state="stopped")
        assert ended.last_reason == "killed by SIGKILL"
        assert tree.child("steady/1") == up
        tree.stop()
        assert [line.split()[0] for line in tree.starts()] == ["steady/0", "failing/0", "steady/1"]


def test_a_transient_supervisor_is_restarted_when_killed_and_not_when_it_gave_up(tmp_path: Path) -> None:
    """Giving up is the reason `shutdown` in OTP, which is no abnormal end."""
    inner = supervisor("inner", cell("steady", 1), restart="transient", max_restarts=0)
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner)) as tree:
        tree.wait_until_up()
        outside = tree.child("steady/0")
        kill(tree.child("inner").pid)
        tree.wait_for_child("inner", generation=2)
        kill(tree.wait_for_child("steady/1", generation=2).pid)
        ended = tree.wait_for_child("inner", state="stopped")
        assert ended.generation == 2
        assert ended.last_reason == (
            "escalated: steady/1 ended (killed by SIGKILL), one restart more than 0 within 5 s"
        )
        assert tree.child("steady/0") == outside
        tree.stop()


def test_a_temporary_supervisor_that_is_killed_leaves_nobody(tmp_path: Path) -> None:
    """Its subtree is dead although no successor looks after it; the rest goes on."""
    below = supervisor("below", cell("steady", 1))
    inner = supervisor("inner", below, cell("steady", 2), restart="temporary")
    with Tree(tmp_path, supervisor("root", cell("steady", 0), inner, max_restarts=0)) as tree:
        tree.wait_until_up()
        outside = tree.child("steady/0")
        subtree = [tree.child(name) for name in ("inner", "below", "steady/1", "steady/2")]
        kill(tree.child("inner").pid)
        tree.wait_for_child("inner", state="stopped")
        wait_until(
            lambda: not any(one.pid is not None and is_alive(one.pid, one.start_ticks) for one in subtree),
            what="the subtree dead",
        )
        assert tree.child("steady/0") == outside
        tree.stop()


# Suspensions and processes that never were


def test_a_short_suspension_of_one_cell_restarts_nobody(tmp_path: Path) -> None:
    """Shorter than the hang timeout, and it beats again before anyone looks."""
    tight = [cell("steady", index, hang_timeout_seconds=5.0) for index in range(2)]
    with Tree(tmp_path, supervisor("root", *tight, max_restarts=0)) as tree:
        tree.wait_until_up()
        before = [tree.child(name) for name in ("steady/0", "steady/1")]
        view = tree.state()
        assert view is not None
        pid = before[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        # Long enough for the supervisor to have looked at it several times.
        wait_until(lambda: (now := tree.state()) and now.heartbeat > view.heartbeat + 1.5)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: (now := tree.state()) and now.heartbeat > view.heartbeat + 8)
        assert [tree.child(name) for name in ("steady/0", "steady/1")] == before
        tree.stop()


def test_a_main_thread_that_is_stuck_is_a_hang(tmp_path: Path) -> None:
    """Although its data thread goes on, since it would hear no Stop."""
    deaf = cell("deaf", hang_timeout_seconds=1.0)
    # Each that takes its place is deaf, too.
    with Tree(tmp_path, supervisor("root", deaf, cell("steady"), max_restarts=1000)) as tree:
        tree.wait_until_up()
        up = tree.child("steady/0")
        reason = tree.wait_for_child("deaf/0", generation=2).last_reason
        assert reason.startswith("hang: no heartbeat of its control thread for ")
        assert tree.child("steady/0") == up
        tree.stop()


def test_a_cell_that_dies_within_its_fork_is_noticed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thespian never tells of it; its pidfd does, at once."""
    monkeypatch.setenv("STILLBORN", str(tmp_path / "stillborn"))
    (tmp_path / "stillborn").touch()
    with Tree(tmp_path, supervisor("root", cell("steady", 0), cell("steady", 1), max_restarts=0)) as tree:
        tree.wait_until_up()
        replacement = tree.wait_for_child("steady/0", generation=2)
        assert replacement.last_reason == "exit status 9"
        assert sorted(line.split()[:2] for line in tree.starts()) == [["steady/0", "2"], ["steady/1", "1"]]
        tree.stop()


def test_sixty_cells_on_three_levels_start_restart_and_stop_in_order(tmp_path: Path) -> None:
    """Depth first down, and the same way back up."""
    outer = []
    for number in range(4):
        inner = [
            supervisor(f"inner-{number}-{half}", *(cell(f"steady-{number}-{half}", at) for at in range(7)))
            for half in range(2)
        ]
        outer.append(
            supervisor(f"outer-{number}", *inner, cell(f"steady-{number}", 0), strategy="rest_for_one")
        )
    root = supervisor("root", *outer, strategy="one_for_all")
    with Tree(tmp_path, root) as tree:
        tree.wait_until_up()
        started = [line.split()[0] for line in tree.starts()]
        assert len(started) == 60
        assert started == sorted(started)
        before = len(tree.history())
        kill(tree.child("outer-1").pid)
        wait_until(lambda: len(tree.starts()) == 120, what="all started again")
        assert [line.split()[0] for line in tree.starts()[60:]] == started
        own = [name for name in started if name.startswith("steady-1")]
        # Those of the killed supervisor died with it.
        assert tree.history()[before : before + 45] == [
            f"stop {name}" for name in reversed(started) if name not in own
        ]
        wait_until(lambda: (status := tree.state()) and all(one.state == "up" for one in status.children))
        before = len(tree.history())
        tree.stop()
        assert tree.history()[before:] == [f"stop {name}" for name in reversed(started)]
        status = tree.state()
        assert status is not None
        assert (status.state, status.not_drained) == ("stopped", ())
