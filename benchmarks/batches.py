"""How many messages a batch handler takes at once, whoever's it is."""

from __future__ import annotations

BATCH = 256
