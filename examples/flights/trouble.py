"""What goes wrong in the service when it is told to have trouble."""

import hashlib
from enum import StrEnum
from typing import Annotated

import msgspec

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Fate(StrEnum):
    """What becomes of a request.

    It works; it is known by its key, and was done before; it is refused for good; it fails; it gets no answer
    in time, with nothing done; it is done and gets no answer in time; the service is down.
    """

    WORKS = "works"
    REPEATED = "repeated"
    REFUSED = "refused"
    FAILS = "fails"
    HANGS = "hangs"
    LIES = "lies"
    DOWN = "down"


class Trouble(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the requests comes to grief, each from 0 to 1.

    Args:
        refuse: of what is ordered is refused, however often it is asked for.
        fail: of the requests are answered with an error, and nothing is done.
        hang: get no answer in time, and nothing is done.
        lie: get no answer in time, though what they ask for is done.
    """

    refuse: _Share = 0.0
    fail: _Share = 0.0
    hang: _Share = 0.0
    lie: _Share = 0.0

    def refuses(self, key: str) -> bool:
        """Tell whether what is ordered under a key is refused."""
        return _draw(key) < self.refuse

    def fate(self, key: str, number: int) -> Fate:
        """Tell what becomes of a request that isn't refused.

        It is drawn from the key and from how many requests came with that before: the same in each run, and
        something else when the client tries again.
        """
        drawn = _draw(f"{key} {number}")
        for share, fate in ((self.fail, Fate.FAILS), (self.hang, Fate.HANGS), (self.lie, Fate.LIES)):
            if drawn < share:
                return fate
            drawn -= share
        return Fate.WORKS


def _draw(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
