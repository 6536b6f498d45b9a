"""What holds for the log entries of all processes, as plain values that may cross to another process."""

from __future__ import annotations

import msgspec

DEFAULT_REPEATS = 5
DEFAULT_REPEAT_WINDOW_SECONDS = 10.0


class LogRules(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are left out, and what is left out of an entry.

    Args:
        redact: names whose values are secret, beside those that always are.
        repeats: how many equal warnings or errors a process writes within a window; None for all.
        repeat_window_seconds: how long a window is.
    """

    redact: tuple[str, ...] = ()
    repeats: int | None = DEFAULT_REPEATS
    repeat_window_seconds: float = DEFAULT_REPEAT_WINDOW_SECONDS
