"""In which order children are stopped, and how long one may keep the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from understudy.runtime.supervision.orderly_stop import OrderlyStop


class Standing:
    """What an orderly stop sees of a child."""

    def __init__(self, name: str, *, runs: bool = True) -> None:
        self.name = name
        self.state = "up"
        self.process = object() if runs else None


class Stage:
    """A stop of its children, whose timers the test fires."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.done: list[str] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.stop = OrderlyStop(self._ask, lambda seconds, act: self.timers.append((seconds, act)))

    def _ask(self, child: Any, seconds: float) -> None:
        assert seconds >= 0.0
        child.state = "stopping"
        self.asked.append(child.name)

    def begin(self, children: Any, done: str = "done", timeout_seconds: float = 10.0) -> None:
        """Stop these."""
        self.stop.begin(children, timeout_seconds, lambda: self.done.append(done))

    def end(self, child: Any) -> None:
        """Have a child's process end."""
        child.process = None
        self.stop.ended(child)


def test_the_last_is_stopped_first_and_the_next_when_it_is_gone() -> None:
    """Who has no process, or has ended before its turn, is passed over."""
    stage = Stage()
    a, b, c, d = children = [Standing("a"), Standing("b", runs=False), Standing("c"), Standing("d")]
    stage.begin(children)
    assert stage.asked == ["d"]
    stage.end(a)
    assert stage.asked == ["d"]
    stage.end(d)
    assert stage.asked == ["d", "c"]
    assert not stage.done
    stage.end(c)
    assert stage.asked == ["d", "c"]
    assert stage.done == ["done"]
    assert b.state == "up"


def test_who_has_had_its_share_keeps_nobody_waiting() -> None:
    """Half of an even share of the time; all of it is over only when all are gone."""
    stage = Stage()
    a, b, c = children = [Standing("a"), Standing("b"), Standing("c")]
    stage.begin(children, timeout_seconds=60.0)
    [(share, had_its_share)] = stage.timers
    assert 9.9 < share <= 10.0
    had_its_share()
    assert stage.asked == ["c", "b"]
    had_its_share()
    assert stage.asked == ["c", "b"], "the turn is another's by now"
    stage.end(b)
    assert stage.asked == ["c", "b", "a"]
    stage.end(a)
    assert not stage.done
    stage.end(c)
    assert stage.done == ["done"]


def test_a_new_stop_takes_the_place_of_one_that_is_not_through() -> None:
    """Who was asked before isn't asked again, and the first stop is never reported as over."""
    stage = Stage()
    a, b, c = [Standing("a"), Standing("b"), Standing("c")]
    stage.begin([b, c], done="group")
    stage.begin([a, b, c], done="all")
    assert stage.asked == ["c"]
    for child in (c, b, a):
        stage.end(child)
    assert stage.asked == ["c", "b", "a"]
    assert stage.done == ["all"]


def test_a_stop_of_nothing_is_over_at_once() -> None:
    """Nobody's end would say so."""
    stage = Stage()
    stage.begin([Standing("a", runs=False)])
    assert stage.done == ["done"]
    assert not stage.timers
