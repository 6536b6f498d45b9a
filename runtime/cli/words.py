"""Words that agree with their number."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a number with its noun, as in "1 repeat" and "2,000 repeats"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
