"""Events: what a class may declare, and how its subject is filled in and compared."""

from __future__ import annotations

import datetime as dt
import enum
import pickle
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from understudy.actors.errors import DeclarationError, DecodeError, EncodeError
from understudy.actors.event import Event, check_subject, event_spec, subject_of

T = TypeVar("T")


class Placed(Event, subject="orders.{region}.{number}.placed", name="shop.placed", version=2):
    region: str
    number: int = 1
    note: str = ""


class Awkward(Event, subject="awkward.{subject}"):
    subject: str
    name: str = "its own"
    version: int = 7


class Base(Event):
    at: int


class Derived(Base, subject="derived"):
    more: int = 0


class Page(Event, Generic[T], subject="pages"):
    items: list[T]


class Colour(enum.Enum):
    RED = "red"


class Tokens(Event, subject="tokens.{value}"):
    value: Any


def test_an_event_is_frozen_keyword_only_and_knows_its_metadata() -> None:
    spec = Placed.__understudy__
    assert (spec.name, spec.version, spec.subject) == ("shop.placed", 2, "orders.{region}.{number}.placed")
    assert (spec.filter, spec.placeholders) == ("orders.*.*.placed", ("region", "number"))
    with pytest.raises(AttributeError):
        Placed(region="eu").region = "us"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Placed("eu")  # type: ignore[call-arg]


def test_fields_may_be_called_as_the_class_keywords_are() -> None:
    event = Awkward(subject="x")
    assert (event.subject, event.name, event.version) == ("x", "its own", 7)
    assert (Awkward.__understudy__.name, Awkward.__understudy__.version) == ("Awkward", 1)
    assert subject_of(event) == "awkward.x"


@pytest.mark.parametrize("event", [Placed(region="eu"), Awkward(subject="x"), Derived(at=1), Page(items=[1])])
def test_events_survive_pickling(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event


def test_a_base_without_a_subject_passes_its_fields_on_and_can_not_be_published() -> None:
    assert subject_of(Derived(at=1)) == "derived"
    assert event_spec(Base) is None
    with pytest.raises(EncodeError) as caught:
        subject_of(Base(at=1))
    assert str(caught.value) == (
        'Base has no subject to be published to; write class Base(Event, subject="…")'
    )


def test_an_event_derived_from_one_with_a_subject_needs_its_own() -> None:
    class Special(Derived):
        pass

    assert event_spec(Special) is None


def test_what_is_no_event_needs_a_subject_beside_it() -> None:
    with pytest.raises(EncodeError) as caught:
        subject_of({"a": 1})
    assert str(caught.value) == (
        "dict has no subject to be published to; make it an Event, or publish it with subject="
    )


def test_a_class_in_an_events_place_is_told_from_an_event_without_a_subject() -> None:
    with pytest.raises(EncodeError) as caught:
        subject_of(Derived)
    assert str(caught.value) == "the class Derived can't be published; give an event of it, Derived(…)"


def test_a_newer_publisher_may_send_more_fields() -> None:
    assert msgspec.json.decode(b'{"at": 1, "unknown": 2}', type=Derived) == Derived(at=1)


def declare_unknown_keyword() -> None:
    class Wrong(Event, subjct="a"):
        pass


def declare_wildcard() -> None:
    class Wrong(Event, subject="a.*"):
        pass


def declare_missing_field() -> None:
    class Wrong(Event, subject="a.{regoin}"):
        region: str


def declare_mixed_token() -> None:
    class Wrong(Event, subject="a.x-{region}"):
        region: str


def declare_space() -> None:
    class Wrong(Event, subject="a b"):
        pass


def declare_empty_subject() -> None:
    class Wrong(Event, subject=""):
        pass


def declare_wrong_name() -> None:
    class Wrong(Event, subject="a", name="x\r\ny"):
        pass


def declare_wrong_version() -> None:
    class Wrong(Event, subject="a", version=0):
        pass


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (declare_unknown_keyword, "event Wrong: unknown option 'subjct'; did you mean 'subject'?"),
        (
            declare_wildcard,
            "event {}: the subject 'a.*' has a wildcard, but events are published to it; "
            "name a field instead, as in 'orders.{{region}}.placed'",
        ),
        (
            declare_missing_field,
            "event {}: the subject 'a.{{regoin}}' names 'regoin', which is no field of it; "
            "did you mean 'region'?",
        ),
        (
            declare_mixed_token,
            "event {}: in the subject 'a.x-{{region}}' the token 'x-{{region}}' mixes text and placeholder; "
            "a placeholder is a whole token, as in 'orders.{{region}}.placed'",
        ),
        (
            declare_space,
            "event {}: the subject 'a b' is not valid: white space and control characters aren't allowed",
        ),
        (declare_empty_subject, "event {}: the subject is ''; give a text such as \"orders.placed\""),
        (
            declare_wrong_name,
            "event {}: the name is 'x\\r\\ny'; "
            "use 1 to 128 of the characters A-Z, a-z, 0-9, '_', '.' and '-'",
        ),
        (declare_wrong_version, "event {}: version is 0; give an integer of 1 or more"),
    ],
)
def test_a_wrong_declaration_is_refused_when_the_class_is_made(
    declare: Callable[[], None], text: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert str(caught.value) == text.format(f"{declare.__name__}.<locals>.Wrong")


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("eu", "eu"),
        (7, "7"),
        (Colour.RED, "red"),
        (dt.date(2013, 1, 1), "2013-01-01"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_placeholders_are_filled_from_the_fields(value: object, token: str) -> None:
    assert subject_of(Tokens(value=value)) == f"tokens.{token}"
    check_subject(Tokens(value=value), f"tokens.{token}")


@pytest.mark.parametrize("value", ["", "a.b", "*", ">", "a b", "a\r\nPUB x 1", "\x00", "\x7f", "\t"])
def test_a_value_that_would_change_the_subject_is_refused(value: str) -> None:
    with pytest.raises(EncodeError) as caught:
        subject_of(Tokens(value=value))
    assert str(caught.value) == (
        f"Tokens: value is {value!r}, which can't be part of a subject; "
        f"it must not be empty nor hold '.', '*', '>', white space or control characters"
    )


@pytest.mark.parametrize("value", [None, 1.5, ["a"]])
def test_a_value_without_a_plain_text_is_refused(value: object) -> None:
    with pytest.raises(EncodeError) as caught:
        subject_of(Tokens(value=value))
    assert str(caught.value) == (
        f"Tokens: value is {value!r}, which can't be part of a subject; use a str, int, date or UUID"
    )


def test_an_overlong_subject_is_refused() -> None:
    with pytest.raises(EncodeError) as caught:
        subject_of(Tokens(value="a" * 1000))
    assert str(caught.value) == "Tokens: the subject has 1007 characters; the most is 1000"


def test_a_subject_that_contradicts_the_body_is_refused() -> None:
    check_subject(Placed(region="eu", number=3), "orders.eu.3.placed")
    with pytest.raises(DecodeError) as caught:
        check_subject(Placed(region="eu", number=3), "orders.us.3.placed")
    assert str(caught.value) == "shop.placed: the subject says region is 'us', the body says 'eu'"
    with pytest.raises(DecodeError):
        check_subject(Placed(region="e.u", number=3), "orders.eu.3.placed")
