"""A launcher in small: a real control plane and real supervisors over stand-in cells.

Started as `python -m support.supervised SPEC_FILE RUN_DIRECTORY STOP_SECONDS`. Stops its tree on SIGTERM, and
on SIGUSR1 has the cells restarted that the file `restart` names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from understudy.config.connection import ConnectionSpec
from understudy.runtime.cell.messages import Stop
from understudy.runtime.cell.start import RunSpec
from understudy.runtime.specs import SupervisorSpec
from understudy.runtime.supervision.control import ControlPlane
from understudy.runtime.supervision.messages import Restart, StartSupervisor
from understudy.runtime.supervision.processes import kill_descendants
from understudy.runtime.supervision.self_check import check_control_plane
from understudy.runtime.telemetry.logs import configure_logging


def main(spec_file: str, run_directory: str, stop_seconds: float) -> None:
    """Run the tree until its root has ended."""
    spec = msgspec.json.decode(Path(spec_file).read_bytes(), type=SupervisorSpec)
    run = RunSpec(
        app="test",
        target="none:none",
        run_id="0123456789abcdef",
        run_directory=run_directory,
        launcher_pid=os.getpid(),
        revision=0,
        connection=ConnectionSpec(servers=("nats://127.0.0.1:4222",)),
        log_level="info",
        log_format="json",
        shutdown_timeout_seconds=stop_seconds,
    )
    configure_logging(level="info", format="json", context={"app": "test"})
    plane = ControlPlane.start()
    check_control_plane(plane)
    root, root_pid = plane.create("support.standin.StandInSupervisor")
    Path(run_directory, "pids").write_text(f"{plane.admin_pid} {plane.logger_pid} {root_pid} {plane.port}")
    asyncio.run(_run(plane, root, root_pid, StartSupervisor(run=run, spec=spec, generation=1, is_root=True)))
    kill_descendants()


async def _run(plane: ControlPlane, root: object, root_pid: int, start: StartSupervisor) -> None:
    loop = asyncio.get_running_loop()
    stop, ended = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(os.pidfd_open(root_pid), ended.set)
    await plane.tell(root, start)
    restarts: set[asyncio.Task[None]] = set()

    def restart() -> None:
        cells = Path(start.run.run_directory, "restart").read_text().split()
        restarts.add(asyncio.create_task(plane.tell(root, Restart(cells=tuple(cells)))))

    loop.add_signal_handler(signal.SIGUSR1, restart)
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(ended.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if not ended.is_set():
        await plane.tell(root, Stop(timeout_seconds=start.run.shutdown_timeout_seconds))
        await ended.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
