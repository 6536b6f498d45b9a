"""Bodies: round trips, limits and errors."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import uuid
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.codec import JSON, MSGPACK, decode_untyped, decoder, encode
from understudy.actors.errors import DecodeError, EncodeError
from understudy.actors.event import Event


class Everything(Event, subject="everything"):
    text: str
    whole: int
    real: float
    raw: bytes
    at: dt.datetime
    day: dt.date
    price: decimal.Decimal
    id: uuid.UUID
    tags: list[str]
    scores: dict[str, float]
    maybe: int | None = None


class Small(Event, subject="small"):
    carrier: str
    delay_minutes: float


@dataclasses.dataclass
class Plain:
    x: int


class Strict(Event, subject="strict"):
    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise KeyError("negative")


texts = st.text(st.characters(codec="utf-8"))
wholes = st.integers(-(2**63), 2**64 - 1)
everythings = st.builds(
    Everything,
    text=texts,
    whole=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(allow_nan=False, allow_infinity=False),
    raw=st.binary(),
    at=st.datetimes(timezones=st.just(dt.UTC)),
    day=st.dates(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    id=st.uuids(),
    tags=st.lists(texts),
    scores=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False)),
    maybe=st.none() | st.integers(0, 9),
)
values = st.recursive(
    st.none() | st.booleans() | wholes | st.floats(allow_nan=False) | texts | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)

decode_everything = decoder(Everything)
decode_small = decoder(Small)


@given(everythings)
def test_a_typed_event_comes_back_as_it_went(event: Everything) -> None:
    assert decode_everything(encode(event), MSGPACK) == event
    assert decode_everything(encode(event), None) == event
    assert decode_everything(msgspec.json.encode(event), JSON) == event


@given(values)
def test_a_plain_value_comes_back_as_it_went_with_its_types(value: Any) -> None:
    again = decode_untyped(encode(value), MSGPACK)
    assert again == value
    assert repr(again) == repr(value)


@given(st.binary())
def test_no_bytes_do_more_than_fail_to_decode(data: bytes) -> None:
    for decode in (decode_untyped, decode_small, decode_everything):
        for content_type in (None, MSGPACK, JSON):
            text = "decoded"
            try:
                decode(data, content_type)
            except DecodeError as error:
                text = str(error)
            assert 0 < len(text) <= 300


def test_any_msgpack_client_can_read_an_event() -> None:
    body = encode(Small(carrier="UA", delay_minutes=75))
    assert msgpack.unpackb(body) == {"carrier": "UA", "delay_minutes": 75}


def test_dataclasses_and_structs_are_encoded_as_maps() -> None:
    assert decode_untyped(encode(Plain(3)), None) == {"x": 3}
    assert decoder(Plain)(encode(Plain(3)), None) == Plain(3)


def test_json_is_read_by_its_content_type_or_its_first_byte() -> None:
    body = b'{"carrier": "UA", "delay_minutes": 75}'
    expected = Small(carrier="UA", delay_minutes=75)
    for content_type in (None, JSON, "Application/JSON; charset=utf-8"):
        assert decode_small(body, content_type) == expected
        assert decode_small(memoryview(body), content_type) == expected
        assert decode_small(bytearray(body), content_type) == expected
    assert decode_untyped(b"[1, 2.0]", None) == [1, 2.0]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b'{"carrier": 1, "delay_minutes": 2}', None, "Small: Expected `str`, got `int` - at `$.carrier`"),
        (b'{"carrier": "UA"}', None, "Small: Object missing required field `delay_minutes`"),
        (b"", None, "Small: the body is empty"),
        (b"", JSON, "Small: the body is empty"),
        (b"{", JSON, "Small: Input data was truncated"),
        (b"\x91" * 100_000, None, "Small: Expected `object`, got `array`"),
        (b"\x81\xa1z" + b"\x91" * 100_000, MSGPACK, "Small: nested too deeply"),
        (b'{"z":' + b"[" * 100_000, JSON, "Small: nested too deeply"),
        (
            b"<a/>",
            "text/xml",
            "Small: content type 'text/xml' is not read; send application/msgpack or application/json",
        ),
    ],
)
def test_a_body_that_does_not_fit_says_what_was_wrong(
    body: bytes, content_type: str | None, text: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_small(body, content_type)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body: the body is empty"),
        (b"\x91" * 100_000, "body: nested too deeply"),
        (b"\xdd\xff\xff\xff\xff", "body: 4294967295 exceeds max_array_len(5)"),
        (b"\xc1", "body: MessagePack is malformed"),
        (b"\xd4\x05\x01", "body: MessagePack extension type 5 (1 bytes) is not read"),
        (b"\x81\x90\x01", "body: unhashable type: 'list'"),
    ],
)
def test_untyped_bodies_are_bounded(body: bytes, text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_untyped(body, MSGPACK)
    assert str(caught.value) == text


def test_what_a_users_own_check_raises_is_a_decode_error_too() -> None:
    with pytest.raises(DecodeError) as caught:
        decoder(Strict)(b'{"x": -1}', None)
    assert str(caught.value) == "Strict: 'negative'"


def test_a_long_error_is_cut() -> None:
    with pytest.raises(DecodeError) as caught:
        decode_untyped(b"{}", "x" * 1000)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), "object can't be encoded: Encoding objects of type object is unsupported"),
        (2**70, "int can't be encoded: Integer value out of range"),
        ("\ud800", "str can't be encoded: 'utf-8' codec can't encode character '\\ud800' in position 0: "
         "surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_has_no_form_on_the_wire_is_an_encode_error(value: object, text: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert str(caught.value) == text


def test_a_value_that_holds_itself_is_an_encode_error_and_the_next_goes_out() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(EncodeError) as caught:
        encode(endless)
    assert str(caught.value) == "list can't be encoded: nested too deeply"
    assert encode(1) == b"\x01"
