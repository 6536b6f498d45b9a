"""What supervisors and their children say to each other: small plain values, never an event."""

from __future__ import annotations

import msgspec


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A child is up.

    Args:
        name: the child's name, such as `delay-monitor/0`.
        generation: which start of it speaks; what an earlier one says late is ignored.
        pid: its process.
    """

    name: str
    generation: int
    pid: int


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A child couldn't start, or couldn't go on, and ends itself.

    Args:
        name: the child's name.
        generation: which start of it speaks.
        reason: the failure as text, since the supervisor couldn't import the exception.
    """

    name: str
    generation: int
    reason: str


class Quiesce(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the stream for nothing more: the whole tree is about to stop, one child after the other."""


class PauseChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Look anew at which cells the operator has paused; supervisors hand it down to all below them."""


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Drain, answer Stopped, and end.

    Args:
        timeout_seconds: after which whoever asked ends the process.
    """

    timeout_seconds: float


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """A child has drained as it was asked to, and ends itself.

    Args:
        name: the child's name.
        generation: which start of it speaks.
        reason: what went wrong on the way; empty when nothing did.
    """

    name: str
    generation: int
    reason: str = ""
