"""State classes: their fields, versions and limits, and the names of keys."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import Any

import msgspec
import pytest

from understudy.actors.actor import Actor
from understudy.actors.errors import DeclarationError, DecodeError, StateError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Batch
from understudy.actors.state import State, StateCodec, StateMeta
from understudy.runtime.stores.state import name_of


class Total(State):
    count: int = 0
    names: dict[str, int] = msgspec.field(default_factory=dict)


class Narrow(State, max_bytes=20):
    text: str = ""


class Renamed(State, version=3):
    number: int = 0

    @classmethod
    def upgrade(cls, version: int, data: dict[str, Any]) -> dict[str, Any]:
        return {"number": data["count"] + version}


class RenamedAgain(Renamed, version=4):
    pass


class Noted(Event, subject="notes.noted"):
    number: int


def test_a_state_begins_with_its_defaults_of_its_own() -> None:
    one, other = Total(), Total()
    one.names["a"] = 1
    one.count += 1
    assert (other.count, other.names) == (0, {})


@pytest.mark.parametrize(
    ("body", "keywords", "problem"),
    [
        (
            {"count": int},
            {},
            "state A: the field 'count' has no default; every state begins with its defaults",
        ),
        ({}, {"verson": 2}, "state A: unknown option 'verson'; did you mean 'version'?"),
        ({}, {"version": 0}, "state A: version is 0; give an integer of 1 or more"),
        ({}, {"max_bytes": "1"}, "state A: max_bytes is '1'; give an integer of 1 or more"),
        (
            {},
            {"version": 2},
            "state A: version is 2, but nothing makes it of older ones; write a class method",
        ),
    ],
)
def test_a_wrong_class_is_named_with_what_is_right(
    body: dict[str, Any], keywords: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        StateMeta("A", (State,), {"__annotations__": body}, **keywords)
    assert str(caught.value).startswith(problem)


def test_a_field_that_can_t_be_stored_is_found_with_the_actor() -> None:
    class Open(State):
        either: list[int] | set[int] | None = None

    with pytest.raises(DeclarationError, match=r"actor .*Opening: .*Open has a field that can't be stored: "):

        class Opening(Actor, state=Open):
            pass


def test_batches_have_no_state() -> None:
    with pytest.raises(DeclarationError, match="noted takes batches, which have no state; handle"):

        class Opening(Actor, state=Total):
            @handles(batch=Batch(size=2))
            async def noted(self, events: list[Noted]) -> None: ...


def test_what_is_read_back_shares_nothing_with_what_was_stored() -> None:
    codec = StateCodec(Total, "actor A")
    value = Total(count=1, names={"a": 1})
    data, copy = codec.encode(value)
    value.names["b"] = 2
    assert copy == codec.decode(data, 1) == Total(count=1, names={"a": 1})


def test_what_could_not_be_read_again_is_not_stored() -> None:
    value = Total()
    value.count = "one"  # type: ignore[assignment]
    with pytest.raises(StateError, match=r"Total can't be stored: Expected `int`, got `str` - at `\$.count`"):
        StateCodec(Total, "actor A").encode(value)


def test_a_state_over_its_limit_is_not_stored() -> None:
    codec = StateCodec(Narrow, "actor A")
    codec.encode(Narrow(text="x" * 13))
    with pytest.raises(StateError, match="Narrow takes 21 bytes, its max_bytes is 20; keep less in it"):
        codec.encode(Narrow(text="x" * 14))


def test_an_older_state_is_upgraded_and_a_newer_one_refused() -> None:
    data, _ = StateCodec(Total, "actor A").encode(Total(count=5))
    assert StateCodec(Renamed, "actor A").decode(data, 2) == Renamed(number=7)
    assert StateCodec(RenamedAgain, "actor A").decode(data, 1) == RenamedAgain(number=6)
    with pytest.raises(
        StateError, match="stored by its version 2, and this one is 1; deploy version 2 again"
    ):
        StateCodec(Total, "actor A").decode(data, 2)


def test_a_failed_upgrade_says_which() -> None:
    data, _ = StateCodec(Narrow, "actor A").encode(Narrow())
    with pytest.raises(StateError) as caught:
        StateCodec(Renamed, "actor A").decode(data, 1)
    assert str(caught.value) == "Renamed, stored by version 1, can't be read by version 3: KeyError: 'count'"


def test_fields_may_come_and_go_without_a_version() -> None:
    data, _ = StateCodec(Total, "actor A").encode(Total(count=5))
    assert StateCodec(Narrow, "actor A").decode(data, 1) == Narrow(text="")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("UA", "UA"),
        (42, "=42"),
        (-1, "=-1"),
        (True, "=1"),
        (7.0, "=7"),
        ("42", "42"),
        ("", "=xoA"),
        ("a.b", "=xo2EuYg"),
        (None, "=xwA"),
        (("a", 1), "=xkqFhAQ"),
        (float("inf"), "=xy3_wAAAAAAAA"),
    ],
)
def test_a_key_has_a_legal_name(key: Any, name: str) -> None:
    assert name_of(key) == name


def test_different_keys_have_different_names_of_bounded_length() -> None:
    keys = [
        "a" * 128,
        "a" * 129,
        "a" * 500,
        "a" * 501,
        "é",
        "*",
        ">",
        " ",
        "=42",
        "=",
        b"a",
        "a",
        uuid.uuid4(),
    ]
    names = {name_of(key) for key in keys}
    assert len(names) == len(keys)
    assert max(map(len, names)) <= 200


def test_a_set_has_one_name_in_every_process() -> None:
    code = (
        "from understudy.runtime.stores.state import name_of; "
        "print(name_of(frozenset({'a', 'b', 'c', 'dd', 'ee', 'ff'})))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(seen) == 1


def test_what_can_t_name_a_state_is_an_error() -> None:
    with pytest.raises(DecodeError, match=r"can't name a state: .*; use a text, a number or a tuple of them"):
        name_of(object())
