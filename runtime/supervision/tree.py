"""The whole tree as its processes describe it in their files, without a message to any of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from understudy.runtime.cell.status import IDLE_HEARTBEAT_SECONDS, CellStatus, boottime, read_status
from understudy.runtime.supervision.statefile import ChildStatus, SupervisorStatus, read_state

SUPERVISOR_ANSWER_SECONDS = 10.0
# Two heartbeats of a cell that has nothing to do. Its supervisor may be told to wait longer, or hang itself.
CELL_ANSWER_SECONDS = 2 * IDLE_HEARTBEAT_SECONDS


class Cell(msgspec.Struct, frozen=True, kw_only=True, tag="cell", tag_field="kind"):
    """A cell: what its supervisor knows of it, and what it says of itself."""

    name: str
    supervision: ChildStatus
    status: CellStatus | None

    @property
    def problem(self) -> str:
        """Why the cell isn't up; empty if it is, or if it ended for good, as it is declared."""
        if self.supervision.state == "stopped":
            return ""
        if self.supervision.state != "up":
            reason = f" ({self.supervision.last_reason})" if self.supervision.last_reason else ""
            return f"{self.supervision.state}{reason}"
        if self.status is None:
            return "its cell file is missing"
        if not self.status.connected:
            return "not connected to the broker"
        if self.status.state in ("halted", "stalled"):
            return f"{self.status.state}: {self.status.reason}"
        silent_seconds = boottime() - self.status.heartbeat
        if silent_seconds > CELL_ANSWER_SECONDS:
            return f"silent for {silent_seconds:.0f} s"
        return ""


class Supervisor(msgspec.Struct, frozen=True, kw_only=True, tag="supervisor", tag_field="kind"):
    """A supervisor and all below it; `supervision` is None for the root, which nobody supervises."""

    name: str
    supervision: ChildStatus | None
    status: SupervisorStatus | None
    children: tuple[Cell | Supervisor, ...]

    def cells(self) -> Iterator[Cell]:
        """Yield every cell of the subtree, in start order, but those of a supervisor that ended for good."""
        for child in () if self.has_ended else self.children:
            if isinstance(child, Cell):
                yield child
            else:
                yield from child.cells()

    def supervisors(self) -> Iterator[Supervisor]:
        """Yield this supervisor and every one below it, but those that ended for good."""
        if not self.has_ended:
            yield self
            for child in self.children:
                if isinstance(child, Supervisor):
                    yield from child.supervisors()

    def descendants(self) -> Iterator[ChildStatus]:
        """Yield what supervisors say of all below this one, also of what ended for good."""
        for child in self.children:
            if child.supervision is not None:
                yield child.supervision
            if isinstance(child, Supervisor):
                yield from child.descendants()

    @property
    def has_ended(self) -> bool:
        """Whether it ended and isn't started again, with all below it; its last view stands for ever."""
        return self.supervision is not None and self.supervision.state == "stopped"

    @property
    def silent_seconds(self) -> float | None:
        """How long ago the supervisor last showed that it runs; None if it never did."""
        return None if self.status is None else boottime() - self.status.heartbeat


def read_tree(run_directory: Path, name: str, supervision: ChildStatus | None = None) -> Supervisor:
    """Return a supervisor with all below it.

    Args:
        run_directory: the run's.
        name: the supervisor's.
        supervision: what its own supervisor says of it.
    """
    status = read_state(run_directory, name)
    children: list[Cell | Supervisor] = []
    for child in status.children if status else ():
        if child.kind == "supervisor":
            children.append(read_tree(run_directory, child.name, child))
        else:
            cell = read_status(run_directory / child.cell_file)
            children.append(Cell(name=child.name, supervision=child, status=cell))
    return Supervisor(name=name, supervision=supervision, status=status, children=tuple(children))
