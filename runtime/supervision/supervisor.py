"""The supervisor: a Thespian actor process that starts, watches, restarts and stops its children.

It has no thread and no connection. A child's end is seen on its pidfd, which can't be missed or told
twice; Thespian's own ChildActorExited can be both, and is ignored.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import structlog
from thespian.actors import ActorExitRequest, WakeupMessage

from understudy.runtime.cell.control_actor import ControlActor
from understudy.runtime.cell.messages import Failed, Quiesce, Ready, Stop, Stopped
from understudy.runtime.cell.status import boottime
from understudy.runtime.supervision.backoff import RESTART_CAP_SECONDS, START_CAP_SECONDS
from understudy.runtime.supervision.child import CLEAN_EXIT, Child
from understudy.runtime.supervision.intensity import Intensity
from understudy.runtime.supervision.messages import StartSupervisor
from understudy.runtime.supervision.statefile import (
    SupervisorState,
    SupervisorStatus,
    read_state,
    write_state,
)
from understudy.runtime.supervision.strategy import one_for_one
from understudy.runtime.telemetry.logs import LogFormat, configure_logging

TICK_SECONDS = 0.5
# A tick that comes later than this was held up: the machine was suspended, or this process was stopped.
LATE_SECONDS = 1.0
PREDECESSOR_POLL_SECONDS = 0.01
# What a child is given less than its supervisor, so that the supervisor still has time to report.
STOP_MARGIN_SECONDS = 0.5
# How many deaths in handling are borne for one that counts, as many as a delivery may cause by default.
MAX_CRASHES = 3

_log = structlog.get_logger(__name__)


class Supervisor(ControlActor):
    """Starts its children in order, restarts one that ends, and gives up after too many restarts."""

    cell_host = "understudy.runtime.cell.host.CellHost"

    def __init__(self) -> None:
        super().__init__()
        self._state: SupervisorState = "starting"
        self._reason = ""
        self._children: list[Child] = []
        self._to_start: deque[Child] = deque()
        self._awaited: Child | None = None
        self._stopping = False
        self._stop_deadline = 0.0
        self._to_stop: deque[Child] = deque()
        self._stop_turn: Child | None = None
        self._not_drained: list[str] = []
        self._next_tick = 0.0
        self._save_failed = False

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
                self._quiesce()
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
            context={"app": start.run.app, "supervisor": start.spec.name},
        )
        self._children = [Child(spec, start.run) for spec in start.spec.children]
        previous = read_state(self._directory, start.spec.name)
        known = {child.name: child for child in previous.children} if previous else {}
        for child in self._children:
            if child.name in known:
                child.inherit(known[child.name], start.reason)
        self._to_start.extend(self._children)
        self._next_tick = boottime() + TICK_SECONDS
        self._after(TICK_SECONDS, self._tick)
        self._start_next()

    def _start_next(self) -> None:
        """Start the next child, once the one before it is up or has failed its first start."""
        if self._stopping:
            return
        if self._to_start:
            self._awaited = self._to_start.popleft()
            self._spawn(self._awaited)
            return
        self._awaited = None
        if self._state == "starting":
            self._state = "up"
            self._save()
            if not self._start.is_root:
                self.send(
                    self._parent,
                    Ready(name=self._start.spec.name, generation=self._start.generation, pid=os.getpid()),
                )

    def _spawn(self, child: Child) -> None:
        if self._stopping:
            return
        if not child.predecessor_is_gone():
            self._after(PREDECESSOR_POLL_SECONDS, partial(self._spawn, child))
            return
        child.restarts += child.generation > 0
        child.generation += 1
        own_class = f"{type(self).__module__}.{type(self).__qualname__}"
        address = self.createActor(self.cell_host if child.is_cell else own_class)
        process = self._forked(address)
        if process is None:
            child.last_reason = "its process could not be forked"
            _log.error("fork failed", **child.labels)
            self._restart_later(child, seconds_up=0.0, cap_seconds=START_CAP_SECONDS)
            return
        child.began(process, address, boottime())
        self.watch(child.pidfd, partial(self._on_exit, child))
        self.send(address, child.start_message())
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
        if child is None or child.state != "starting":
            return
        child.came_up(boottime())
        _log.info(f"{child.kind} up", **child.labels, child_pid=message.pid, generation=child.generation)
        self._save()
        self._go_on_after(child)

    def _go_on_after(self, child: Child) -> None:
        if child is self._awaited:
            self._start_next()

    # Ends and restarts

    def _on_failed(self, message: Failed) -> None:
        if child := self._named(message.name, message.generation):
            child.failure = message.reason or "failed"

    def _on_exit(self, child: Child) -> None:
        self.unwatch(child.pidfd)
        now = boottime()
        was_up, suspects = child.up_since is not None, child.suspect_deaths
        seconds_up = now - child.up_since if child.up_since is not None else 0.0
        reason = child.ended()
        if self._stopping:
            self._ended_while_stopping(child)
            return
        _log.warning(f"{child.kind} exited", **child.labels, reason=reason, generation=child.generation)
        # A cell that can't start says nothing about its siblings, and waits longer and longer instead. A
        # delivery that kills its process is tried a few times more and then a dead letter.
        by_a_delivery = child.suspect_deaths > suspects and child.suspect_deaths % MAX_CRASHES != 0
        counts = (was_up and not by_a_delivery) or not child.is_cell
        if counts and not self._intensity.record(now):
            self._escalate(child, reason)
            return
        for name in one_for_one([sibling.name for sibling in self._children], child.name):
            affected = next(sibling for sibling in self._children if sibling.name == name)
            self._restart_later(
                affected,
                seconds_up=seconds_up,
                cap_seconds=RESTART_CAP_SECONDS if counts else START_CAP_SECONDS,
            )

    def _restart_later(self, child: Child, *, seconds_up: float, cap_seconds: float) -> None:
        delay = child.backoff.next_delay(
            seconds_up=seconds_up, cap_seconds=cap_seconds, random=random.random()
        )
        child.state = "backoff"
        _log.info("restarting", **child.labels, delay_seconds=round(delay, 3))
        self._after(delay, partial(self._spawn, child))
        self._save()
        self._go_on_after(child)

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

    def _tick(self) -> None:
        now = boottime()
        late = now - self._next_tick
        self._next_tick = now + TICK_SECONDS
        self._after(TICK_SECONDS, self._tick)
        if late > LATE_SECONDS:
            self._forgive(late, now)
        if self._stopping:
            self._kill_what_is_late(now)
        else:
            for child in self._children:
                self._check(child, now)
        self._save()

    def _forgive(self, late: float, now: float) -> None:
        """Reset every deadline: while this process stood still, its children could not be watched."""
        _log.warning("was held up; deadlines are reset", seconds=round(late, 1))
        self._stop_deadline += late
        for child in self._children:
            child.start_deadline += late
            child.watched_since = now

    def _check(self, child: Child, now: float) -> None:
        if child.process is None:
            return
        if child.state == "starting" and now > child.start_deadline:
            child.kill(f"not up within {child.start_timeout_seconds:g} s")
        elif child.state == "up" and now - child.watched_since > child.hang_timeout_seconds:
            age = now - max(child.heartbeat(), child.watched_since)
            if age > child.hang_timeout_seconds:
                child.kill(f"hang: no heartbeat for {age:.1f} s")

    # Stopping

    def _begin_stop(self, timeout_seconds: float) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._state != "escalated":
            self._state = "stopping"
        self._stop_deadline = boottime() + timeout_seconds
        self._to_stop.extend(reversed(self._children))
        self._quiesce()
        self._save()
        self._stop_next()

    def _quiesce(self) -> None:
        """Have every child ask for nothing more, so that the last to stop have little to wait for."""
        for child in self._children:
            if child.process is not None:
                self.send(child.address, Quiesce())

    def _stop_next(self) -> None:
        """Stop the last child that runs, and the one before it when that is gone or has had its share."""
        while self._to_stop:
            child = self._stop_turn = self._to_stop.popleft()
            if child.process is None:
                child.state = "stopped"
                continue
            remaining = max(0.0, self._stop_deadline - boottime())
            child.state = "stopping"
            self.send(child.address, Stop(timeout_seconds=max(0.1, remaining - STOP_MARGIN_SECONDS)))
            # Strictly one after the other, many children would not fit into the time: none may take
            # more than half of its even share before the next is asked too.
            share = remaining / (2 * (len(self._to_stop) + 1))
            self._after(share, partial(self._stop_next_if_turn, child))
            self._save()
            return
        self._stop_turn = None
        if all(child.process is None for child in self._children):
            self._finish()

    def _stop_next_if_turn(self, child: Child) -> None:
        if child is self._stop_turn:
            self._stop_next()

    def _on_stopped(self, message: Stopped) -> None:
        if (child := self._named(message.name, message.generation)) and message.reason:
            child.failure = message.reason

    def _ended_while_stopping(self, child: Child) -> None:
        child.state = "stopped"
        if not child.is_cell and (status := read_state(self._directory, child.name)):
            self._not_drained += status.not_drained
        elif child.up_since is not None and child.last_reason != CLEAN_EXIT:
            self._not_drained.append(child.name)
        _log.info(f"{child.kind} stopped", **child.labels, reason=child.last_reason)
        self._save()
        if child is self._stop_turn or self._stop_turn is None:
            self._stop_next()

    def _kill_what_is_late(self, now: float) -> None:
        if now <= self._stop_deadline:
            return
        for child in self._children:
            if child.process is not None and not child.killed_for:
                _log.error("did not stop in time, killed", **child.labels)
                child.kill("did not stop in time")

    def _finish(self) -> None:
        if self._state != "escalated":
            self._state = "stopped"
        self._save()
        if not self._start.is_root:
            late = f"not drained: {', '.join(self._not_drained)}" if self._not_drained else ""
            self.send(
                self._parent,
                Stopped(name=self._start.spec.name, generation=self._start.generation, reason=late),
            )
        self.send(self.myAddress, ActorExitRequest(recursive=False))

    # The state file

    def _save(self) -> None:
        status = SupervisorStatus(
            name=self._start.spec.name,
            pid=os.getpid(),
            generation=self._start.generation,
            state=self._state,
            reason=self._reason,
            heartbeat=boottime(),
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
