"""The launcher: from settings to a running tree, and down again in the right order.

Start: the port is probed, the run directory made, the actor system forked and checked; only then come the
event loop, HTTP, the connection and the topology, since whatever was open at the fork would be inherited.
Stop: readiness goes, the root drains its tree, the actor system ends, what is left is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, get_args

import structlog
import uvloop

# Loaded before the fork, though used only below it: a cell then starts in milliseconds.
import understudy.runtime.cell.host  # noqa: F401
from understudy.config.connection import redact_url
from understudy.config.settings import Settings
from understudy.runtime.admin.nodes import Node
from understudy.runtime.admin.operator import Operator, semantic
from understudy.runtime.admin.pending import Pending
from understudy.runtime.admin.port import check_port
from understudy.runtime.broker.embedded import EmbeddedServer
from understudy.runtime.cell.messages import PauseChanged, Stop
from understudy.runtime.cell.start import RunSpec
from understudy.runtime.jetstream import connection
from understudy.runtime.jetstream.topology import ensure_topology
from understudy.runtime.jetstream.topology_report import report_topology
from understudy.runtime.specs import AppSpec, cell_names
from understudy.runtime.supervision.control import ControlPlane, ControlPlaneError
from understudy.runtime.supervision.control_processes import DEATHS_SETTLE_SECONDS, ControlProcesses
from understudy.runtime.supervision.crash_dump import dump_crashes_into, take_crash_dumps
from understudy.runtime.supervision.dead_cells import release_dead_cells
from understudy.runtime.supervision.health import missing_parts, silent_supervisors
from understudy.runtime.supervision.messages import Restart, StartSupervisor
from understudy.runtime.supervision.processes import kill_descendants, reap_children
from understudy.runtime.supervision.run_directory import RunDirectory
from understudy.runtime.supervision.self_check import check_control_plane
from understudy.runtime.supervision.statefile import Cause, read_state
from understudy.runtime.supervision.tree import Supervisor, read_tree
from understudy.runtime.supervision.watched_process import WatchedProcess
from understudy.runtime.telemetry.logs import configure_logging, flush_suppressed, resolve_format
from understudy.runtime.telemetry.node import node_name

CLEAN = 0
ESCALATED = 70
DRAIN_TIMED_OUT = 75
KILLED = 130

ROOT_CLASS = "understudy.runtime.supervision.supervisor.Supervisor"
POLL_SECONDS = 0.25
# The same once everything is up; what can't wait so long has an event of its own.
IDLE_POLL_SECONDS = 1.0
# What the root is given beyond the drain's timeout, within which it kills and reports.
ROOT_MARGIN_SECONDS = 2.0
SHUTDOWN_SECONDS = 2.0
# Signals within it of the first one are the same wish: coreutils' timeout signals its child and then its
# whole group, and a terminal's Ctrl-C reaches both us and who started us, who often passes it on.
SAME_SIGNAL_SECONDS = 0.5
# How long what was cancelled may take to end before it is cancelled again.
CANCEL_SECONDS = 1.0

_log = structlog.get_logger(__name__)
if TYPE_CHECKING:
    from understudy.runtime.admin.metrics import Metrics


class System:
    """One run of an app, in the launcher's process.

    Args:
        target: `module:attribute`, which only the cells import.
        app: what it declares.
        settings: validated; they name the embedded server's address where there is one.
        embedded: the nats-server that the caller started and will stop.
    """

    def __init__(
        self, *, target: str, app: AppSpec, settings: Settings, embedded: EmbeddedServer | None
    ) -> None:
        self._target = target
        self._app = app
        self._settings = settings
        self._spare = [embedded.pid] if embedded is not None and embedded.pid is not None else []
        self._directory: RunDirectory
        self._broker_state = "not connected yet"
        # Of the monotonic clock; None until the tree is drained.
        self._drains_since: float | None = None
        self._ending = False
        # When the first signal came, of the monotonic clock.
        self._signalled_at: float | None = None
        # What the drain has left undone.
        self._left: tuple[str, ...] = ()
        self._node: Node
        self._metrics: Metrics
        self._pending = Pending(app.consumers)
        self._tell_root: Callable[[object], Coroutine[Any, Any, None]]

    def run(self) -> int:
        """Run until a signal or a failure ends it, and return the exit status; call it in the main thread.

        The first SIGTERM or SIGINT drains, the second kills. No process of ours is left on return.

        Raises:
            ConfigurationError: the port or the run directory can't be used, or the topology clashes.
            BrokerUnreachable, BrokerRefused: there is no broker to work with.
            ControlPlaneError: Thespian doesn't start, or isn't the version that we can close.
        """
        http = self._settings.http
        log_format = resolve_format(self._settings.log.format)
        install_logging = partial(
            configure_logging,
            format=log_format,
            context={"app": self._app.name, "node": node_name()},
            rules=self._settings.log.rules(),
        )
        install_logging(level=self._settings.log.level)
        check_port(http.host, http.port)
        self._directory = RunDirectory.create(self._app.name)
        self._node = Node(
            app=self._app.name,
            run_id=self._directory.run_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            revision=self._app.revision,
            version=semantic(metadata.version("understudy")),
        )
        try:
            if taken := self._directory.sweep(
                {consumer.actor: consumer.cells for consumer in self._app.consumers}
            ):
                _log.info("found what an earlier run left", cell_files=taken)
            plane = ControlPlane.start(partial(self._begin_process, install_logging))
            check_control_plane(plane)
            run = RunSpec(
                app=self._app.name,
                target=self._target,
                run_id=self._directory.run_id,
                run_directory=str(self._directory.path),
                launcher_pid=os.getpid(),
                revision=self._app.revision,
                connection=self._settings.connection(),
                log_level=self._settings.log.level,
                log_format=log_format,
                shutdown_timeout_seconds=self._settings.shutdown_timeout_seconds,
                log_rules=self._settings.log.rules(),
                trace_relation=self._settings.traces.relation,
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                status = runner.run(self._watch(plane, run))
        finally:
            # A user's subprocess isn't bound to our life as our own are.
            if left := kill_descendants(spare=self._spare):
                _log.error("processes are left", pids=left)
            for pid, dump in take_crash_dumps(self._directory.path):
                _log.error("process crashed", child_pid=pid, crash_dump=dump)
            self._directory.close()
        _log.info("stopped", exit_status=status)
        return status

    def _begin_process(self, install_logging: Callable[..., None]) -> None:
        # Of what Thespian's own processes say, only what goes wrong matters to anyone.
        install_logging(level="warning")
        dump_crashes_into(self._directory.path)

    # In the event loop

    async def _watch(self, plane: ControlPlane, run: RunSpec) -> int:
        """Serve until the tree has ended, a process of the control plane dies, or a second signal comes."""
        # Loaded after the fork, so that no cell carries an HTTP server that it never uses.
        from understudy.runtime.admin.metrics import Metrics
        from understudy.runtime.admin.probes import build_routes
        from understudy.runtime.admin.server import HttpServer

        self._stop, self._kill = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._control = ControlProcesses(plane.admin_pid, plane.logger_pid)
        http = HttpServer(self._settings.http.host, self._settings.http.port)
        self._metrics = Metrics(self._app, self._directory.path, self, get_args(Cause), self._pending.scraped)
        http.start(build_routes(self, self._settings.http.host))
        # Told before anything can go wrong: readiness is asked there most when it doesn't come.
        servers = [redact_url(server) for server in run.connection.servers]
        _log.info("starting", http=http.url, nats=servers)
        try:
            status = await self._first(
                self._serve(plane, run, http.url), self._killed(), self._control_plane_died()
            )
            self._ending = True
            if status == CLEAN:
                await self._end_control_plane(plane)
            return status
        finally:
            await http.stop()

    async def _first(self, *outcomes: Coroutine[Any, Any, int]) -> int:
        """Return the outcome that comes first; of several at once, the later named."""
        tasks = [asyncio.create_task(outcome) for outcome in outcomes]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in reversed(tasks) if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            # And again after a time: a task misses it if an answer comes just then (3.11's wait_for).
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    await asyncio.gather(*tasks, return_exceptions=True)

    def _on_signal(self) -> None:
        now = time.monotonic()
        # Not any in a drain: an operator may have begun that, and a service manager knows nothing of it.
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at > SAME_SIGNAL_SECONDS:
            self._kill.set()
        self._stop.set()

    async def _killed(self) -> int:
        await self._kill.wait()
        _log.error("killed by a second signal")
        return KILLED

    async def _control_plane_died(self) -> int:
        await self._control.one_died()
        self._control.name_the_dead()
        return ESCALATED

    async def _serve(self, plane: ControlPlane, run: RunSpec, url: str) -> int:
        """Start the tree, keep it up until a signal, and drain it."""
        starting = asyncio.create_task(self._prepare_broker(run))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return CLEAN
        client = await starting
        asking = asyncio.create_task(self._pending.keep_asking(client), name="understudy-pending")
        try:
            address, pid = plane.create(ROOT_CLASS)
            root = WatchedProcess(pid)
            self._tell_root = partial(plane.tell, address)
            await self._tell_root(StartSupervisor(run=run, spec=self._app.root, generation=1, is_root=True))
            operator = Operator(self, self._node, self._directory.path)
            await operator.serve(client)
            await self._keep_up(root, url)
            if not root.ended.is_set():
                await self._drain(root)
            left_behind = await release_dead_cells(client, self._directory.cell_files(), self._app.consumers)
            status = await self._verdict(root, left_behind)
            await operator.say_last(status, self._left)
            return status
        finally:
            asking.cancel()
            await connection.close(client)

    async def _prepare_broker(self, run: RunSpec) -> Any:
        client = await connection.connect(
            run.connection, name=f"{run.app}/launcher {self._node.name}", on_state=self._on_broker_state
        )
        self._broker_state = "connected"
        report_topology(await ensure_topology(client, self._app, apply=True))
        return client

    def _on_broker_state(self, state: str) -> None:
        self._broker_state = state

    async def _keep_up(self, root: WatchedProcess, url: str) -> None:
        """Return when a signal came, or the root or its files are gone; say once that everything is up."""
        said = False
        server = WatchedProcess(self._spare[0]) if self._spare else None
        ends = [asyncio.create_task(event.wait()) for event in (self._stop, root.ended)]
        try:
            while not (self._stop.is_set() or root.ended.is_set()):
                if server is not None and server.ended.is_set():
                    # Nobody starts it again, but nothing is lost either: the next run finds its store.
                    _log.error("the embedded nats-server died; stop this run and start it anew")
                    server = None
                reap_children([*self._spare, *self._control.pids])
                if self._directory.is_gone():
                    # Supervisors would take cells for hung, and none could start; the next run has a new one.
                    _log.error("the run directory is gone", path=str(self._directory.path))
                    return
                if not said and not self.not_ready():
                    said = True
                    _log.info("ready", http=url)
                flush_suppressed()
                seconds = IDLE_POLL_SECONDS if said else POLL_SECONDS
                await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    async def _drain(self, root: WatchedProcess) -> None:
        timeout = self._settings.shutdown_timeout_seconds
        self._drains_since = time.monotonic()
        _log.info("draining", timeout_seconds=timeout)
        with contextlib.suppress(ControlPlaneError, TimeoutError):
            async with asyncio.timeout(timeout + ROOT_MARGIN_SECONDS):
                await self._tell_root(Stop(timeout_seconds=timeout))
                await root.ended.wait()

    async def _verdict(self, root: WatchedProcess, left_behind: list[str]) -> int:
        """Return the exit status that the root's last word amounts to.

        Args:
            root: its process.
            left_behind: dead cells with deliveries that nobody has.
        """
        if self._directory.is_gone():
            return ESCALATED
        status = read_state(self._directory.path, self._app.root.name)
        if status is not None and status.state == "escalated":
            _log.error("the tree gave up", supervisor=status.name, reason=status.reason)
            return ESCALATED
        if self._drains_since is not None and not root.ended.is_set():
            self._left = (f"supervisor {self._app.root.name}",)
        elif status is None or status.state != "stopped":
            # A dead admin takes the root along, and then is what is to be named.
            await asyncio.sleep(2 * DEATHS_SETTLE_SECONDS)
            self._control.name_the_dead()
            return ESCALATED
        else:
            # One that was killed in the drain is both.
            self._left = tuple(dict.fromkeys([*status.not_drained, *left_behind]))
        if self._left:
            _log.error("not everything was drained", left=list(self._left))
            return DRAIN_TIMED_OUT
        return CLEAN

    async def _end_control_plane(self, plane: ControlPlane) -> None:
        # What goes wrong here costs nothing: whatever is left is killed.
        with contextlib.suppress(ControlPlaneError, TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await plane.shutdown()
                await self._control.ended()

    # What the operator does

    @property
    def is_draining(self) -> bool:
        """Whether the drain has begun."""
        return self._stop.is_set()

    @property
    def drain_seconds(self) -> float:
        """How long the drain took so far; 0 before it."""
        return 0.0 if self._drains_since is None else time.monotonic() - self._drains_since

    def generations(self) -> dict[str, int]:
        """Return every cell's name with its generation, 0 for one that was never started."""
        started = {cell.name: cell.supervision.generation for cell in self.tree().cells()}
        return {name: started.get(name, 0) for name in cell_names(self._app.root)}

    async def pause_changed(self) -> None:
        """Have every cell look anew whether it is paused.

        Raises:
            ControlPlaneError: the root doesn't hear.
        """
        await self._tell_root(PauseChanged())

    async def restart(self, cells: tuple[str, ...]) -> None:
        """Have these cells drain and start again.

        Raises:
            ControlPlaneError: the root doesn't hear.
        """
        await self._tell_root(Restart(cells=cells))

    def begin_drain(self) -> float:
        """Drain as at the first signal, and return how long that may take, in seconds."""
        self._stop.set()
        return self._settings.shutdown_timeout_seconds + ROOT_MARGIN_SECONDS

    # What the probes ask

    def not_alive(self) -> dict[str, str]:
        """Return the supervisors that don't answer; that this is answered shows that the launcher does."""
        return silent_supervisors(self.tree())

    def not_ready(self) -> dict[str, str]:
        """Return what isn't at work: the broker, supervisors, cells; all of it while draining."""
        if self._drains_since is not None or self._ending:
            return {"launcher": "draining"}
        broker = {} if self._broker_state == "connected" else {"broker": self._broker_state}
        return broker | missing_parts(self.tree())

    def tree(self) -> Supervisor:
        """Return the tree as it is now."""
        return read_tree(self._directory.path, self._app.root.name)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as an Accept header asks for them, and their type."""
        return self._metrics.render(accept)
