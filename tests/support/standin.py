"""A stand-in for the cell's process, so that supervisors are tested without a broker.

What it does is told by its actor's name: `steady` stays up, `failing` fails each start, `slow` gets ready
when the file `go` is in the run directory, `late` never gets ready, `stubborn` doesn't stop, `brief` stops
itself when the file `finish` is there and exits with 0 when `exit` is, `deaf` has no heartbeat in its main
thread. It keeps its heartbeats in a real cell file.

The first one forked while the file that STILLBORN names is there takes that away and dies at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from thespian.actors import ActorExitRequest, WakeupMessage

from understudy.runtime.cell.cellfile import CellFile, Identity, boot_id
from understudy.runtime.cell.control_actor import ControlActor
from understudy.runtime.cell.messages import Failed, Ready, Stop, Stopped
from understudy.runtime.cell.start import CellStart
from understudy.runtime.cell.status import CellState
from understudy.runtime.supervision.supervisor import Supervisor

BEAT_SECONDS = 0.1
POLL = timedelta(seconds=0.02)


class StandInCell(ControlActor):
    """Answers as a cell would."""

    def __init__(self) -> None:
        super().__init__()
        stillborn = os.environ.get("STILLBORN")
        if stillborn is not None and Path(stillborn).exists():
            Path(stillborn).unlink()
            os._exit(9)

    def receive(self, message: object, sender: Any) -> None:
        """Start or stop."""
        if isinstance(message, CellStart):
            self._begin(message, sender)
        elif isinstance(message, WakeupMessage):
            message.payload()
        elif isinstance(message, Stop):
            self._history("stop")
            if self._start.spec.actor != "stubborn":
                self._end()

    def _end(self) -> None:
        name, generation = self._start.spec.name, self._start.generation
        self.send(self._parent, Stopped(name=name, generation=generation))
        self.send(self.myAddress, ActorExitRequest(recursive=False))

    def _when(self, file: str, action: Callable[[], None]) -> None:
        """Act once a file is there."""
        if Path(self._start.run.run_directory, file).exists():
            action()
        else:
            self.wakeupAfter(POLL, partial(self._when, file, action))

    def _history(self, what: str) -> None:
        with Path(self._start.run.run_directory, "history").open("a") as history:
            history.write(f"{what} {self._start.spec.name}\n")

    def _begin(self, start: CellStart, parent: Any) -> None:
        self._start, self._parent = start, parent
        name, generation = start.spec.name, start.generation
        with Path(start.run.run_directory, "starts").open("a") as starts:
            starts.write(f"{name} {generation} {os.getpid()} {start.crashed} {start.reason}\n")
        self._history("start")
        if start.spec.actor == "failing":
            self.send(parent, Failed(name=name, generation=generation, reason="no database"))
            self.send(self.myAddress, ActorExitRequest(recursive=False))
            return
        identity = Identity(
            app=start.run.app,
            actor=start.spec.actor,
            cell=name,
            durable=start.spec.durable,
            stream=start.spec.stream,
            boot_id=boot_id(),
            run_id=start.run.run_id,
            generation=generation,
        )
        self._file = CellFile.create(start.cell_file_path(), identity, capacity=4)
        threading.Thread(target=self._beat, daemon=True).start()
        if start.spec.actor == "slow":
            self._when("go", self._say_ready)
        elif start.spec.actor != "late":
            self._say_ready()
        if start.spec.actor == "brief":
            self._when("finish", self._end)
            self._when("exit", partial(os._exit, 0))

    def _say_ready(self) -> None:
        self._file.status.state(CellState.UP)
        name, generation = self._start.spec.name, self._start.generation
        self.send(self._parent, Ready(name=name, generation=generation, pid=os.getpid()))

    def _beat(self) -> None:
        while True:
            self._file.status.beat()
            if self._start.spec.actor != "deaf":
                self._file.status.beat_control()
            time.sleep(BEAT_SECONDS)


class StandInSupervisor(Supervisor):
    """The real supervisor over stand-in cells."""

    cell_host = "support.standin.StandInCell"
