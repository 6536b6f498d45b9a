"""How many messages a batch handler takes at once, whoever's it is."""

from __future__ import annotations

BATCH = 256


def whole_batches(messages: int) -> int:
    """Return about so many messages, of which none has to wait for a batch to fill up."""
    return max(1, messages // BATCH) * BATCH
