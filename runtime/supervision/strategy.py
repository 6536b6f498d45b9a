"""Which children are stopped and started again when one of them has ended.

As OTP decides, to the letter: https://www.erlang.org/doc/apps/stdlib/supervisor.html and its source,
lib/stdlib/src/supervisor.erl. What the manual leaves open, the source answers:

- A transient child that had ended normally is started again when a sibling's end restarts it too
  (`start_children` starts what `terminate_children` has left, and that removes only temporary ones).
- A child that ends of itself while its siblings' restart stops it is stopped, and decides nothing more
  (`do_terminate` only reports it).
- A supervisor that gives up ends with the reason `shutdown`, which is no abnormal end: as a transient child
  it is not started again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from understudy.actors.options import RestartType
from understudy.actors.supervision import Strategy


class Member(msgspec.Struct, frozen=True):
    """A child as a decision sees it.

    Args:
        name: the child's.
        restart: its restart type.
        runs: whether it has a process.
    """

    name: str
    restart: RestartType
    runs: bool


class Decision(msgspec.Struct, frozen=True):
    """What one child's end leads to.

    Args:
        stop: the siblings to stop, in reverse start order.
        start: the children to start when those are gone, in start order.
        counts: whether this is a restart, of which there is one however many children it takes along.
    """

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    counts: bool = False


def is_restarted(restart: RestartType, *, normal: bool) -> bool:
    """Return whether a child is started again after its own end.

    Args:
        restart: its restart type.
        normal: whether it ended as it meant to.
    """
    return restart == "permanent" or (restart == "transient" and not normal)


def decide(strategy: Strategy, children: Sequence[Member], ended: str, *, normal: bool) -> Decision:
    """Return what a child's end leads to.

    Args:
        strategy: the supervisor's.
        children: all of them in start order.
        ended: the name of the child that ended.
        normal: whether it ended as it meant to.

    Raises:
        ValueError: `ended` is no child.
    """
    names = [child.name for child in children]
    if ended not in names:
        raise ValueError(f"{ended!r} is not a child: {', '.join(names)}")
    index = names.index(ended)
    if not is_restarted(children[index].restart, normal=normal):
        return Decision()
    match strategy:
        case "one_for_one":
            group = children[index : index + 1]
        case "one_for_all":
            group = children
        case "rest_for_one":
            group = children[index:]
    return Decision(
        stop=tuple(child.name for child in reversed(group) if child.runs and child.name != ended),
        start=tuple(child.name for child in group if child.restart != "temporary"),
        counts=True,
    )
