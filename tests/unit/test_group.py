"""Which children are restarted together, when another one's end or the operator takes more along."""

from __future__ import annotations

from typing import Any

from understudy.runtime.supervision.group import Group


class Sibling:
    """What a group sees of a child."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "up"
        self.starts_at: float | None = None


A, B, C, D = SIBLINGS = [Sibling(name) for name in "abcd"]


def group(stop: str, start: str, starts_at: float, earlier: Group | None = None) -> Group:
    """Return the group of those that are named, one letter each."""
    siblings: Any = SIBLINGS
    return Group.of(siblings, list(stop), list(start), starts_at, earlier)


def names(children: tuple[Any, ...]) -> str:
    return "".join(child.name for child in children)


def test_it_is_in_start_order_however_it_is_named() -> None:
    """One that is only stopped is in it, and isn't started again."""
    found = group("dc", "ca", 5.0)
    assert (names(found.children), names(found.to_start), found.starts_at) == ("acd", "ac", 5.0)


def test_two_become_one() -> None:
    """Or what the first has stopped would not be started: nobody starts before the later of their times."""
    found = group("b", "bc", 5.0, group("a", "a", 9.0, group("d", "", 1.0)))
    assert (names(found.children), names(found.to_start), found.starts_at) == ("abcd", "abc", 9.0)


def test_who_has_no_process_waits_for_its_start_or_is_stopped() -> None:
    """A temporary child is never started again."""
    found: Any = group("ab", "a", 5.0)
    found.await_start(A)
    found.await_start(B)
    assert (A.state, A.starts_at) == ("backoff", 5.0)
    assert (B.state, B.starts_at) == ("stopped", None)
    assert (C.state, D.state) == ("up", "up")
