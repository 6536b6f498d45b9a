"""Event: a typed, immutable value with a subject.

    class Placed(Event, subject="orders.{region}.placed"):
        region: str
        amount: float

A placeholder names a field: it is filled in on publishing, is a `*` in the filter, and is compared with the
body on receipt.
"""

import dataclasses
import datetime as dt
import enum
import re
import uuid
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

import msgspec

from understudy.actors.errors import DeclarationError, DecodeError, EncodeError
from understudy.actors.keywords import check_keywords
from understudy.actors.names import check_integer, nearest
from understudy.actors.subjects import MAX_SUBJECT_LENGTH, check_filter, is_plain

_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_Meta = TypeVar("_Meta", bound="EventMeta")
# Goes out as a header, and names types in the manner of reverse domain names.
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventSpec:
    """What an event class declares beside its fields.

    `subject` is the template as written, empty for a class that is only a base of other events;
    `filter` is the template with `*` for each placeholder.
    """

    subject: str
    name: str
    version: int
    placeholders: tuple[str, ...] = ()
    filter: str = ""
    tokens: tuple[str, ...] = ()
    positions: tuple[tuple[int, str], ...] = ()


class EventMeta(msgspec.StructMeta):
    """Makes event classes: takes the class keywords that msgspec's own metaclass would refuse."""

    __understudy__: EventSpec

    def __new__(  # noqa: D102, PYI019 - Self is refused in a metaclass
        mcs: type[_Meta],
        class_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        subject: str | None = None,
        name: str | None = None,
        version: int = 1,
        **unknown: object,
    ) -> _Meta:
        # Event itself says frozen and kw_only, for type checkers, which know these two from Struct.
        if bases != (msgspec.Struct,):
            check_keywords(unknown, ("subject", "name", "version"), f"event {class_name}")
        cls = super().__new__(mcs, class_name, bases, namespace, frozen=True, kw_only=True)
        if "__understudy__" in cls.__struct_fields__:
            raise DeclarationError(f"event {class_name}: a field can't be called '__understudy__'; rename it")
        cls.__understudy__ = _make_spec(cls, subject, name, version)
        return cls


def _make_spec(cls: EventMeta, subject: object, name: object, version: object) -> EventSpec:
    where = f"event {cls.__qualname__}"
    name = cls.__name__ if name is None else name
    if not isinstance(name, str) or not _EVENT_NAME.fullmatch(name):
        raise DeclarationError(
            f"{where}: the name is {name!r}; use 1 to 128 of the characters A-Z, a-z, 0-9, '_', '.' and '-'"
        )
    version = check_integer(version, f"{where}: version", minimum=1)
    if subject is None:
        return EventSpec(subject="", name=name, version=version)
    if not isinstance(subject, str):
        raise DeclarationError(f'{where}: the subject is {subject!r}; give a text such as "orders.placed"')
    fields = cls.__struct_fields__
    tokens = subject.split(".")
    positions: list[tuple[int, str]] = []
    for index, token in enumerate(tokens):
        if "{" not in token and "}" not in token:
            continue
        placeholder = _PLACEHOLDER.fullmatch(token)
        if placeholder is None:
            raise DeclarationError(
                f"{where}: in the subject {subject!r} the token {token!r} mixes text and placeholder; "
                f"a placeholder is a whole token, as in 'orders.{{region}}.placed'"
            )
        if placeholder[1] not in fields:
            raise DeclarationError(
                f"{where}: the subject {subject!r} names {placeholder[1]!r}, "
                f"which is no field of it{nearest(placeholder[1], fields)}"
            )
        positions.append((index, placeholder[1]))
    if "*" in subject or ">" in subject:
        raise DeclarationError(
            f"{where}: the subject {subject!r} has a wildcard, but events are published to it; "
            f"name a field instead, as in 'orders.{{region}}.placed'"
        )
    pattern = _PLACEHOLDER.sub("*", subject)
    check_filter(pattern, where)
    return EventSpec(
        subject=subject,
        name=name,
        version=version,
        placeholders=tuple(dict.fromkeys(field for _, field in positions)),
        filter=pattern,
        tokens=tuple(tokens),
        positions=tuple(positions),
    )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=EventMeta, frozen=True, kw_only=True):
    """The base of typed events: frozen, keyword-only, decoded straight into their type.

    Class keywords: `subject` (may hold placeholders, `"orders.{region}.placed"`), `name` (the class name)
    and `version` (1). A class without a subject is a base of other events and can't be handled or published.
    Unknown fields of a body are ignored, so that a newer publisher doesn't break an older reader.
    """

    __understudy__: ClassVar[EventSpec]

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, subject: str = ..., name: str = ..., version: int = ...) -> None: ...


def event_spec(type_: object) -> EventSpec | None:
    """The EventSpec of an event class that has a subject, else None."""
    if isinstance(type_, EventMeta):
        spec = type_.__understudy__
        return spec if spec.subject else None
    return None


def subject_of(event: object) -> str:
    """The subject that `event` is published to, its placeholders filled in; EncodeError if there is none."""
    spec = event_spec(type(event))
    if spec is None:
        raise EncodeError(_no_subject_text(event))
    if not spec.positions:
        return spec.subject
    tokens = list(spec.tokens)
    for index, field in spec.positions:
        tokens[index] = _token(event, field)
    subject = ".".join(tokens)
    if len(subject) > MAX_SUBJECT_LENGTH:
        raise EncodeError(f"{spec.name}: the subject has {len(subject)} characters; the most is 1000")
    return subject


def _no_subject_text(event: object) -> str:
    if isinstance(event, type):
        name = event.__qualname__
        return f"the class {name} can't be published; give an event of it, {name}(…)"
    name = type(event).__qualname__
    remedy = (
        f'write class {name}(Event, subject="…")'
        if isinstance(event, Event)
        else "make it an Event, or publish it with subject="
    )
    return f"{name} has no subject to be published to; {remedy}"


def check_subject(event: object, subject: str) -> None:
    """Raises DecodeError if the subject that `event` came on contradicts its fields."""
    spec = event_spec(type(event))
    if spec is None or not spec.positions:
        return
    tokens = subject.split(".")
    for index, field in spec.positions:
        # The common case: a text that is just the token.
        if index < len(tokens) and getattr(event, field) == tokens[index]:
            continue
        try:
            expected = _token(event, field)
        except EncodeError as error:
            raise DecodeError(str(error)) from error
        found = tokens[index] if index < len(tokens) else ""
        if found != expected:
            raise DecodeError(
                f"{spec.name}: the subject says {field} is {found[:80]!r}, the body says {expected[:80]!r}"
            )


def _token(event: object, field: str) -> str:
    value = getattr(event, field)
    if isinstance(value, enum.Enum):
        value = value.value
    if not isinstance(value, str | int | uuid.UUID | dt.date):
        raise EncodeError(
            f"{type(event).__qualname__}: {field} is {_short(value)}, which can't be part of a subject; "
            f"use a str, int, date or UUID"
        )
    token = str(value)
    if not is_plain(token):
        raise EncodeError(
            f"{type(event).__qualname__}: {field} is {_short(value)}, which can't be part of a subject; "
            f"it must not be empty nor hold '.', '*', '>', white space or control characters"
        )
    return token


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
