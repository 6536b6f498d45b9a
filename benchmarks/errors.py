"""What ends a benchmark early."""

from __future__ import annotations

from understudy import UnderstudyError


class BenchmarkFailed(UnderstudyError):
    """Something that is measured ended, stalled, or left no result."""


class NotConserved(BenchmarkFailed):
    """Messages were lost or handled twice, so that no rate means anything."""
