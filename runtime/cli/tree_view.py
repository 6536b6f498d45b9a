"""A node's tree as text that fits a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator

from understudy.runtime.admin.nodes import TreeReply
from understudy.runtime.supervision.tree import Cell, Supervisor

WIDTH = 100
_COLUMNS = ("STATE", "GEN", "RESTARTS", "HELD", "HANDLED", "FAILED", "DEAD")
_WIDTHS = (9, 5, 8, 6, 10, 7, 6)
_NAME_WIDTH = WIDTH - sum(_WIDTHS) - len(_WIDTHS)


def view(reply: TreeReply, root: Supervisor) -> Iterator[str]:
    """Yield a node's lines.

    Args:
        reply: what the node says of itself.
        root: its tree.
    """
    node = reply.node
    ready = "not ready" if reply.not_ready else "ready"
    revision = f"revision {node.revision}"
    yield _fit(f"{node.app} on {node.name}  run {node.run_id}  {revision}  {ready}")
    yield from (_fit(f"  {part}: {why}") for part, why in reply.not_ready.items())
    yield _row("", _COLUMNS)
    yield from _supervisor(root, "", "")


def _supervisor(supervisor: Supervisor, margin: str, below: str) -> Iterator[str]:
    own, by_parent = supervisor.status, supervisor.supervision
    # Its own word is the last before it died, where its supervisor knows better.
    state = by_parent.state if by_parent and (own is None or by_parent.state != "up") else own and own.state
    generation = by_parent.generation if by_parent else own.generation if own else 0
    restarts = by_parent.restarts if by_parent else 0
    yield _row(margin + supervisor.name, (state or "starting", generation, restarts))
    last_reason = by_parent.last_reason if by_parent else ""
    yield from _notes(below, bool(supervisor.children), last_reason, own.reason if own else "")
    for child in supervisor.children:
        last = child is supervisor.children[-1]
        first, further = (below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
        yield from (
            _cell(child, first, further) if isinstance(child, Cell) else _supervisor(child, first, further)
        )


def _cell(cell: Cell, margin: str, below: str) -> Iterator[str]:
    by_parent, own = cell.supervision, cell.status
    state, reason = by_parent.state, ""
    counts: tuple[object, ...] = ()
    if own is not None:
        if by_parent.state == "up":
            state, reason = own.state, own.reason  # type: ignore[assignment] # a cell has states of its own
            if own.pause == "pausing":
                state = "pausing"  # type: ignore[assignment]
        counts = (own.held, *(own.counters[name] for name in ("handled", "failed", "dead_lettered")))
    yield _row(margin + cell.name, (state, by_parent.generation, by_parent.restarts, *counts))
    yield from _notes(below, False, by_parent.last_reason, reason)


def _notes(below: str, has_children: bool, last_reason: str, reason: str) -> Iterator[str]:
    """Yield why something is as it is, and why it last ended."""
    margin = below + ("│  " if has_children else "   ")
    if reason:
        yield _fit(f"{margin}{reason}")
    if last_reason:
        yield _fit(f"{margin}last ended: {last_reason}")


def _row(name: str, values: tuple[object, ...]) -> str:
    cells = [
        f"{value!s:<{width}}" if index == 0 else f"{value!s:>{width}}"
        for index, (value, width) in enumerate(zip(values, _WIDTHS, strict=False))
    ]
    return " ".join([f"{_fit(name, _NAME_WIDTH):<{_NAME_WIDTH}}", *cells]).rstrip()


def _fit(text: str, width: int = WIDTH) -> str:
    line = " ".join(text.split("\n"))
    return line if len(line) <= width else line[: width - 1] + "…"
