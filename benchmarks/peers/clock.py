"""How a publishing process measures itself."""

from __future__ import annotations

import json
import time


class Clock:
    """Time and CPU time since it was made, and the result that is printed."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def print_result(self, confirmed: int) -> None:
        """Print the one line of JSON that the harness reads.

        Args:
            confirmed: how many publishes were confirmed as new messages.
        """
        seconds, cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
        print(json.dumps({"confirmed": confirmed, "seconds": seconds, "cpu_seconds": cpu_seconds}))
