"""Cells that died and aren't started again in this run: what they own goes to other nodes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import structlog

from understudy.actors.errors import BrokerError
from understudy.runtime.cell.cellfile import CellFileError, DeadCellFile
from understudy.runtime.cell.status import boottime
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.pinning import unpin
from understudy.runtime.specs import ConsumerSpec

_log = structlog.get_logger(__name__)


async def release_dead_cells(
    client: Connection, cell_files: Iterable[Path], consumers: Iterable[ConsumerSpec]
) -> list[str]:
    """Let other nodes have what a dead cell owned; a drained one has done so.

    Args:
        client: the launcher's connection.
        cell_files: all that are left when the tree has ended.
        consumers: the app's.

    Returns:
        The dead cells that hold deliveries which nobody else will have before the next start, or before
        the server gives up waiting for them.
    """
    left_behind = []
    ack_wait = {one.actor: one.ack_wait_seconds for one in consumers}
    for path in cell_files:
        try:
            file = DeadCellFile.claim(path)
            if file is None:
                continue
            file.release()
            owned = file.identity
            if file.holds(boottime() - ack_wait.get(owned.actor, 0.0)):
                left_behind.append(owned.cell)
            if client.is_connected and await unpin(client, owned.stream, owned.durable, owned.pin_id):
                _log.info("released", cell=owned.cell)
        except (BrokerError, CellFileError) as error:
            _log.warning("a pin is left to time out", file=path.name, error=str(error))
    return left_behind
