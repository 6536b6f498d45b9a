"""Which children are started again with one that ended."""

from __future__ import annotations

import pytest

from understudy.runtime.supervision.child import describe_exit
from understudy.runtime.supervision.strategy import one_for_one


def test_one_for_one_restarts_the_child_alone() -> None:
    """Whatever stands before and after it."""
    assert one_for_one(["a/0", "b/0", "c/0"], "b/0") == ("b/0",)


def test_a_stranger_is_refused() -> None:
    """A supervisor restarts only its own children."""
    with pytest.raises(ValueError, match=r"^'d/0' is not a child: a/0, b/0$"):
        one_for_one(["a/0", "b/0"], "d/0")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-35, "killed by signal 35"),
        (None, "ended, nobody saw how"),
    ],
)
def test_an_end_is_told_in_words(code: int | None, text: str) -> None:
    """The signal by its name."""
    assert describe_exit(code) == text
