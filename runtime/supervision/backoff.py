"""How long a child waits before it is started again."""

from __future__ import annotations

FIRST_DELAY_SECONDS = 0.05
RESTART_CAP_SECONDS = 5.0
START_CAP_SECONDS = 30.0
HEALTHY_SECONDS = 10.0


class Backoff:
    """Exponential delays with full jitter for one child.

    A child that was up for ten seconds begins again at the first delay.

    Attributes:
        failures: how often it has ended in a row without such a time between.
    """

    def __init__(self) -> None:
        self.failures = 0

    def next_delay(self, *, seconds_up: float, cap_seconds: float, random: float) -> float:
        """Return the delay before the next start, in seconds.

        Args:
            seconds_up: how long the child was up before it ended; 0 when it never was.
            cap_seconds: what no delay exceeds.
            random: a number in [0, 1), which spreads children that failed together.
        """
        if seconds_up >= HEALTHY_SECONDS:
            self.failures = 0
        # The exponent is bounded so that a child failing for days doesn't overflow the power.
        ceiling = min(cap_seconds, FIRST_DELAY_SECONDS * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return ceiling * random
