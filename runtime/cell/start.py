"""What a supervisor tells a cell at its start: plain values that cross a process border."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from understudy.config.connection import ConnectionSpec
from understudy.config.log_rules import LogRules
from understudy.runtime.specs import CellSpec
from understudy.runtime.telemetry.node import node_name


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of one run share.

    Args:
        app: the app's name.
        target: `module:attribute`, imported by each cell after its fork.
        run_id: names this run of the launcher.
        run_directory: the run's folder on tmpfs, which holds cell files and supervisor files.
        launcher_pid: the process that everything dies with.
        revision: the app's revision.
        connection: how to reach the broker.
        log_level, log_format: what every process logs, and how (`console` or `json`).
        shutdown_timeout_seconds: how long a drain may take.
        log_rules: what is left out of entries.
        trace_relation: whether a handler run's span is below its publisher's (`parent`) or only linked to it
            (`link`).
    """

    app: str
    target: str
    run_id: str
    run_directory: str
    launcher_pid: int
    revision: int
    connection: ConnectionSpec
    log_level: str
    log_format: str
    shutdown_timeout_seconds: float
    log_rules: LogRules = LogRules()
    trace_relation: Literal["parent", "link"] = "parent"

    def log_context(self, **names: str) -> dict[str, str]:
        """Return what every log entry of one of its processes names.

        Args:
            names: what the process is.
        """
        return {"app": self.app, "node": node_name(self.launcher_pid), **names}


class CellStart(msgspec.Struct, frozen=True, kw_only=True):
    """One start of one cell.

    Args:
        run: what the whole run shares.
        spec: which actor and replica this cell hosts.
        generation: how many times this cell was started in this run, from 1.
        reason: why the previous generation ended, e.g. "killed by SIGKILL"; empty on a first start.
        crashed: whether the previous generation died of itself, so that what it was handling is suspect.
    """

    run: RunSpec
    spec: CellSpec
    generation: int
    reason: str = ""
    crashed: bool = False

    def cell_file_path(self) -> Path:
        """Return where this generation keeps its cell file."""
        return Path(self.run.run_directory, f"{self.spec.actor}.{self.spec.index}.{self.generation}.cell")

    def predecessor_paths(self) -> list[Path]:
        """Return the cell files that other generations of this cell left in the run directory."""
        own = self.cell_file_path()
        found = Path(self.run.run_directory).glob(f"{self.spec.actor}.{self.spec.index}.*.cell")
        return sorted(path for path in found if path != own)
