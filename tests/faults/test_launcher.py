"""The whole command on real processes: what each death and each signal leads to."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.launched import UP_SECONDS, Launched, publish
from support.nats import NatsServer
from support.tree import kill, wait_until
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.api import consumer_info, request
from understudy.runtime.jetstream.pinning import pinned_id
from understudy.runtime.supervision.processes import Process, is_alive
from understudy.runtime.system import SAME_SIGNAL_SECONDS

Launch = Callable[..., Launched]


def start_subprocesses(run: Launched, url: str) -> list[Process]:
    """Have a handler start two subprocesses, one of them in a session of its own, and return them."""
    before = {process.pid for process in run.processes()}
    publish(url, {"value": 1, "deed": "spawn"}, {"value": 2, "deed": "spawn apart"})
    wait_until(lambda: len(run.handled()) == 2)
    started = [process for process in run.processes() if process.pid not in before]
    assert len(started) == 2
    return started


def pinned(url: str, stream: str, durable: str) -> str:
    """Return under which pin id a consumer is owned, empty if it is free."""

    async def ask() -> str:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")
        info = await consumer_info(client, stream, durable)
        await connection.close(client)
        assert info is not None
        return pinned_id(info)

    return asyncio.run(ask())


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launch]:
    """Start `understudy run` on an app of support.apps, and end it after the test."""
    started: list[Launched] = []

    def start(app: str = "app", *, servers: str = nats_server.url, port: int = 0) -> Launched:
        run = Launched(tmp_path, f"support.apps:{app}", servers=servers, port=port)
        started.append(run)
        return run

    yield start
    for run in started:
        run.__exit__()


def test_sigterm_drains_and_leaves_nothing(launch: Launch) -> None:
    """Exit 0, no process, no file of the run."""
    run = launch().wait_until_ready()
    assert run.stop() == 0
    run.assert_nobody_left()
    assert list(run.runs.rglob("*.cell")) == []
    assert [entry["event"] for entry in run.log() if entry["event"] in {"ready", "draining", "stopped"}] == [
        "ready",
        "draining",
        "stopped",
    ]


def test_a_killed_cell_is_back_at_once_and_nobody_else_is_touched(
    launch: Launch, nats_server: NatsServer
) -> None:
    """From SIGKILL to the next event handled; what it takes on a quiet machine, docs/faults.md says."""
    run = launch().wait_until_ready()
    killed, bystander = run.child("recorder/0"), run.child("bystander/0")
    kill(killed["pid"])
    began = time.time()
    publish(nats_server.url, {"value": 1})
    wait_until(run.handled)
    assert run.handled()[0][2] - began < 15
    assert run.wait_for_child("recorder/0", generation=2)["last_reason"] == "killed by SIGKILL"
    assert run.child("bystander/0") == bystander
    assert run.stop() == 0


DEEDS = {
    # First, since the others' replacements bear it.
    "fail": "PoolGone: the pool is closed",
    "segfault": "killed by SIGSEGV",
    "exit": "exit status 0",
    "block": "hang: no heartbeat for ",
    # Both threads stand still, and which of them last ran is chance.
    "hold the GIL": "hang: no heartbeat ",
    "stick": "hang: no heartbeat of its control thread for ",
}


def test_whatever_ends_a_cell_is_named_in_log_and_tree_and_ends_nobody_else(
    launch: Launch, nats_server: NatsServer
) -> None:
    """A segfault would spin for ever under Thespian's handlers; no hang is one of the data thread alone."""
    run = launch("enduring").wait_until_ready()
    bystander = run.child("bystander/0")
    seen = 0
    for generation, (deed, reason) in enumerate(DEEDS.items(), start=1):
        publish(nats_server.url, {"value": generation, "deed": deed})
        assert run.wait_for_child("recorder/0", generation + 1)["last_reason"].startswith(reason)
        entry = run.log("cell exited")[-1]
        assert (entry["cell"], entry["generation"]) == ("recorder/0", generation)
        assert entry["reason"].startswith(reason)
        # Of what a signal ends, that of a hang too, there is where it was.
        dumps = [crashed["crash_dump"] for crashed in run.log("cell crashed")][seen:]
        seen += len(dumps)
        assert bool(dumps) == (deed not in ("exit", "fail"))
        assert all("most recent call first" in dump for dump in dumps)
        if deed in ("segfault", "block"):
            assert "support/apps.py" in dumps[0]
        assert run.child("bystander/0") == bystander
    run.process.kill()


def test_a_handler_that_gets_no_memory_has_failed_and_its_cell_goes_on(
    launch: Launch, nats_server: NatsServer
) -> None:
    """Under a limit of its own; a process that the kernel ends for memory shows SIGKILL."""
    run = launch().wait_until_ready()
    publish(nats_server.url, {"value": 1, "deed": "want memory"}, {"value": 2})
    wait_until(lambda: [value for value, _, _ in run.handled()] == [2])
    wait_until(lambda: run.log("handler failed"))
    assert run.log("handler failed")[0]["error"].startswith("MemoryError")
    assert run.child("recorder/0")["generation"] == 1
    assert run.stop() == 0


@pytest.mark.parametrize(
    ("app", "cell", "reason"),
    [("unborn", "unborn/0", "exit status 3"), ("endless", "endless/0", "not up within 1 s")],
)
def test_a_cell_that_does_not_come_up_is_tried_again_and_says_why(
    launch: Launch, app: str, cell: str, reason: str
) -> None:
    """With a growing backoff that the tree shows, and nobody else is touched."""
    run = launch(app)
    wait_until(lambda: run.log("cell up"))
    wait_until(lambda: run.child(cell)["generation"] >= 3)
    waiting = wait_until(lambda: (now := run.child(cell))["state"] == "backoff" and now)
    assert waiting["last_reason"] == reason
    assert waiting["failures"] >= 3
    assert waiting["starts_at"] is not None
    assert [entry["cell"] for entry in run.log("cell up")] == ["bystander/0"]
    assert run.stop() == 0


def test_an_actor_that_stops_itself_leaves_the_run_ready_and_its_durable_free(
    launch: Launch, nats_server: NatsServer
) -> None:
    """The tree shows it as stopped; neither readiness nor the drain miss it."""
    run = launch("brief").wait_until_ready()
    bystander = run.child("bystander/0")
    publish(nats_server.url, {"value": 1, "deed": "stop"})
    wait_until(lambda: run.child("brief/0")["state"] == "stopped")
    assert run.child("brief/0")["last_reason"] == "stopped by itself"
    assert run.get("/readyz").json() == {"ready": True, "failing": {}}
    assert run.child("bystander/0") == bystander
    assert pinned(nats_server.url, "TESTS", "brief-brief") == ""
    assert run.stop() == 0
    run.assert_nobody_left()
    assert list(run.runs.rglob("*.cell")) == []


def test_a_delivery_that_kills_its_process_does_not_use_up_the_restarts(
    launch: Launch, nats_server: NatsServer
) -> None:
    """It is tried three times and then a dead letter, under a supervisor that bears one restart."""
    run = launch("narrow").wait_until_ready()
    publish(nats_server.url, {"value": 1, "deed": "segfault"}, {"value": 2})
    run.wait_for_child("recorder/0", generation=4)
    wait_until(lambda: [value for value, _, _ in run.handled()] == [2])
    assert run.child("recorder/0")["generation"] == 4
    assert run.stop() == 0


@pytest.mark.parametrize("killed", ["cell", "supervisor"])
def test_what_a_handler_forked_dies_with_its_cell(
    launch: Launch, nats_server: NatsServer, killed: str
) -> None:
    """It has the cell's connection, so that the server would go on delivering to the dead cell."""
    run = launch("forking").wait_until_ready()
    publish(nats_server.url, {"value": 1, "deed": "fork"})
    wait_until(run.handled)
    cell = run.child("recorder/0")["pid"]
    (forked,) = [process for process in run.processes() if process.parent_pid == cell]
    kill(cell if killed == "cell" else run.child("inner")["pid"])
    run.wait_for_child("recorder/0", generation=2)
    wait_until(lambda: not is_alive(forked.pid, forked.start_ticks))
    assert run.stop() == 0


def test_what_a_handler_forked_does_not_go_on_as_the_cell(launch: Launch, nats_server: NatsServer) -> None:
    """It has the cell's ledger, in which it would mark as done what nobody has handled."""
    run = launch().wait_until_ready()
    cell = run.child("recorder/0")
    bodies = [{"value": value, "deed": "fork and return" if value % 10 == 0 else ""} for value in range(40)]
    publish(nats_server.url, *bodies)
    wait_until(lambda: len(run.handled()) >= 40)
    assert sorted(value for value, _, _ in run.handled()) == list(range(40))
    assert {pid for _, pid, _ in run.handled()} == {cell["pid"]}
    assert run.child("recorder/0")["generation"] == 1
    assert run.stop() == 0


def test_a_cell_whose_handler_has_closed_its_output_drains_cleanly(
    launch: Launch, nats_server: NatsServer
) -> None:
    """What can't be flushed at the end is no failure of the drain."""
    run = launch().wait_until_ready()
    publish(nats_server.url, {"value": 1, "deed": "close output"})
    wait_until(run.handled)
    assert run.stop() == 0


def test_a_killed_supervisor_is_restarted_with_its_subtree(launch: Launch) -> None:
    """The cell outside the subtree keeps its process."""
    run = launch().wait_until_ready()
    outside, inside = run.child("recorder/0"), run.child("bystander/0")
    kill(run.child("inner")["pid"])
    run.wait_for_child("inner", generation=2)
    assert run.wait_for_child("bystander/0", generation=2)["pid"] != inside["pid"]
    assert run.child("recorder/0") == outside
    assert run.stop() == 0


@pytest.mark.parametrize(("process", "index"), [("admin", 0), ("logger", 1), ("root supervisor", 2)])
def test_without_its_control_plane_everything_stops_with_70(
    launch: Launch, nats_server: NatsServer, process: str, index: int
) -> None:
    """The log names who died; nothing is recreated, nobody is left, what handlers started included."""
    run = launch().wait_until_ready()
    start_subprocesses(run, nats_server.url)
    kill(run.control_plane()[index])
    assert run.wait() == 70
    run.assert_nobody_left()
    assert [entry["process"] for entry in run.log("control plane died")] == [process]


def test_nobody_but_handlers_subprocesses_is_left_after_the_launchers_sigkill(
    launch: Launch, nats_server: NatsServer
) -> None:
    """Each process of ours is bound to its parent's life; theirs aren't, which is documented."""
    run = launch().wait_until_ready()
    theirs = start_subprocesses(run, nats_server.url)
    apart = {one.pid for one in theirs}
    ours = [one for one in run.processes() if one.pid not in apart]
    run.process.kill()
    run.wait()
    wait_until(lambda: not any(is_alive(one.pid, one.start_ticks) for one in ours), what="ours gone")
    assert all(is_alive(one.pid, one.start_ticks) for one in theirs)
    for one in theirs:
        kill(one.pid)


def test_too_many_restarts_end_the_tree_with_70_and_say_why(launch: Launch) -> None:
    """Which child, how it ended, how often."""
    run = launch("strict").wait_until_ready()
    kill(run.child("recorder/0")["pid"])
    assert run.wait() == 70
    run.assert_nobody_left()
    (entry,) = run.log("the tree gave up")
    assert entry["reason"] == "recorder/0 ended (killed by SIGKILL), one restart more than 0 within 5 s"


def test_a_second_signal_kills_with_130(launch: Launch) -> None:
    """Also while a cell refuses to drain."""
    run = launch("stubborn").wait_until_ready()
    run.process.terminate()
    wait_until(lambda: run.log("draining"))
    # Before, it counts as the first.
    time.sleep(SAME_SIGNAL_SECONDS)
    began = time.monotonic()
    run.process.terminate()
    assert run.wait() == 130
    # A drain may take 25 s.
    assert time.monotonic() - began < 20
    run.assert_nobody_left()


def test_two_signals_at_once_drain_as_one_does(launch: Launch) -> None:
    """So they come from `timeout`, and from Ctrl-C below a process that passes it on."""
    run = launch().wait_until_ready()
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 0
    assert run.log("drained")
    run.assert_nobody_left()


def test_a_drain_that_takes_too_long_ends_with_75_and_names_who(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the shutdown timeout the cell is killed."""
    monkeypatch.setenv("UNDERSTUDY_SHUTDOWN_TIMEOUT_SECONDS", "1")
    run = launch("stubborn").wait_until_ready()
    assert run.stop() == 75
    run.assert_nobody_left()
    (entry,) = run.log("not everything was drained")
    assert entry["left"] == ["stubborn/0"]


def test_a_drain_names_a_dead_cell_whose_deliveries_nobody_has(
    launch: Launch, nats_server: NatsServer
) -> None:
    """Its replacement doesn't start, so that they wait for the next run, or for the server's patience."""
    run = launch("once").wait_until_ready()
    publish(nats_server.url, {"value": 1})
    # Whatever is fetched is held, and it handles the first of it at once.
    wait_until(lambda: run.handled_path.exists())
    kill(run.child("starts-once/0")["pid"])
    wait_until(
        lambda: (
            run.child("starts-once/0")["state"] == "backoff" and run.child("starts-once/0")["generation"] > 1
        )
    )
    assert run.stop() == 75
    run.assert_nobody_left()
    (entry,) = run.log("not everything was drained")
    assert entry["left"] == ["starts-once/0"]


def test_a_hanging_root_does_not_keep_the_launcher(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed after the timeout, with all below it."""
    monkeypatch.setenv("UNDERSTUDY_SHUTDOWN_TIMEOUT_SECONDS", "1")
    run = launch().wait_until_ready()
    os.kill(run.control_plane()[2], signal.SIGSTOP)
    assert run.stop() == 75
    run.assert_nobody_left()


def test_a_handlers_subprocesses_are_ended_with_the_tree(launch: Launch, nats_server: NatsServer) -> None:
    """They have no bond to their parent's life, so the launcher ends them."""
    run = launch().wait_until_ready()
    start_subprocesses(run, nats_server.url)
    assert run.stop() == 0
    run.assert_nobody_left()


def test_a_cell_that_cannot_start_leaves_the_rest_at_work_and_readiness_false(launch: Launch) -> None:
    """Readiness says which and why; liveness and the other cell are fine."""
    run = launch("half_up")
    wait_until(lambda: run.log("cell up"))
    assert run.get("/livez").json() == {"alive": True, "failing": {}}
    wait_until(lambda: run.child("never-starts/0")["state"] == "backoff")
    ready = run.get("/readyz")
    assert ready.status_code == 503
    assert list(ready.json()["failing"]) == ["cell never-starts/0"]
    assert "RuntimeError: no database" in ready.json()["failing"]["cell never-starts/0"]
    assert "in on_start" in run.log("cell failed")[0]["exception"]
    assert run.stop() == 0


def test_a_cell_that_our_own_error_ends_says_so_without_a_traceback(
    launch: Launch, nats_server: NatsServer
) -> None:
    """It would come again with each restart, and says nothing that the sentence doesn't."""

    async def delete_stream() -> None:
        client = await connection.connect(ConnectionSpec(servers=(nats_server.url,)), name="test")
        await request(client, "STREAM.DELETE.TESTS")
        await connection.close(client)

    run = launch().wait_until_ready()
    asyncio.run(delete_stream())
    entry = wait_until(lambda: run.log("cell failed"))[0]
    assert entry["error"].startswith("BrokerError: ")
    assert "gone from the server" in entry["error"]
    assert "exception" not in entry


def test_what_a_killed_run_left_is_found_by_the_next(launch: Launch, nats_server: NatsServer) -> None:
    """Its cell files move into the new run's folder, and the old folder goes."""
    first = launch().wait_until_ready()
    first.process.kill()
    first.wait()
    first.assert_nobody_left()
    assert len(list(first.runs.rglob("*.cell"))) == 2
    second = launch()
    wait_until(lambda: len(second.log("ready")) == 2, UP_SECONDS)
    assert [entry["cell_files"] for entry in second.log("found what an earlier run left")] == [2]
    assert len([path for path in (second.runs / "tests").iterdir() if path.is_dir()]) == 1
    assert second.stop() == 0


def test_a_run_whose_directory_is_deleted_drains_and_ends_with_70(
    launch: Launch, nats_server: NatsServer
) -> None:
    """No cell could start again, so a new run has to; this one still settles what it has."""
    run = launch().wait_until_ready()
    publish(nats_server.url, *({"value": value} for value in range(200)))
    wait_until(run.handled)
    # The launcher looks now and then; supervisors that look before it must not take the cells for hung.
    os.kill(run.process.pid, signal.SIGSTOP)
    # All at once: supervisors still write into it.
    shutil.rmtree(run.runs.rename(run.runs.with_name("gone")))
    time.sleep(2.5)
    os.kill(run.process.pid, signal.SIGCONT)
    assert run.wait() == 70
    run.assert_nobody_left()
    assert [Path(entry["path"]).parent.parent for entry in run.log("the run directory is gone")] == [run.runs]
    assert not run.log("cell exited")
    launch()
    wait_until(lambda: {value for value, _, _ in run.handled()} == set(range(200)))
    assert len(run.handled()) == 200


def test_readiness_tells_of_a_lost_broker_and_liveness_does_not(
    launch: Launch, nats_server: NatsServer
) -> None:
    """And readiness comes back with it."""
    run = launch().wait_until_ready()
    assert (run.get("/livez").status_code, run.get("/readyz").status_code) == (200, 200)
    nats_server.kill()
    # A cell may hear of it before the launcher.
    wait_until(lambda: run.get("/readyz").json()["failing"].get("broker") == "disconnected")
    assert run.get("/readyz").status_code == 503
    assert run.get("/livez").status_code == 200
    nats_server.start()
    run.process.kill()


def test_a_silent_supervisor_fails_liveness(launch: Launch) -> None:
    """Its parent kills it about then; the root has nobody above it but whoever asks the probe."""
    run = launch().wait_until_ready()
    os.kill(run.control_plane()[2], signal.SIGSTOP)
    wait_until(lambda: run.get("/livez").status_code == 503)
    assert list(run.get("/livez").json()["failing"]) == ["supervisor root"]
    run.process.kill()


def test_the_tree_is_for_loopback_names_only(launch: Launch) -> None:
    """A page that rebinds its name to 127.0.0.1 sends its own name."""
    run = launch().wait_until_ready()
    assert run.get("/api/tree").json()["name"] == "root"
    assert run.get("/api/tree", Host="evil.example").status_code == 403
    assert run.get("/readyz", Host="evil.example").status_code == 200
    assert run.stop() == 0
