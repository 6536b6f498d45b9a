"""`understudy demo` with one flight of United taken out of the statistics before they are compared."""

import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from understudy.examples.flights import tally
from understudy.runtime.cli import main

counted = tally.counted


def counted_after_tampering(database: Path, ledger: Mapping[str, Mapping[str, Any]]) -> tally.Tally:
    """Take one flight away, then count."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE carriers SET flights = flights - 1 WHERE carrier = 'UA'")
    return counted(database, ledger)


if __name__ == "__main__":
    tally.counted = counted_after_tampering
    sys.exit(main(["demo", *sys.argv[1:]]))
