"""The policy of an idempotent actor, the names of its marks, and what a cell remembers of them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.actor import Actor
from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.runtime.app import App
from understudy.runtime.specs import ConsumerSpec
from understudy.runtime.stores.idempotency import MarkMemory, mark_name
from understudy.runtime.stream import Stream


class Placed(Event, subject="orders.placed"):
    number: int


def consumer_of(idempotency: Idempotency | None) -> ConsumerSpec:
    """Return the consumer of an actor with this policy."""

    class Billing(Actor, idempotency=idempotency):
        @handles
        async def placed(self, event: Placed) -> None: ...

    app = App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[Billing])
    (consumer,) = app.spec().consumers
    return consumer


def key_of(key: str | Callable[..., object], event: object, headers: Mapping[str, str] = {}) -> str:
    """Return what a policy's key comes to."""
    function = Idempotency(window_seconds=60, key=key).key_function()
    assert function is not None
    return function(event, lambda: headers)


class ByHeader:
    """A key that is an object with a state."""

    def __call__(self, event: object, headers: Mapping[str, str]) -> object:
        return headers["Order"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("number", "7"),
        (lambda event: f"n{event.number}", "n7"),
        (lambda event, prefix="p": f"{prefix}{event.number}", "p7"),
        (lambda event, headers: headers["Order"] + str(event.number), "o7"),
        (ByHeader(), "o"),
        (functools.partial(lambda prefix, event: f"{prefix}{event.number}", "q"), "q7"),
        (lambda _: UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_key_is_an_attribute_or_made_of_the_event_and_its_headers(
    key: str | Callable[..., object], text: str
) -> None:
    """A second argument that has a default isn't meant for the headers."""
    assert key_of(key, Placed(number=7), {"Order": "o"}) == text


def test_a_key_of_an_untyped_event_is_an_item() -> None:
    assert key_of("number", {"number": 3}) == "3"


@pytest.mark.parametrize("value", [None, "", 1.5, True, b"x", (1, 2), object()])
def test_a_key_whose_text_may_be_another_tomorrow_is_refused(value: object) -> None:
    with pytest.raises(DecodeError, match=r"give a str that isn't empty, an int or a UUID$"):
        key_of(lambda _: value, Placed(number=1))


def test_a_missing_attribute_says_so() -> None:
    with pytest.raises(DecodeError) as caught:
        key_of("nummer", {"number": 3})
    assert str(caught.value) == "dict: 'nummer' can't be read as the idempotency key: 'nummer'"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"window_seconds": 0.5}, "Idempotency: window_seconds is 0.5; give at least 1"),
        ({"window_seconds": 60, "key": 5}, "Idempotency: key is 5; give an attribute's name or a callable"),
        (
            {"window_seconds": 60, "capacity": 0},
            "Idempotency: capacity is 0; give an integer of 1 or more",
        ),
        ({"window_seconds": 60, "keys": "a"}, "Idempotency: unknown option 'keys'; did you mean 'key'?"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_declared(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        Idempotency(**options)
    assert str(caught.value) == problem


def no_arguments() -> str:
    """Return nothing of use."""
    return ""


def test_a_key_that_takes_no_event_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"can't be called with an event, nor with"):
        Idempotency(window_seconds=60, key=no_arguments)


def test_the_actor_s_option_is_checked() -> None:
    with pytest.raises(DeclarationError) as caught:

        class Billing(Actor, idempotency=60): ...  # type: ignore[arg-type]

    assert str(caught.value).endswith("idempotency is 60; give an Idempotency(window_seconds=…)")


def test_a_key_by_name_must_be_a_field_of_the_events() -> None:
    with pytest.raises(DeclarationError) as caught:
        consumer_of(Idempotency(window_seconds=60, key="nunber"))
    assert str(caught.value).endswith(
        "the idempotency's key is 'nunber', but Placed, which placed takes, has no such field"
        "; did you mean 'number'?"
    )


def test_only_marks_on_the_server_need_a_bucket() -> None:
    assert consumer_of(Idempotency(window_seconds=60)).has_marks
    assert not consumer_of(Idempotency(window_seconds=60, store="memory")).has_marks
    assert not consumer_of(None).has_marks


LEGAL = re.compile(r"[-/_=.a-zA-Z0-9]{1,64}")


@given(st.text(min_size=1))
def test_any_key_has_a_legal_name_as_one_token(key: str) -> None:
    """As ADR-8 says what a key of a bucket is; a dot would make two tokens."""
    name = mark_name(key)
    assert LEGAL.fullmatch(name)
    assert "." not in name


@given(
    st.text(alphabet="ab-_=.", min_size=1, max_size=80), st.text(alphabet="ab-_=.", min_size=1, max_size=80)
)
def test_other_keys_have_other_names(one: str, other: str) -> None:
    """Plain and hashed ones too."""
    assert (mark_name(one) == mark_name(other)) is (one == other)


def test_a_short_plain_key_can_be_read_in_the_bucket() -> None:
    assert mark_name("order-17_b") == "order-17_b"


def test_what_a_cell_remembers_it_forgets_after_the_window() -> None:
    memory = MarkMemory(capacity=10, window_seconds=5)
    memory.add("a", 100.0)
    assert memory.has("a", 104.9)
    assert not memory.has("a", 105.0)
    assert not memory.has("b", 100.0)


def test_a_name_that_is_added_again_is_remembered_anew() -> None:
    memory = MarkMemory(capacity=2, window_seconds=5)
    memory.add("a", 100.0)
    memory.add("b", 101.0)
    memory.add("a", 102.0)
    memory.add("c", 103.0)
    assert [name for name in "abc" if memory.has(name, 103.0)] == ["a", "c"]


def test_it_says_how_far_its_capacity_had_it_forget() -> None:
    """Not what was out of time: nobody asks for that any more."""
    memory = MarkMemory(capacity=2, window_seconds=5)
    forgotten = []
    for second, name in [(100, "a"), (101, "b"), (102, "c"), (103, "d"), (110, "e")]:
        memory.add(name, second)
        forgotten.append(memory.forgotten_until)
    assert forgotten == [-math.inf, -math.inf, 100, 101, 101]


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 2)), max_size=200))
def test_it_remembers_the_latest_and_no_more_than_its_capacity(added: list[tuple[int, float]]) -> None:
    """And of what is out of time nothing, once another name is added."""
    memory = MarkMemory(capacity=8, window_seconds=10)
    latest: dict[str, float] = {}
    now = 0.0
    for number, pause in added:
        now += pause
        latest.pop(str(number), None)
        latest[str(number)] = now
        memory.add(str(number), now)
        assert len(memory) <= 8
        kept = [name for name in list(latest)[-8:] if now < latest[name] + 10]
        assert [name for name in latest if memory.has(name, now)] == kept
        assert len(memory) == len(kept)
