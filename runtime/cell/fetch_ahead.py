"""How much work a cell fetches ahead: what it can handle in half an `ack_wait`, at the rate that it shows.

What a slow handler would only get to much later is better left in the stream, where another cell can have it
and a drain needn't give it back.
"""

from __future__ import annotations

import math

# A rate is taken over so many seconds of work at least, and falls by no more than half each time.
WINDOW_SECONDS = 0.02
# Until a rate is known: enough for a quick handler to show it within a window.
FIRST = 128


class FetchAhead:
    """Works out the bound from what was settled while there was something to do.

    Args:
        capacity: the mailbox's, in messages, which is never exceeded.
        least: how many messages are always worth fetching, such as the number of lanes.
        ack_wait_seconds: the consumer's.
    """

    def __init__(self, capacity: int, least: int, ack_wait_seconds: float) -> None:
        self._capacity = capacity
        self._least = min(capacity, max(1, least))
        self._seconds = ack_wait_seconds / 2
        self._began = 0.0
        self._settled = 0
        # Whether nothing was held at the last look; None before the first.
        self._was_idle: bool | None = None
        self.limit = min(capacity, max(FIRST, self._least))

    def observe(self, now: float, settled: int, *, idle: bool) -> None:
        """Look at the work done.

        Args:
            now: any clock, in seconds.
            settled: how many deliveries were settled since the start.
            idle: whether nothing is held.
        """
        elapsed = now - self._began
        done = settled - self._settled
        was_idle, self._was_idle = self._was_idle, idle
        if idle or was_idle is not False:
            if idle and was_idle and done > 0 and elapsed > 0:
                # All of it was begun and done in that time, some of which was spent waiting: so it may be
                # more, and where the bound is what keeps the mailbox empty, it has to be.
                # Bounded first: what was done in no time at all is no number.
                wanted = math.ceil(min(self._capacity, done / elapsed * self._seconds))
                self.limit = max(self.limit, min(2 * self.limit, wanted))
            self._began, self._settled = now, settled
            return
        # Nothing done yet says that the rate is below one in that time.
        if elapsed < WINDOW_SECONDS or (done == 0 and elapsed < self._seconds / 4):
            return
        wanted = math.ceil(max(done, 1) / elapsed * self._seconds)
        self.limit = min(self._capacity, max(self._least, self.limit // 2, wanted))
        self._began, self._settled = now, settled
