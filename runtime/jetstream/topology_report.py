"""What the launcher logs of the app's streams and consumers at its start."""

from __future__ import annotations

from understudy.runtime.jetstream.changes import Topology
from understudy.runtime.telemetry.logger import get_logger

_log = get_logger("understudy.topology")


def report_topology(topology: Topology) -> None:
    """Log what was changed on the server, and what is left as a newer revision has made it.

    Args:
        topology: what `ensure_topology` has done.
    """
    for change in topology.changes:
        if change.kind == "kept":
            continue
        if change.remedy:
            _log.warning("topology changed", change=change.done, remedy=change.remedy)
        else:
            _log.info("topology changed", change=change.done)
    if kept := [str(change) for change in topology.changes if change.kind == "kept"]:
        _log.warning("a newer revision is deployed; left as it is", differences=kept)
