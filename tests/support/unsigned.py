"""A control plane whose transport is as stock Thespian's, except that it is bound to loopback.

Started as `python -m support.unsigned`: writes its port, and when it has read a line what the self-check
says.
"""

from __future__ import annotations

import pickle
import sys

from understudy.runtime.supervision import control
from understudy.runtime.supervision.processes import kill_descendants
from understudy.runtime.supervision.self_check import check_control_plane


def main() -> None:
    """Start it, check it, and wait."""
    control.SignedPickle = pickle  # type: ignore[assignment,misc]
    plane = control.ControlPlane.start()
    print(plane.port, flush=True)
    sys.stdin.readline()
    try:
        check_control_plane(plane)
        print("accepted")
    except control.ControlPlaneError as error:
        print(error)
    kill_descendants()


if __name__ == "__main__":
    main()
