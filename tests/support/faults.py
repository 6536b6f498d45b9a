"""What can happen to the app of `support.fault_app` under load, and what is seen of it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from support.account import Kill, Outage, Stage, Suspension, account_of
from support.fault_app import OPS, RECORDED, VICTIMS, Moment, make_event, put
from support.launched import Launched
from support.load import Load
from support.nats import NatsServer
from support.records import count_records, read_records
from support.streams import is_settled
from support.tree import wait_until
from understudy.runtime.supervision.processes import children_of

EVENTS_PER_SECOND = 200
# Well below the hang timeout, and well above it.
SHORT_SECONDS = 1.0
SUSPENDED_SECONDS = 4.0
RECOVERY_SECONDS = 60.0
ESCALATED = 70
DURABLES = tuple(f"faults-{recorded.actor}" for recorded in RECORDED)
STREAM = "FAULTS"
# In the app's URL of its broker, which asks for none, and in a header of each event: no log may show them.
PASSWORD = "Xyzzy-19"
TOKEN = "Plugh-77"
CELLS = tuple(f"{recorded.actor}/0" for recorded in RECORDED)


def end_with_all() -> None:
    """Have SIGTERM and SIGINT end this process so that what it has started ends with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


class Inflicted(NamedTuple):
    """A fault that was made.

    Args:
        at: when it happened, in ns of CLOCK_MONOTONIC.
        over: from when on a run shows that the actor handles again, its old process or another.
        pid: of the process that must not be the one that does; 0 if it may.
    """

    at: int
    over: int
    pid: int


class Deed(NamedTuple):
    """What a process did as it was told, and when in ns of CLOCK_MONOTONIC."""

    what: str
    pid: int
    at: int


class Scene:
    """The app under load with a broker of its own, for the length of a `with` block.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        directory: an empty one, for everything.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.records = directory / "records"
        self._armed, self._done = directory / "armed", directory / "done"
        for folder in (self.records, self._armed, self._done):
            folder.mkdir()
        self.server = NatsServer(directory / "nats")
        self.kills: list[Kill] = []
        self.outages: list[Outage] = []
        self.suspensions: list[Suspension] = []
        self.runs: list[Launched] = []

    def __enter__(self) -> Self:
        self.server.start()
        try:
            self.launch()
            self.run.wait_until_ready()
        except BaseException:
            self._end()
            raise
        self.load = Load(
            self.server.url,
            make_event,
            per_second=EVENTS_PER_SECOND,
            keys=RECORDED[0].keys,
            headers={"Authorization": f"Bearer {TOKEN}"},
        ).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.load.__exit__(None, None, None)
        self._end()

    def _end(self) -> None:
        try:
            if self.runs:
                self.run.__exit__()
        finally:
            self.server.kill()

    @property
    def run(self) -> Launched:
        """The latest run of the app."""
        return self.runs[-1]

    def launch(self) -> None:
        """Start the app, with a log of its own."""
        self.runs.append(
            Launched(
                self._directory / "app",
                "support.fault_app:app",
                servers=self.server.url.replace("//", f"//faults:{PASSWORD}@"),
                log=f"log.{len(self.runs)}",
                environment={"FAULTS_DIRECTORY": str(self._directory)},
            )
        )

    # What is seen

    def processes(self) -> dict[str, int]:
        """Return the pids of the launcher and everything below it, by name."""
        admin, logger, root = self.run.control_plane()
        children = {name: self.run.child(name)["pid"] for name in (OPS, *CELLS)}
        return {"launcher": self.run.process.pid, "admin": admin, "logger": logger, "root": root, **children}

    def is_ready(self) -> bool:
        """Return whether everything is up."""
        return self.run.get("/readyz").status_code == 200

    def wait_until_handled(self) -> None:
        """Return when every actor has handled as many events as are published by now."""
        published = self.load.published + 1
        for recorded in RECORDED:
            wait_until(
                lambda: count_records(self.records, recorded.actor) >= published,  # noqa: B023
                RECOVERY_SECONDS,
                f"{recorded.actor} handled {published}",
            )

    def handled_again(self, actor: str, fault: Inflicted) -> int:
        """Return when the actor first handled an event after the fault, once it has."""

        def first() -> int | None:
            return min(
                (
                    record.at
                    for process in read_records(self.records, actor)
                    for record in process.records
                    if process.pid != fault.pid and record.at > fault.over
                ),
                default=None,
            )

        found: int = wait_until(first, RECOVERY_SECONDS, f"{actor} handles again")
        return found

    def finish(self) -> tuple[dict[str, Stage], int]:
        """End the load, wait until all is settled, stop the run; return each actor's account, exit status."""
        published = self.load.finish()
        wait_until(lambda: is_settled(self.server.url, STREAM, DURABLES), RECOVERY_SECONDS, "all settled")
        status = self.run.stop()
        return {
            recorded.actor: account_of(
                recorded, self.records, published, self.kills, self.outages, self.suspensions
            )
            for recorded in RECORDED
        }, status

    # What is done

    def arm(self, actor: str, moment: Moment, deed: str) -> None:
        """Have an actor do something at its next opportunity."""
        put(self._armed / f"{actor}.{moment}", deed)

    def is_armed(self, actor: str) -> bool:
        """Return whether the actor has yet to do what it was told."""
        return any(self._armed.glob(f"{actor}.*"))

    def deeds(self, actor: str) -> Iterator[Deed]:
        """Return what the actor's processes did as they were told."""
        for path in self._done.glob(f"{actor}.*"):
            at, deed = path.read_text().split(maxsplit=1)
            yield Deed(deed, int(path.name.rpartition(".")[2]), int(at))

    def wait_for_deed(self, actor: str, *, not_before: int) -> Deed:
        """Return which process of the actor did what it was told, and when, once it has."""

        def done() -> Deed | None:
            return next((deed for deed in self.deeds(actor) if deed.at >= not_before), None)

        deed: Deed = wait_until(done, RECOVERY_SECONDS, f"{actor} does it")
        return deed

    def note_death(self, *pids: int) -> int:
        """Note that these processes die, and return when."""
        now = time.monotonic_ns()
        self.kills += [Kill(pid, now) for pid in pids]
        return now

    def pid(self, name: str) -> int:
        """Return a child's process, once it has one."""
        pid: int = wait_until(lambda: self.run.child(name)["pid"], RECOVERY_SECONDS, f"{name} runs")
        return pid

    def cell_pids(self) -> list[int]:
        """Return the processes of all cells."""
        return [pid for name in CELLS if (pid := self.run.child(name)["pid"]) is not None]


# Each takes the scene and the victim, and returns what it did.
Inflict = Callable[[Scene, str], Inflicted]


def in_handler(deed: str, *, is_deadly: bool = True) -> Inflict:
    """Make a fault that a handler of the victim causes."""

    def inflict(scene: Scene, victim: str) -> Inflicted:
        began = time.monotonic_ns()
        scene.arm(victim, "handler", deed)
        done = scene.wait_for_deed(victim, not_before=began)
        if is_deadly:
            scene.kills.append(Kill(done.pid, done.at))
        return Inflicted(at=done.at, over=done.at, pid=done.pid if is_deadly else 0)

    return inflict


def in_start(moment: Moment, deed: str) -> Inflict:
    """Make a fault that hits the victim's next start, and kill the process that it has."""

    def inflict(scene: Scene, victim: str) -> Inflicted:
        scene.arm(victim, moment, deed)
        killed = kill_cell(scene, victim)
        done = scene.wait_for_deed(victim, not_before=killed.at)
        return Inflicted(at=done.at, over=done.at, pid=killed.pid)

    return inflict


def kill_cell(scene: Scene, victim: str) -> Inflicted:
    """SIGKILL the victim's process."""
    pid = scene.pid(f"{victim}/0")
    at = scene.note_death(pid)
    _send(pid, signal.SIGKILL)
    return Inflicted(at=at, over=at, pid=pid)


def kill_at_fork(scene: Scene, victim: str) -> Inflicted:
    """SIGKILL the victim's process, and the next as soon as it can be seen at all."""
    supervisor = scene.pid(OPS)
    before = children_of(supervisor)
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    killed = kill_cell(scene, victim)
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not (forked := {int(pid) for pid in children.read_text().split()} - before):
        assert time.monotonic() < deadline, "nothing was forked"
    os.kill(forked.pop(), signal.SIGKILL)
    now = time.monotonic_ns()
    return Inflicted(at=now, over=now, pid=killed.pid)


def stop_cell(scene: Scene, victim: str) -> Inflicted:
    """SIGSTOP the victim's process for longer than its supervisor bears."""
    pid = scene.pid(f"{victim}/0")
    at = scene.note_death(pid)
    _send(pid, signal.SIGSTOP)
    return Inflicted(at=at, over=at, pid=pid)


def stop_cell_briefly(scene: Scene, victim: str) -> Inflicted:
    """SIGSTOP the victim's process, and SIGCONT it before its supervisor finds that too long."""
    return _suspend([scene.pid(f"{victim}/0")], SHORT_SECONDS)


def suspend_all(scene: Scene, victim: str) -> Inflicted:
    """SIGSTOP the launcher and everything below it, and SIGCONT them: a suspended machine."""
    pids = [scene.run.process.pid, *(process.pid for process in scene.run.processes())]
    suspended = _suspend(pids, SUSPENDED_SECONDS)
    scene.suspensions.append(Suspension(suspended.at, suspended.over))
    return suspended


def _suspend(pids: list[int], seconds: float) -> Inflicted:
    at = time.monotonic_ns()
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    # It is how long they stand still that matters.
    time.sleep(seconds)
    over = time.monotonic_ns()
    for pid in reversed(pids):
        _send(pid, signal.SIGCONT)
    return Inflicted(at=at, over=over, pid=0)


def _send(pid: int, number: signal.Signals) -> None:
    # Among others that fall and rise, it may be gone.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_supervisor(scene: Scene, victim: str) -> Inflicted:
    """SIGKILL the supervisor of the victims."""
    pid, own = scene.pid(OPS), scene.run.child(f"{victim}/0")["pid"]
    # So that it starts nobody that we wouldn't know of.
    os.kill(pid, signal.SIGSTOP)
    at = scene.note_death(*children_of(pid))
    os.kill(pid, signal.SIGKILL)
    return Inflicted(at=at, over=at, pid=own or 0)


def kill_whole_run(name: str) -> Inflict:
    """Make a fault that ends the run, and start the app again."""

    def inflict(scene: Scene, victim: str) -> Inflicted:
        run, processes = scene.run, scene.processes()
        scene.note_death(*scene.cell_pids())
        os.kill(processes[name], signal.SIGKILL)
        status = run.wait()
        assert status == (-signal.SIGKILL if name == "launcher" else ESCALATED), status
        run.assert_nobody_left()
        at = time.monotonic_ns()
        scene.launch()
        scene.run.wait_until_ready()
        return Inflicted(at=at, over=at, pid=processes[f"{victim}/0"])

    return inflict


def kill_broker(scene: Scene, victim: str) -> Inflicted:
    """SIGKILL the broker, and start it again on its store."""
    return _restart_broker(scene, scene.server.kill)


def restart_broker(scene: Scene, victim: str) -> Inflicted:
    """Stop the broker in good order, and start it again."""
    return _restart_broker(scene, scene.server.stop)


def _restart_broker(scene: Scene, end: Callable[[], None]) -> Inflicted:
    began = time.monotonic_ns()
    end()
    gone = time.monotonic_ns()
    scene.server.start()
    # What is handled before that was held when the broker went.
    over = time.monotonic_ns()
    scene.outages.append(Outage(began, gone, over))
    return Inflicted(at=began, over=over, pid=0)


class Fault(NamedTuple):
    """A kind of failure, and what is to be seen of it.

    Args:
        what: happens.
        inflict: makes it happen.
        restarted: which processes are started anew, the victim's own by `{victim}/0`.
        reason: a part of what log and tree say of the first of them; empty where nobody can.
        ends_run: whether the whole run ends with it, so that the next start is what handles again.
        is_alone: whether it needs a run of its own, since one such fault makes the next recovery slower.
    """

    what: str
    inflict: Inflict
    restarted: tuple[str, ...]
    reason: str
    ends_run: bool = False
    is_alone: bool = False


_VICTIM = ("{victim}/0",)
_SUBTREE = (OPS, *(f"{name}/0" for name in VICTIMS))
FAULTS = (
    Fault("exception in `on_start`", in_start("start", "raise"), _VICTIM, "RuntimeError: no database"),
    Fault("`on_start` never ends", in_start("start", "never end"), _VICTIM, "not up within"),
    Fault("death in the actor's `__init__`", in_start("init", "exit"), _VICTIM, "exit status 3"),
    Fault("SIGKILL as soon as it is forked", kill_at_fork, _VICTIM, "killed by SIGKILL"),
    Fault("SIGKILL", kill_cell, _VICTIM, "killed by SIGKILL"),
    Fault("SIGSEGV in a handler", in_handler("segfault"), _VICTIM, "killed by SIGSEGV"),
    Fault("`os._exit(3)` in a handler", in_handler("exit"), _VICTIM, "exit status 3"),
    Fault("MemoryError in a handler, below a limit", in_handler("want memory", is_deadly=False), (), ""),
    Fault("a blocked event loop", in_handler("block"), _VICTIM, "hang: "),
    Fault("a thread that keeps the GIL", in_handler("hold the GIL"), _VICTIM, "hang: "),
    Fault("the main thread, Thespian's, is stuck", in_handler("stick"), _VICTIM, "hang: "),
    Fault(f"SIGSTOP, after {SHORT_SECONDS:g} s SIGCONT", stop_cell_briefly, (), ""),
    Fault("SIGSTOP for ever", stop_cell, _VICTIM, "hang: "),
    Fault(f"SIGSTOP of everything, after {SUSPENDED_SECONDS:g} s SIGCONT", suspend_all, (), ""),
    Fault(
        "SIGKILL of the victims' supervisor", kill_supervisor, _SUBTREE, "killed by SIGKILL", is_alone=True
    ),
    Fault("SIGKILL of the root supervisor", kill_whole_run("root"), (), "root supervisor", ends_run=True),
    Fault("SIGKILL of Thespian's admin", kill_whole_run("admin"), (), "admin", ends_run=True),
    Fault("SIGKILL of Thespian's logger", kill_whole_run("logger"), (), "logger", ends_run=True),
    Fault("SIGKILL of the launcher", kill_whole_run("launcher"), (), "", ends_run=True),
    Fault("the broker: SIGKILL and start", kill_broker, (), ""),
    Fault("the broker: stop and start", restart_broker, (), ""),
)
