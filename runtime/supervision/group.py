"""Children that a strategy takes along with one that ended: they are stopped, and started again, together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self

import msgspec

from understudy.runtime.supervision.child import Child


class Group(msgspec.Struct, frozen=True, eq=False):
    """Children that are restarted together.

    Args:
        children: in start order, with those that are only stopped.
        to_start: those that are started again.
        starts_at: before which none is, in seconds of CLOCK_BOOTTIME.
    """

    children: tuple[Child, ...]
    to_start: tuple[Child, ...]
    starts_at: float

    @classmethod
    def of(
        cls,
        siblings: Sequence[Child],
        stop: Collection[str],
        start: Collection[str],
        starts_at: float,
        earlier: Group | None,
    ) -> Self:
        """Return the group of those that are to be stopped and of those that are to be started.

        Args:
            siblings: all children of the supervisor, in start order.
            stop: names of those that run.
            start: names of those that are to run again.
            starts_at: before which none is started, in seconds of CLOCK_BOOTTIME.
            earlier: another, which isn't started yet and becomes one with this; None if there is none.
        """
        affected, to_start = {*stop, *start}, {*start}
        if earlier is not None:
            affected |= {child.name for child in earlier.children}
            to_start |= {child.name for child in earlier.to_start}
            starts_at = max(starts_at, earlier.starts_at)
        return cls(
            children=tuple(child for child in siblings if child.name in affected),
            to_start=tuple(child for child in siblings if child.name in to_start),
            starts_at=starts_at,
        )

    def await_start(self, child: Child) -> None:
        """Note that a child of it has no process, and has one again when the group is started, if at all."""
        if child in self.to_start:
            child.state, child.starts_at = "backoff", self.starts_at
        else:
            child.state = "stopped"
