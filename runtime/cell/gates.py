"""Gates: what waits for an open circuit breaker while the rest of its actor goes on.

A delivery comes here whose handler declares the breaker. While the breaker is open nothing of the gate is
begun; then one at a time is let through as a trial, a different one each time, until the breaker has closed.
What has failed as a trial is one again only when nothing else waits: it may be what the service can't take.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import final

from understudy.runtime.cell.batches import HeldBatch
from understudy.runtime.cell.delivery import HeldDelivery

Item = HeldDelivery | HeldBatch
_sequence = operator.attrgetter("sequence")


@final
class Gate:
    """What waits for one breaker.

    Attributes:
        breaker: its name.
        held: what waits and hasn't tried yet, and who tries next stands first.
        tried: what waits and has; its turn comes when nothing else is held.
        trial: what runs as its trial.
        may_try: whether another trial may begin.
    """

    __slots__ = ("breaker", "held", "may_try", "trial", "tried")

    def __init__(self, breaker: str) -> None:
        self.breaker = breaker
        self.held: deque[Item] = deque()
        self.tried: deque[Item] = deque()
        self.trial: Item | None = None
        self.may_try = False


class Gates:
    """The gates of one actor that are shut; most of the time none is.

    Args:
        behind: by key, what waits behind the first delivery of each.
        changed: called with the number of deliveries that wait in gates, and behind the keys that do.

    Attributes:
        shut: by the breaker's name.
        keys: of what waits or is a trial.
    """

    def __init__(
        self, behind: Mapping[Hashable, deque[HeldDelivery] | None], changed: Callable[[int], None]
    ) -> None:
        self._behind_keys = behind
        self._changed = changed
        self.shut: dict[str, Gate] = {}
        self.keys: set[Hashable] = set()
        self._held = 0
        self._behind = 0

    def shut_for(self, breaker: str) -> Gate:
        """Return the gate of a breaker, made if there is none."""
        gate = self.shut.get(breaker)
        if gate is None:
            gate = self.shut[breaker] = Gate(breaker)
        return gate

    def find(self, item: Item) -> Gate | None:
        """Return the first shut gate among those that the item's handler declares."""
        handler = item.handler
        for breaker in () if handler is None else handler.breakers:
            gate = self.shut.get(breaker)
            if gate is not None:
                return gate
        return None

    def hold(self, gate: Gate, item: Item) -> None:
        """Have an item wait, after all others."""
        # What was a trial, of this breaker or of another that it needs, was counted all the time.
        left = next((one for one in self.shut.values() if one.trial is item), None)
        if left is not None:
            left.trial = None
        else:
            self._count(item, 1)
            self._changed(self._held + self._behind)
        (gate.tried if left is gate else gate.held).append(item)

    def take(self) -> Item | None:
        """Return what may begin as a trial; it goes on being counted until it has `left`."""
        for gate in self.shut.values():
            while gate.may_try and gate.trial is None and (waiting := gate.held or gate.tried):
                item = waiting.popleft()
                other = self.find(item)
                if other is gate or other is None:
                    gate.trial = item
                    return item
                # A breaker that stands before this one in its handler's list is open, too.
                other.held.append(item)
                if other.may_try and other.trial is None:
                    # Its time has come already, so that nothing else would have it tried.
                    return self.take()
        return None

    def left(self, item: Item) -> Gate | None:
        """Note that an item has run and waits no longer; return the gate whose trial it was."""
        for gate in self.shut.values():
            if gate.trial is item:
                gate.trial = None
                self._count(item, -1)
                self._changed(self._held + self._behind)
                return gate
        return None

    def open(self, gate: Gate) -> list[Item]:
        """Remove a gate, and return what has waited in it, in stream order."""
        del self.shut[gate.breaker]
        waited = sorted((*gate.held, *gate.tried), key=_sequence)
        for item in waited if gate.trial is None else (*waited, gate.trial):
            self._count(item, -1)
        self._changed(self._held + self._behind)
        return waited

    def waits(self, count: int = 1) -> None:
        """Note that more wait behind a key that waits."""
        self._behind += count
        self._changed(self._held + self._behind)

    def clear(self) -> None:
        """Forget what waits; the gates stay as they are."""
        for gate in self.shut.values():
            gate.held.clear()
            gate.tried.clear()
            gate.trial = None
        self.keys.clear()
        self._held = self._behind = 0
        self._changed(0)

    def _count(self, item: Item, sign: int) -> None:
        keys: Iterable[Hashable]
        if isinstance(item, HeldBatch):
            self._held += sign * len(item.members)
            keys = item.keys
        else:
            self._held += sign
            keys = () if item.key is None else (item.key,)
        for key in keys:
            self._behind += sign * len(self._behind_keys.get(key) or ())
            if sign > 0:
                self.keys.add(key)
            else:
                self.keys.discard(key)
