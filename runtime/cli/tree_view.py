"""A node's tree as text: a table of 100 columns, and beneath its rows why something is as it is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from understudy.runtime.admin.nodes import TreeReply
from understudy.runtime.cell.status import BreakerStatus
from understudy.runtime.supervision.statefile import ChildStatus
from understudy.runtime.supervision.tree import Cell, Supervisor

WIDTH = 100
_COLUMNS = ("STATE", "GEN", "RESTARTS", "HELD", "HANDLED", "FAILED", "DEAD")
_WIDTHS = (9, 5, 8, 6, 10, 7, 6)
_NAME_WIDTH = WIDTH - sum(_WIDTHS) - len(_WIDTHS)
# However narrow the terminal is, and however deep the tree.
_LEAST_NOTE_WIDTH = 40


class _Note(NamedTuple):
    """A text beneath a row, as long as it has to be, with what stands left of each of its lines."""

    margin: str
    text: str


def view(reply: TreeReply, root: Supervisor, *, columns: int | None) -> Iterator[str]:
    """Yield a node's lines.

    Args:
        reply: what the node says of itself.
        root: its tree.
        columns: where reasons and the like are wrapped; None leaves each in one line.
    """
    for line in _lines(reply, root):
        if isinstance(line, str):
            yield line
        else:
            yield from _laid_out(line, columns)


def _lines(reply: TreeReply, root: Supervisor) -> Iterator[str | _Note]:
    node = reply.node
    ready = "not ready" if reply.not_ready else "ready"
    revision = f"revision {node.revision}"
    yield _Note("", f"{node.app} on {node.name}  run {node.run_id}  {revision}  {ready}")
    yield from (_Note("  ", f"{part}: {why}") for part, why in reply.not_ready.items())
    yield _row("", _COLUMNS)
    lines = _supervisor(root, "", "", reply.clock)
    yield next(lines)
    margin = "│  " if root.children else "   "
    yield from (_Note(margin, line) for line in _breakers_of_app(root, reply.clock))
    yield from lines


def _supervisor(supervisor: Supervisor, margin: str, below: str, now: float) -> Iterator[str | _Note]:
    own, by_parent = supervisor.status, supervisor.supervision
    # Its own word is the last before it died, where its supervisor knows better.
    state = by_parent.state if by_parent and (own is None or by_parent.state != "up") else own and own.state
    generation = by_parent.generation if by_parent else own.generation if own else 0
    restarts = by_parent.restarts if by_parent else 0
    yield _row(margin + supervisor.name, (state or "starting", generation, restarts))
    yield from _notes(
        below + ("│  " if supervisor.children else "   "), by_parent, own.reason if own else "", now
    )
    for child in supervisor.children:
        last = child is supervisor.children[-1]
        first, further = (below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
        yield from (
            _cell(child, first, further, now)
            if isinstance(child, Cell)
            else _supervisor(child, first, further, now)
        )


def _cell(cell: Cell, margin: str, below: str, now: float) -> Iterator[str | _Note]:
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
    yield from _notes(f"{below}   ", by_parent, reason, now)
    for breaker in _not_closed(cell):
        if not breaker.of_app:
            yield _Note(f"{below}   ", _breaker(breaker, now))


def _breakers_of_app(root: Supervisor, now: float) -> Iterator[str]:
    """Yield the app's breakers that aren't closed, each once, with the cells that wait for it."""
    known: dict[str, BreakerStatus] = {}
    waiting: dict[str, list[str]] = {}
    for cell in root.cells():
        for breaker in _not_closed(cell):
            if breaker.of_app:
                # Not all cells have heard of the last trial yet.
                known.setdefault(breaker.name, breaker)
                if breaker.holds_up:
                    waiting.setdefault(breaker.name, []).append(cell.name)
    for name, breaker in sorted(known.items()):
        held_up = f"; holds up {', '.join(waiting[name])}" if name in waiting else ""
        yield f"{_breaker(breaker, now)}{held_up}"


def _not_closed(cell: Cell) -> Iterator[BreakerStatus]:
    # A cell that isn't up has nothing to say any more.
    if cell.status is not None and cell.supervision.state == "up":
        yield from (breaker for breaker in cell.status.breakers if breaker.state != "closed")


def _breaker(breaker: BreakerStatus, now: float) -> str:
    seconds = max(0.0, now - breaker.since)
    return f"circuit breaker {breaker.name}: {breaker.state}, not closed for {seconds:.1f} s"


def _notes(margin: str, by_parent: ChildStatus | None, reason: str, now: float) -> Iterator[_Note]:
    """Yield why something is as it is, when it is started again, and why it last ended."""
    if reason:
        yield _Note(margin, reason)
    if by_parent and by_parent.starts_at is not None:
        seconds, times = max(0.0, by_parent.starts_at - now), by_parent.failures
        after = f", after {times} failure{'' if times == 1 else 's'} in a row" if times else ""
        yield _Note(margin, f"starts again in {seconds:.1f} s{after}")
    if by_parent and by_parent.last_reason:
        yield _Note(margin, f"last ended: {by_parent.last_reason}")


def _row(name: str, values: tuple[object, ...]) -> str:
    cells = [
        f"{value!s:<{width}}" if index == 0 else f"{value!s:>{width}}"
        for index, (value, width) in enumerate(zip(values, _WIDTHS, strict=False))
    ]
    fitting = name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
    return " ".join([f"{fitting:<{_NAME_WIDTH}}", *cells]).rstrip()


def _laid_out(note: _Note, columns: int | None) -> Iterator[str]:
    margin, text = note.margin, " ".join(note.text.split("\n"))
    if columns is None or len(margin) + len(text) <= columns:
        yield margin + text
        return
    further = f"{margin}  "
    yield from textwrap.wrap(
        text,
        max(columns, len(further) + _LEAST_NOTE_WIDTH),
        initial_indent=margin,
        subsequent_indent=further,
        break_on_hyphens=False,
    )
