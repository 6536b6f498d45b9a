"""A stand-in for the cell's process, so that supervisors are tested without a broker.

What it does is told by its actor's name: `steady` stays up, `failing` fails each start, `late` never gets
ready, `stubborn` doesn't stop. It keeps a heartbeat in a real cell file.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from thespian.actors import ActorExitRequest

from understudy.runtime.cell.cellfile import CellFile, Identity, boot_id
from understudy.runtime.cell.control_actor import ControlActor
from understudy.runtime.cell.messages import Failed, Ready, Stop, Stopped
from understudy.runtime.cell.start import CellStart
from understudy.runtime.cell.status import CellState
from understudy.runtime.supervision.supervisor import Supervisor

BEAT_SECONDS = 0.1


class StandInCell(ControlActor):
    """Answers as a cell would."""

    def receive(self, message: object, sender: Any) -> None:
        """Start or stop."""
        if isinstance(message, CellStart):
            self._begin(message, sender)
        elif isinstance(message, Stop) and self._start.spec.actor != "stubborn":
            name, generation = self._start.spec.name, self._start.generation
            self.send(self._parent, Stopped(name=name, generation=generation))
            self.send(self.myAddress, ActorExitRequest(recursive=False))

    def _begin(self, start: CellStart, parent: Any) -> None:
        self._start, self._parent = start, parent
        name, generation = start.spec.name, start.generation
        with Path(start.run.run_directory, "starts").open("a") as starts:
            starts.write(f"{name} {generation} {os.getpid()} {start.crashed} {start.reason}\n")
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
        if start.spec.actor != "late":
            self._file.status.state(CellState.UP)
            self.send(parent, Ready(name=name, generation=generation, pid=os.getpid()))

    def _beat(self) -> None:
        while True:
            self._file.status.beat()
            self._file.status.beat_control()
            time.sleep(BEAT_SECONDS)


class StandInSupervisor(Supervisor):
    """The real supervisor over stand-in cells."""

    cell_host = "support.standin.StandInCell"
