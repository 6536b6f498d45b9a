"""A node's tree as text that fits a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator

from understudy.runtime.admin.nodes import TreeReply
from understudy.runtime.supervision.statefile import ChildStatus
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
    yield from _supervisor(root, "", "", reply.clock)


def _supervisor(supervisor: Supervisor, margin: str, below: str, now: float) -> Iterator[str]:
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


def _cell(cell: Cell, margin: str, below: str, now: float) -> Iterator[str]:
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
    for breaker in own.breakers if own is not None and by_parent.state == "up" else ():
        if breaker.state != "closed":
            seconds = max(0.0, now - breaker.since)
            yield _fit(
                f"{below}   circuit breaker {breaker.name}: {breaker.state}, not closed for {seconds:.1f} s"
            )


def _notes(margin: str, by_parent: ChildStatus | None, reason: str, now: float) -> Iterator[str]:
    """Yield why something is as it is, when it is started again, and why it last ended."""
    if reason:
        yield _fit(f"{margin}{reason}")
    if by_parent and by_parent.starts_at is not None:
        seconds, times = max(0.0, by_parent.starts_at - now), by_parent.failures
        after = f", after {times} failure{'' if times == 1 else 's'} in a row" if times else ""
        yield _fit(f"{margin}starts again in {seconds:.1f} s{after}")
    if by_parent and by_parent.last_reason:
        yield _fit(f"{margin}last ended: {by_parent.last_reason}")


def _row(name: str, values: tuple[object, ...]) -> str:
    cells = [
        f"{value!s:<{width}}" if index == 0 else f"{value!s:>{width}}"
        for index, (value, width) in enumerate(zip(values, _WIDTHS, strict=False))
    ]
    return " ".join([f"{_fit(name, _NAME_WIDTH):<{_NAME_WIDTH}}", *cells]).rstrip()


def _fit(text: str, width: int = WIDTH) -> str:
    line = " ".join(text.split("\n"))
    return line if len(line) <= width else line[: width - 1] + "…"
