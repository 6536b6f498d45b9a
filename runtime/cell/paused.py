"""Which cells the operator has paused: a file in the run directory, written by the launcher alone.

It outlives cells and supervisors, so that what replaces a paused cell is paused from its first moment on. It
ends with the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

_NAME = "paused.json"
_decoder = msgspec.json.Decoder(frozenset[str])


def read_paused(run_directory: Path) -> frozenset[str]:
    """Return the names of the cells that are paused.

    Args:
        run_directory: the run's.
    """
    try:
        return _decoder.decode((run_directory / _NAME).read_bytes())
    except FileNotFoundError:
        return frozenset()


def write_paused(run_directory: Path, cells: Iterable[str]) -> None:
    """Replace the file; who reads meanwhile sees the old names or the new ones.

    Args:
        run_directory: the run's.
        cells: the names of all cells that are paused from now on.

    Raises:
        OSError: there is no room for it.
    """
    new = run_directory / f".{_NAME}"
    new.write_bytes(msgspec.json.encode(sorted(cells)))
    new.replace(run_directory / _NAME)
