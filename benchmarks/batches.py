"""How many messages a batch handler takes at once, whoever's it is."""

from __future__ import annotations

BATCH = 256
# How long a batch may take to fill up.
BATCH_SECONDS = 0.1
