"""What the probes answer: which parts of the tree aren't as they should be."""

from __future__ import annotations

from understudy.runtime.supervision.tree import SUPERVISOR_ANSWER_SECONDS, Supervisor


def silent_supervisors(root: Supervisor) -> dict[str, str]:
    """Return the supervisors that should run and don't show it, each with how long.

    Liveness: what a restart of the whole would mend. A supervisor that is being restarted isn't silent, and
    neither is a root that has yet to begin.

    Args:
        root: the tree.
    """
    silent = {}
    for supervisor in root.supervisors():
        if supervisor.supervision is not None and supervisor.supervision.state != "up":
            continue
        seconds = supervisor.silent_seconds
        if seconds is not None and seconds > SUPERVISOR_ANSWER_SECONDS:
            silent[f"supervisor {supervisor.name}"] = f"silent for {seconds:.0f} s"
    return silent


def missing_parts(root: Supervisor) -> dict[str, str]:
    """Return the supervisors and cells that aren't up or don't show it, each with why.

    Readiness: whether everything that the app declares is at work. A cell whose breaker is open is: it
    holds back on purpose. A silent supervisor wouldn't replace what falls.

    Args:
        root: the tree.
    """
    if root.status is None:
        return {f"supervisor {root.name}": "not started yet"}
    missing = silent_supervisors(root)
    for supervisor in root.supervisors():
        state = supervisor.supervision.state if supervisor.supervision else "up"
        own = supervisor.status.state if supervisor.status else "starting"
        if state != "up" or own != "up":
            missing[f"supervisor {supervisor.name}"] = own if state == "up" else state
    return missing | {f"cell {cell.name}": cell.problem for cell in root.cells() if cell.problem}
