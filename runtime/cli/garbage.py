"""When Python looks for garbage: rarely while modules are imported, which only takes time and finds none."""

from __future__ import annotations

import gc

_RARELY = 50_000
_USUAL = gc.get_threshold()


def collect_rarely() -> None:
    """Have Python look only after many new objects: for a process that is short-lived, or has just begun."""
    gc.set_threshold(_RARELY)


def collect_as_usual() -> None:
    """Have Python look as often as it does by itself, and never again through what there is by now."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
