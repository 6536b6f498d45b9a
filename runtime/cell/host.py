"""The process of one cell: Thespian in the main thread, the cell's event loop in a second one.

What the main thread hears of its supervisor it hands to the loop with `call_soon_threadsafe`. What the
loop has to say goes into an outbox, and an eventfd that Thespian watches wakes the main thread to send it:
only the main thread may use Thespian.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import util
from typing import Any, cast

import structlog
import uvloop
from thespian.actors import ActorExitRequest, WakeupMessage

from understudy.runtime.app import App
from understudy.runtime.cell.cell import Cell, failure_text
from understudy.runtime.cell.control_actor import ControlActor
from understudy.runtime.cell.failures import ActorFailed, error_text, is_expected
from understudy.runtime.cell.messages import Failed, PauseChanged, Quiesce, Ready, Stop, Stopped
from understudy.runtime.cell.start import CellStart
from understudy.runtime.target import load_app
from understudy.runtime.telemetry.logs import LogFormat, configure_logging, flush_suppressed

EXIT_STOPPED = 0
EXIT_FAILED = 1
# New containers less freed ones, for each delivery that the mailbox may hold; and at least.
GC_PER_DELIVERY = 10
GC_THRESHOLD = 10_000

_log = structlog.get_logger(__name__)


def _log_failure(error: BaseException, **fields: str) -> None:
    exception = None if is_expected(error) else error
    _log.error("cell failed", error=error_text(error), exc_info=exception, **fields)


class CellHost(ControlActor):
    """Hosts one cell from CellStart to the end of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._outbox: deque[Ready | Failed | Stopped] = deque()
        self._cell: Cell | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked = False

    def receive(self, message: object, sender: Any) -> None:
        """Start the cell, or have it drain."""
        match message:
            case CellStart():
                self._begin(message, sender)
            case Quiesce():
                self._in_cell(Cell.quiesce)
            case PauseChanged():
                self._in_cell(Cell.look_at_pause)
            case Stop():
                self._stop_asked = True
                self._in_cell(Cell.stop)
            case WakeupMessage():
                self._beat()
            case _:
                pass

    def _begin(self, start: CellStart, supervisor: Any) -> None:
        self._start, self._supervisor = start, supervisor
        configure_logging(
            level=start.run.log_level,
            format=cast("LogFormat", start.run.log_format),
            context=start.run.log_context(actor=start.spec.actor, cell=start.spec.name),
            rules=start.run.log_rules,
            is_final=True,
        )
        try:
            # In the main thread, since modules may expect to be imported there.
            app = load_app(start.run.target)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
            _log_failure(error, reason="its module could not be imported")
            self._leave(self._failed(error))
            return
        self._beat()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, self._flush)
        threading.Thread(target=self._run, args=(app,), name="cell", daemon=True).start()

    def _beat(self) -> None:
        """Say, now and again, that this thread hears the supervisor; the data thread has a heartbeat too."""
        if self._cell is not None:
            self._cell.beat_control()
        flush_suppressed()
        # Not more often than need be: Thespian takes half a millisecond of a core for a wakeup.
        self.wakeupAfter(timedelta(seconds=self._start.spec.hang_timeout_seconds / 3))

    def _failed(self, error: BaseException) -> Failed:
        return Failed(
            name=self._start.spec.name, generation=self._start.generation, reason=failure_text(error)
        )

    # In the second thread

    def _run(self, app: App) -> None:
        try:
            # Never closed: that would wait for every task, the user's too, before the last word is said.
            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
            problem = runner.run(self._run_cell(app))
            assert self._cell is not None
            if not (self._stop_asked or self._cell.stopped_itself):
                raise RuntimeError("the cell ended without having been asked to")
        except ActorFailed as error:
            _log.error("actor failed", reason=str(error))
            self._post(self._failed(error))
        except BaseException as error:  # noqa: BLE001 - whatever ends the cell must reach its supervisor
            _log_failure(error)
            self._post(self._failed(error))
        else:
            self._post(Stopped(name=self._start.spec.name, generation=self._start.generation, reason=problem))

    async def _run_cell(self, app: App) -> str:
        self._cell = Cell(self._start, app)
        self._loop = asyncio.get_running_loop()
        # Looked at after the loop is known, so that a Stop is seen here or handed over, or both. `run` does
        # the same for a pause.
        if self._stop_asked:
            self._cell.stop()
        return await self._cell.run(self._say_ready)

    def _say_ready(self) -> None:
        # What was imported and opened stays: to look through it again and again for cycles costs up to a
        # tenth of a quick handler's event. Of what comes and goes, a mailbox full is no reason to look.
        gc.freeze()
        assert self._cell is not None
        gc.set_threshold(max(GC_THRESHOLD, GC_PER_DELIVERY * self._cell.capacity))
        self._post(Ready(name=self._start.spec.name, generation=self._start.generation, pid=os.getpid()))

    def _post(self, message: Ready | Failed | Stopped) -> None:
        self._outbox.append(message)
        os.eventfd_write(self._wake, 1)

    # In the main thread

    def _in_cell(self, action: Callable[[Cell], None]) -> None:
        if self._loop is None or self._cell is None:
            return
        try:
            self._loop.call_soon_threadsafe(action, self._cell)
        except RuntimeError:
            # The loop is closed: the cell has ended, and its last word is in the outbox.
            return

    def _flush(self) -> None:
        os.eventfd_read(self._wake)
        while self._outbox:
            message = self._outbox.popleft()
            if isinstance(message, Ready):
                self.send(self._supervisor, message)
            else:
                self._leave(message)

    def _leave(self, last_word: Failed | Stopped) -> None:
        """Say the last word, and end the process as soon as the supervisor has it."""
        self.send(self._supervisor, last_word)
        status = EXIT_FAILED if isinstance(last_word, Failed) else EXIT_STOPPED
        # Runs when Thespian's loop has ended, and before the interpreter would wait for threads of a
        # handler that never end.
        util.Finalize(None, _exit_now, args=(status,), exitpriority=100)
        self.send(self.myAddress, ActorExitRequest(recursive=False))


def _exit_now(status: int) -> None:
    try:
        flush_suppressed(all_of_them=True)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # A handler may have closed them, or nobody may read them any more: that is no failure of the cell.
        os._exit(status)
