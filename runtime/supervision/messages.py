"""What is said to a supervisor alone; what cells hear and say as well stands in `cell.messages`."""

from __future__ import annotations

import msgspec

from understudy.runtime.cell.start import RunSpec
from understudy.runtime.specs import SupervisorSpec


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Have these cells drain and start again, because the operator wants it; handed down the tree.

    Args:
        cells: their names.
    """

    cells: tuple[str, ...]


class StartSupervisor(msgspec.Struct, frozen=True, kw_only=True):
    """Take charge of these children and start them.

    Args:
        run: what the whole run shares.
        spec: the supervisor's name, limits and children.
        generation: how many times this supervisor was started in this run, from 1.
        reason: why the previous generation ended; empty on a first start.
        is_root: whether nobody above supervises it, so that it reports by its state file alone.
    """

    run: RunSpec
    spec: SupervisorSpec
    generation: int
    reason: str = ""
    is_root: bool = False
