"""When the watchdog raises an alarm, and when it doesn't."""

from __future__ import annotations

import pytest

from understudy.runtime.cell.watchdog import Stalled, Watchdog


class Watched:
    """A cell as its watchdog sees it."""

    def __init__(self, *, restarted_for_this: bool = False) -> None:
        self.progress = 0
        self.excused = False
        self.waiting = 10
        self.rebuilt = 0
        self.asked = 0
        self.dog = Watchdog(
            durable="shop-billing",
            progress=lambda: self.progress,
            excused=lambda: self.excused,
            waiting=self._ask,
            rebuild=self._rebuild,
            restarted_for_this=restarted_for_this,
        )

    async def _ask(self) -> int:
        self.asked += 1
        return self.waiting

    def _rebuild(self) -> None:
        self.rebuilt += 1

    async def look(self, times: int) -> None:
        """Let so many checks go by."""
        for _ in range(times):
            await self.dog.look()


async def test_it_rebuilds_first_and_restarts_then() -> None:
    """Two looks in a row each, after one that learns where the cell stands."""
    watched = Watched()
    await watched.look(2)
    assert watched.rebuilt == 0
    await watched.look(1)
    assert watched.rebuilt == 1
    await watched.look(1)
    with pytest.raises(Stalled, match="10 messages wait in the stream"):
        await watched.look(1)


async def test_after_a_restart_it_says_so_and_goes_on_trying() -> None:
    """A restart that didn't help isn't repeated for ever."""
    watched = Watched(restarted_for_this=True)
    await watched.look(3)
    assert (watched.rebuilt, watched.dog.stalled) == (1, "")
    await watched.look(2)
    assert watched.rebuilt == 2
    assert watched.dog.stalled.startswith("10 messages wait in the stream")
    watched.progress += 1
    await watched.look(1)
    assert watched.dog.stalled == ""


@pytest.mark.parametrize("calm", ["progress", "excused", "nothing waits"])
async def test_progress_an_excuse_or_an_empty_stream_is_no_alarm(calm: str) -> None:
    """However long it lasts."""
    watched = Watched()
    watched.excused = calm == "excused"
    watched.waiting = 0 if calm == "nothing waits" else 10
    for _ in range(20):
        watched.progress += calm == "progress"
        await watched.look(1)
    assert watched.rebuilt == 0
    assert (watched.asked > 0) == (calm == "nothing waits")


async def test_alarms_count_anew_after_progress() -> None:
    """A rebuilt subscription that works has mended it."""
    watched = Watched()
    await watched.look(3)
    watched.progress += 1
    await watched.look(3)
    assert watched.rebuilt == 2
