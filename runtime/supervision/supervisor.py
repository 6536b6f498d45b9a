"""The supervisor: a Thespian actor process that starts, watches, restarts and stops its children.

It has no thread and no connection. A child's end is seen on its pidfd, which can't be missed or told
twice; Thespian's own ChildActorExited can be both, and is ignored.

What it does at one time:

- It starts the children in `_queue` one after the other: all of them at first, later those of a group.
- A child that ended and takes nobody along waits for its backoff alone.
- A group (`_group`) is restarted together, as the strategy says: those of it that run are stopped one after
  the other, then the rest of the backoff passes, then all go into `_queue`. There is one group at most: if a
  child outside of it ends, whose strategy takes in more, the two become one, and all of it stops again. A
  child of the group that ends while the group is being stopped is stopped, however it ended.
- It stops, for good: nothing starts any more, and all that run are stopped one after the other.

A child that was never up takes nobody along and holds up nobody, whatever the strategy.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import structlog
from thespian.actors import ActorExitRequest, WakeupMessage

from understudy.runtime.cell.control_actor import ControlActor
from understudy.runtime.cell.messages import Failed, PauseChanged, Quiesce, Ready, Stop, Stopped
from understudy.runtime.cell.status import boottime
from understudy.runtime.supervision.backoff import RESTART_CAP_SECONDS, START_CAP_SECONDS
from understudy.runtime.supervision.child import BY_THE_OPERATOR, Child, End, end_orphans
from understudy.runtime.supervision.crash_dump import drop_empty_dumps
from understudy.runtime.supervision.group import Group
from understudy.runtime.supervision.intensity import Intensity
from understudy.runtime.supervision.messages import Restart, StartSupervisor
from understudy.runtime.supervision.orderly_stop import OrderlyStop
from understudy.runtime.supervision.statefile import (
    SupervisorState,
    SupervisorStatus,
    read_state,
    write_state,
)
from understudy.runtime.supervision.strategy import Member, decide
from understudy.runtime.supervision.ticks import MIN_TICK_SECONDS, TICK_SECONDS, Ticks, seconds_to_tick
from understudy.runtime.telemetry.logs import LogFormat, configure_logging, flush_suppressed

# How old its state file grows, up to a tick more, while nothing changes.
HEARTBEAT_SECONDS = 0.9
# A tick that comes later than this was held up: the machine was suspended, or this process was stopped.
LATE_SECONDS = 1.0
PREDECESSOR_POLL_SECONDS = 0.01
# What a child is given less than its supervisor, so that the supervisor still has time to report.
STOP_MARGIN_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class Supervisor(ControlActor):
    """Starts its children in order, restarts what ends, and gives up after too many restarts."""

    cell_host = "understudy.runtime.cell.host.CellHost"

    def __init__(self) -> None:
        super().__init__()
        self._state: SupervisorState = "starting"
        self._reason = ""
        self._children: list[Child] = []
        self._queue: deque[Child] = deque()
        self._awaited: Child | None = None
        self._group: Group | None = None
        # Whether it stops for good.
        self._stopping = False
        self._stop = OrderlyStop(self._ask_to_stop, self._after)
        self._not_drained: list[str] = []
        self._ticks = Ticks(self._after, self._tick)
        self._save_failed = False
        self._saved_at = 0.0

    def receive(self, message: object, sender: Any) -> None:
        """Handle one message; what comes late from an earlier generation is ignored."""
        match message:
            case WakeupMessage():
                message.payload()
            case StartSupervisor():
                self._begin(message, sender)
            case Ready():
                self._on_ready(message)
            case Failed():
                self._on_failed(message)
            case Stopped():
                self._on_stopped(message)
            case Quiesce():
                self._quiesce(self._children)
            case PauseChanged():
                self._hand_down(message)
            case Restart():
                self._restart_for_operator(message)
            case Stop():
                self._begin_stop(message.timeout_seconds)
            case _:
                pass

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.wakeupAfter(timedelta(seconds=seconds), action)

    # Starting

    def _begin(self, start: StartSupervisor, parent: Any) -> None:
        self._start, self._parent = start, parent
        self._directory = Path(start.run.run_directory)
        self._intensity = Intensity(start.spec.max_restarts, start.spec.max_seconds)
        configure_logging(
            level=start.run.log_level,
            format=cast("LogFormat", start.run.log_format),
            context=start.run.log_context(supervisor=start.spec.name),
            rules=start.run.log_rules,
        )
        self._children = [Child(spec, start.run) for spec in start.spec.children]
        previous = read_state(self._directory, start.spec.name)
        known = {child.name: child for child in previous.children} if previous else {}
        for child in self._children:
            if child.name in known:
                child.inherit(known[child.name], start.reason)
        self._queue.extend(self._children)
        self._ticks.plan(TICK_SECONDS)
        self._start_next()

    def _start_next(self) -> None:
        """Start the next child, once the one before it is up or has failed its start."""
        if self._stopping or self._group is not None:
            return
        if self._queue:
            self._awaited = self._queue.popleft()
            self._begin_start(self._awaited)
            return
        self._awaited = None
        if self._state == "starting":
            if self._start.generation > 1:
                drop_empty_dumps(self._directory)
            self._state = "up"
            self._save()
            if not self._start.is_root:
                self.send(
                    self._parent,
                    Ready(name=self._start.spec.name, generation=self._start.generation, pid=os.getpid()),
                )

    def _begin_start(self, child: Child) -> None:
        child.state, child.starts_at = "starting", None
        self._spawn(child)

    def _spawn(self, child: Child) -> None:
        # It may have become part of a group, or been started with it, since this was planned.
        if self._stopping or child.state != "starting" or child.process is not None:
            return
        if not child.predecessor_is_gone():
            self._after(PREDECESSOR_POLL_SECONDS, partial(self._spawn, child))
            return
        child.begins()
        own_class = f"{type(self).__module__}.{type(self).__qualname__}"
        address = self.createActor(self.cell_host if child.is_cell else own_class)
        process = self._forked(address)
        if process is None:
            child.could_not_be_forked()
            _log.error("fork failed", **child.labels)
            self._restart_alone(child, self._backoff(child, 0.0, START_CAP_SECONDS))
            return
        child.began(process, address, boottime())
        self.watch(child.pidfd, partial(self._on_exit, child))
        self.send(address, child.start_message())
        self._ticks.soon()
        self._save()

    def _forked(self, address: Any) -> BaseProcess | None:
        # Thespian keeps what it forked to itself. Sharing its Process object is safe: whichever of us
        # reaps the child first, the exit code stays in the object.
        for forked in reversed(getattr(self._myRef, "_child_procs", [])):
            if forked.childAddr is address:
                process: BaseProcess = forked.childProc
                return process
        return None

    def _named(self, name: str, generation: int) -> Child | None:
        for child in self._children:
            if child.name == name and child.generation == generation and child.process is not None:
                return child
        return None

    def _on_ready(self, message: Ready) -> None:
        child = self._named(message.name, message.generation)
        if child is not None and child.state == "starting":
            self._came_up(child)

    def _came_up(self, child: Child) -> None:
        assert child.process is not None
        child.came_up(boottime())
        _log.info(
            f"{child.kind} up", **child.labels, child_pid=child.process.pid, generation=child.generation
        )
        self._save()
        self._go_on_after(child)

    def _go_on_after(self, child: Child) -> None:
        if child is self._awaited:
            self._start_next()

    # Ends and restarts

    def _on_failed(self, message: Failed) -> None:
        if child := self._named(message.name, message.generation):
            child.failure = message.reason or "failed"

    def _on_stopped(self, message: Stopped) -> None:
        if child := self._named(message.name, message.generation):
            child.says_stopped = True
            child.failure = message.reason

    def _on_exit(self, child: Child) -> None:
        self.unwatch(child.pidfd)
        end = child.ended()
        if end.crash_dump:
            _log.error(
                f"{child.kind} crashed",
                **child.labels,
                reason=end.reason,
                generation=child.generation,
                crash_dump=end.crash_dump,
            )
        if self._stopping:
            self._ended_while_stopping(child, end)
        elif self._group is not None and child in self._group.children:
            self._ended_with_its_group(child, self._group)
        else:
            self._ended_by_itself(child, end)

    def _ended_by_itself(self, child: Child, end: End) -> None:
        now = boottime()
        members = [Member(one.name, one.spec.restart, one.process is not None) for one in self._children]
        decision = decide(self._start.spec.strategy, members, child.name, normal=end.normal)
        if not decision.counts:
            self._ended_for_good(child, end)
            return
        _log.warning(f"{child.kind} exited", **child.labels, reason=end.reason, generation=child.generation)
        if end.counts and not self._intensity.record(now):
            self._escalate(child, end.reason)
            return
        seconds_up = 0.0 if child.up_since is None else now - child.up_since
        cap_seconds = RESTART_CAP_SECONDS if end.counts else START_CAP_SECONDS
        starts_at = self._backoff(child, seconds_up, cap_seconds)
        never_up = child.is_cell and child.up_since is None
        if never_up or (not decision.stop and decision.start == (child.name,)):
            self._restart_alone(child, starts_at)
            return
        reason = f"restarted with {child.name} ({end.reason})"
        self._restart_together(decision.stop, decision.start, starts_at, reason)

    def _ended_for_good(self, child: Child, end: End) -> None:
        """Leave a child as it is that isn't started again; its siblings go on."""
        child.state = "stopped"
        log = _log.info if end.clean else _log.warning
        event = f"{child.kind} {'stopped' if end.normal else 'exited'}"
        log(event, **child.labels, reason=end.reason, restart=child.spec.restart, generation=child.generation)
        if child.is_cell and end.normal and not end.clean:
            self._not_drained.append(child.name)
        elif not child.is_cell and not end.normal:
            # Its successor would do that.
            end_orphans(self._directory, child.name)
        self._save()
        self._go_on_after(child)

    def _backoff(self, child: Child, seconds_up: float, cap_seconds: float) -> float:
        """Return when a child that ended may be started again."""
        delay = child.backoff.next_delay(
            seconds_up=seconds_up, cap_seconds=cap_seconds, random=random.random()
        )
        _log.info("restarting", **child.labels, delay_seconds=round(delay, 3))
        return boottime() + delay

    def _restart_alone(self, child: Child, starts_at: float) -> None:
        child.state, child.starts_at = "backoff", starts_at
        self._after(max(0.0, starts_at - boottime()), partial(self._start_when_due, child, starts_at))
        self._save()
        self._go_on_after(child)

    def _start_when_due(self, child: Child, starts_at: float) -> None:
        # Unless it has become part of a group since, which is started at its own time.
        if child.state == "backoff" and child.starts_at == starts_at and not self._stopping:
            self._begin_start(child)

    def _restart_together(
        self, stop: Collection[str], start: Collection[str], starts_at: float, reason: str
    ) -> None:
        """Stop these children, those that come last first, and then start those.

        Args:
            stop: names of children that run.
            start: names of children that are to run again.
            starts_at: before which none is started, in seconds of CLOCK_BOOTTIME.
            reason: what is told about the ends of those that are stopped.
        """
        start = {*start, *(child.name for child in self._queue)}
        self._queue.clear()
        self._awaited = None
        self._group = group = Group.of(self._children, stop, start, starts_at, self._group)
        for child in group.children:
            if child.process is None:
                group.await_start(child)
            elif not child.stopped_for:
                child.stopped_for = reason
        self._stop_children(
            group.children, self._start.run.shutdown_timeout_seconds, partial(self._group_is_down, group)
        )

    def _ended_with_its_group(self, child: Child, group: Group) -> None:
        _log.info(f"{child.kind} stopped", **child.labels, reason=child.last_reason)
        group.await_start(child)
        self._save()
        self._stop.ended(child)

    def _group_is_down(self, group: Group) -> None:
        self._after(max(0.0, group.starts_at - boottime()), partial(self._start_group, group))

    def _start_group(self, group: Group) -> None:
        if group is self._group and not self._stopping:
            self._group = None
            self._queue.extend(group.to_start)
            self._start_next()

    def _escalate(self, child: Child, reason: str) -> None:
        spec = self._start.spec
        self._state = "escalated"
        self._reason = (
            f"{child.name} ended ({reason}), one restart more than "
            f"{spec.max_restarts} within {spec.max_seconds:g} s"
        )
        child.state = "stopped"
        _log.error("escalated", **child.labels, reason=self._reason)
        self._begin_stop(self._start.run.shutdown_timeout_seconds)

    # Watching

    def _tick(self, late_seconds: float) -> None:
        flush_suppressed()
        now = boottime()
        if late_seconds > LATE_SECONDS:
            self._forgive(late_seconds, now)
        for child in self._children:
            if child.process is not None:
                self._check(child, now)
        if now - self._saved_at > HEARTBEAT_SECONDS:
            self._save()
        self._ticks.plan(self._seconds_to_tick(now))

    def _seconds_to_tick(self, now: float) -> float:
        if self._stopping and self._stop.deadline > now:
            # Who doesn't stop is killed in time for us to say so.
            return max(MIN_TICK_SECONDS, min(TICK_SECONDS, self._stop.deadline - now + MIN_TICK_SECONDS))
        if self._state != "up":
            return TICK_SECONDS
        return seconds_to_tick([child for child in self._children if child.process is not None], now)

    def _forgive(self, late: float, now: float) -> None:
        """Reset every deadline: while this process stood still, its children could not be watched."""
        _log.warning("was held up; deadlines are reset", seconds=round(late, 1))
        self._stop.deadline += late
        for child in self._children:
            child.start_deadline += late
            child.stop_deadline += late
            child.abort_deadline += late
            child.watched_since = now

    def _check(self, child: Child, now: float) -> None:
        if self._stopping or child.state == "stopping":
            deadline = self._stop.deadline if self._stopping else child.stop_deadline
            if now > deadline:
                if not child.killed_for:
                    _log.error("did not stop in time, killed", **child.labels)
                # Again and again, since what hung may have been told to abort, and not have heard it.
                child.kill("did not stop in time", "stop_timeout")
        elif child.state == "starting":
            if child.is_at_work():
                # What it handles first may keep it from saying so.
                self._came_up(child)
            elif now > child.start_deadline:
                child.abort(f"not up within {child.start_timeout_seconds:g} s", "start_timeout", now)
        elif child.state == "up" and (hang := child.hang(now)):
            child.abort(hang, "hang", now)

    # What the operator wants

    def _hand_down(self, message: PauseChanged | Restart) -> None:
        # A child that has no process now looks when it starts, or is started anew as it is.
        for child in self._children:
            if child.process is not None:
                self.send(child.address, message)

    def _restart_for_operator(self, message: Restart) -> None:
        """Restart those of these cells that are ours, without their siblings and as no failure of theirs."""
        if self._stopping:
            return
        self._hand_down(message)
        if names := [child.name for child in self._children if child.name in message.cells]:
            self._restart_together(names, names, boottime(), BY_THE_OPERATOR)

    # Stopping

    def _begin_stop(self, timeout_seconds: float) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._state != "escalated":
            self._state = "stopping"
        self._queue.clear()
        self._group = self._awaited = None
        self._stop_children(self._children, timeout_seconds, self._finish)

    def _stop_children(
        self, children: Sequence[Child], timeout_seconds: float, done: Callable[[], None]
    ) -> None:
        self._quiesce(children)
        self._ticks.soon()
        self._save()
        self._stop.begin(children, timeout_seconds, done)

    def _quiesce(self, children: Sequence[Child]) -> None:
        """Have children ask for nothing more, so that the last to stop have little to wait for."""
        for child in children:
            if child.process is not None:
                self.send(child.address, Quiesce())

    def _ask_to_stop(self, child: Child, seconds: float) -> None:
        child.state, child.stop_deadline = "stopping", self._stop.deadline
        self.send(child.address, Stop(timeout_seconds=max(0.1, seconds - STOP_MARGIN_SECONDS)))
        self._save()

    def _ended_while_stopping(self, child: Child, end: End) -> None:
        child.state = "stopped"
        if not child.is_cell:
            status = read_state(self._directory, child.name)
            self._not_drained += status.not_drained if status is not None else ()
            if not end.normal:
                # Its cells died with it, wherever their drain was.
                self._not_drained.append(f"supervisor {child.name}")
        elif child.up_since is not None and not end.clean:
            self._not_drained.append(child.name)
        _log.info(f"{child.kind} stopped", **child.labels, reason=child.last_reason)
        self._save()
        self._stop.ended(child)

    def _finish(self) -> None:
        if self._state != "escalated":
            self._state = "stopped"
        for child in self._children:
            child.state, child.starts_at = "stopped", None
        self._save()
        flush_suppressed(all_of_them=True)
        if not self._start.is_root:
            late = f"not drained: {', '.join(self._not_drained)}" if self._not_drained else ""
            self.send(
                self._parent,
                Stopped(name=self._start.spec.name, generation=self._start.generation, reason=late),
            )
        self.send(self.myAddress, ActorExitRequest(recursive=False))

    # The state file

    def _save(self) -> None:
        self._saved_at = boottime()
        status = SupervisorStatus(
            name=self._start.spec.name,
            pid=os.getpid(),
            generation=self._start.generation,
            state=self._state,
            reason=self._reason,
            heartbeat=self._saved_at,
            not_drained=tuple(self._not_drained),
            children=tuple(child.status() for child in self._children),
        )
        try:
            write_state(self._directory, status)
        except OSError as error:
            # A full tmpfs is no reason to stop what works; the next tick tries again.
            if not self._save_failed:
                _log.error("state file can't be written", error=str(error))
            self._save_failed = True
        else:
            self._save_failed = False
