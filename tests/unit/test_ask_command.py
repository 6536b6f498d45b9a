"""What `understudy ask` says of a request that nobody has answered in time."""

from __future__ import annotations

import pytest

from understudy.runtime.cli.ask import NO_ANSWER, NOBODY, reason_of
from understudy.runtime.jetstream.takers import Taker


def prices(pending: int, *, is_pulled: bool = True) -> Taker:
    """Return the consumer of the actor that should answer."""
    return Taker("ORDERS", "shop-prices", pending, is_pulled)


AUDIT = Taker("ORDERS", "shop-audit", 0, is_pulled=True)


@pytest.mark.parametrize(
    ("takers", "text"),
    [
        (
            [prices(1, is_pulled=False)],
            "nobody pulls from shop-prices, where 1 waits or is being handled: is the app up, and not "
            "paused? understudy tree",
        ),
        (
            [prices(1_200), AUDIT],
            "it is for shop-prices, where 1,200 wait or are being handled; shop-audit, where none waits: "
            "give it more --timeout, or see whether its handler declares reply= and what its log says",
        ),
        (
            [prices(0), AUDIT],
            "it was taken (nothing waits for shop-prices, shop-audit): its handler may not declare reply=; "
            "see what its log says",
        ),
    ],
)
def test_it_names_the_takers_and_how_many_wait(takers: list[Taker], text: str) -> None:
    """The request itself is one of these: without any it was taken, so that more time is no use."""
    assert reason_of(["ORDERS"], takers) == (NO_ANSWER, f"\n  {text}")


def test_nobody_takes_it() -> None:
    """Of a stream that does, it says which."""
    assert reason_of(["ORDERS"], []) == (
        NOBODY,
        "\n  no consumer of the stream ORDERS takes this subject; correct it, or start the app",
    )
    assert reason_of([], [])[1].startswith("\n  no stream takes this subject")
