"""@handles: what is read from a method, and what is refused when the class is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Generic, NoReturn, TypedDict, TypeVar

import pytest

from understudy.actors.actor import Actor
from understudy.actors.codec import MSGPACK, encode
from understudy.actors.context import BatchContext, Context
from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.event import Event
from understudy.actors.handlers import HandlerSpec, handles
from understudy.actors.policies import Batch

if TYPE_CHECKING:
    from somewhere import Unimported  # type: ignore[import-not-found]

T = TypeVar("T")


class Placed(Event, subject="orders.{region}.placed"):
    region: str


class Base(Event):
    at: int


class Page(Event, Generic[T], subject="pages"):
    items: list[T]


@dataclasses.dataclass
class Plain:
    x: int


def only(cls: type[Actor]) -> HandlerSpec:
    (handler,) = cls.__understudy__.handlers
    return handler


def test_type_and_subject_come_from_the_annotation() -> None:
    class Shop(Actor):
        @handles
        async def placed(self, event: Placed) -> None: ...

    handler = only(Shop)
    assert (handler.method, handler.filter, handler.type) == ("placed", "orders.*.placed", Placed)
    assert (handler.raw, handler.wants_context, handler.is_async) == (False, False, True)
    assert handler.decode(encode(Placed(region="eu")), MSGPACK, "orders.eu.placed") == Placed(region="eu")


def test_a_subject_that_contradicts_the_body_does_not_decode() -> None:
    class Shop(Actor):
        @handles
        async def placed(self, event: Placed) -> None: ...

    with pytest.raises(DecodeError) as caught:
        only(Shop).decode(b'{"region": "eu"}', None, "orders.us.placed")
    assert str(caught.value) == "Placed: the subject says region is 'us', the body says 'eu'"


def test_a_subject_given_by_hand_goes_before_the_events_own() -> None:
    class Narrow(Actor):
        @handles("orders.eu.placed")
        def placed(self, event: Placed, ctx: Context) -> None: ...

    class Other(Actor):
        @handles("imports.>")
        def placed(self, event: Placed) -> None: ...

    narrow, other = only(Narrow), only(Other)
    assert (narrow.filter, narrow.is_async, narrow.wants_context) == ("orders.eu.placed", False, True)
    with pytest.raises(DecodeError):
        narrow.decode(b'{"region": "us"}', None, "orders.eu.placed")
    assert other.decode(b'{"region": "us"}', None, "imports.x") == Placed(region="us")


def test_a_subject_may_bring_any_type_no_type_or_the_bytes() -> None:
    class Reader(Actor):
        @handles("dataclass")
        def dataclass(self, event: Plain) -> None: ...
        @handles("typed")
        def typed(self, event: dict[str, int]) -> None: ...
        @handles("value")
        def value(self, event): ...  # type: ignore[no-untyped-def]
        @handles("anything")
        def anything(self, event: Any) -> None: ...
        @handles("raw.>")
        def raw(self, event: bytes) -> None: ...

    by_name = {handler.method: handler for handler in Reader.__understudy__.handlers}
    body = b'{"x": 1}'
    read = {name: handler.decode(memoryview(body), None, "s") for name, handler in by_name.items()}
    assert read == {
        "dataclass": Plain(1),
        "typed": {"x": 1},
        "value": {"x": 1},
        "anything": {"x": 1},
        "raw": body,
    }
    assert type(read["raw"]) is bytes
    assert [name for name, handler in by_name.items() if handler.type is None] == ["value", "anything"]
    assert [name for name, handler in by_name.items() if handler.raw] == ["raw"]


def test_an_annotation_may_name_an_event_of_the_enclosing_function_or_class() -> None:
    class Local(Event, subject="local"):
        x: int

    class Listener(Actor):
        class Inner(Event, subject="inner"):
            pass

        @handles
        async def local(self, event: Local) -> None: ...
        @handles
        async def inner(self, event: Inner) -> None: ...

    assert [handler.type for handler in Listener.__understudy__.handlers] == [Local, Listener.Inner]


def test_a_generic_event_decodes_into_what_its_parameter_says() -> None:
    class Reader(Actor):
        @handles
        async def page(self, event: Page[int]) -> None: ...

    assert only(Reader).decode(b'{"items": [1]}', None, "pages") == Page(items=[1])
    with pytest.raises(DecodeError):
        only(Reader).decode(b'{"items": ["a"]}', None, "pages")


def test_a_decorated_coroutine_function_is_still_async() -> None:
    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any) -> Any:
            return method(*args)

        return call

    class Shop(Actor):
        @handles
        @decorate
        async def placed(self, event: Placed) -> None: ...

    assert only(Shop).is_async
    assert only(Shop).type is Placed


def test_handlers_are_inherited_and_may_be_overridden_or_dropped() -> None:
    class Parent(Actor):
        @handles
        async def placed(self, event: Placed) -> None: ...
        @handles("other")
        async def other(self, event: bytes) -> None: ...

    class Overrides(Parent):
        @handles
        def placed(self, event: Placed) -> None: ...  # type: ignore[override]

    class Drops(Parent):
        other = None  # type: ignore[assignment]

    assert [handler.is_async for handler in Overrides.__understudy__.handlers] == [False, True]
    assert [handler.method for handler in Drops.__understudy__.handlers] == ["placed"]


def declare_override_without_handles() -> None:
    class Parent(Actor):
        @handles
        async def placed(self, event: Placed) -> None: ...

    class Wrong(Parent):
        async def placed(self, event: Placed) -> None: ...


def declare_no_event() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self) -> None: ...


def declare_three_parameters() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Placed, ctx: Context, more: int = 1) -> None: ...


def declare_keyword_parameter() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Placed, *, ctx: Context) -> None: ...


def declare_no_annotation() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event): ...  # type: ignore[no-untyped-def]


def declare_no_event_type() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: dict[str, int]) -> None: ...


def declare_bytes_without_subject() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: bytes) -> None: ...


def declare_abstract_event() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Base) -> None: ...


def declare_two_for_one_event() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Placed) -> None: ...
        @handles("orders.*.placed")
        async def again(self, event: bytes) -> None: ...


def declare_unresolvable() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Unimported) -> None: ...


def declare_undecodable() -> None:
    class Wrong(Actor):
        @handles("a")
        async def placed(self, event: Placed | Base) -> None: ...


def declare_generator() -> None:
    class Wrong(Actor):
        @handles
        def placed(self, event: Placed) -> Iterator[Placed]:
            yield event


def declare_static() -> None:
    class Wrong(Actor):
        @staticmethod
        @handles
        def placed(self: Any, event: Placed) -> None: ...


def declare_on_a_class() -> None:
    class Wrong(Actor):
        @handles
        class Placed:
            pass


ANYTHING: Any = Placed


def declare_with_an_event() -> None:
    class Wrong(Actor):
        @handles(ANYTHING)  # type: ignore[untyped-decorator]
        async def placed(self, event: Placed) -> None: ...


def declare_bad_subject() -> None:
    class Wrong(Actor):
        @handles("a..b")
        async def placed(self, event: bytes) -> None: ...


class Told(Event):
    """Without a subject, and nothing is derived from it."""


def declare_returning_what_has_no_subject() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Placed) -> Told | None: ...


def declare_returning_a_list_of_it() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, event: Placed) -> list[Placed | Told]:
            raise NotImplementedError


def declare_batch_returning_what_has_no_subject() -> None:
    class Wrong(Actor):
        @handles(batch=Batch(size=2))
        def placed(self, events: list[Placed]) -> Told:
            raise NotImplementedError


EXPECTED_SUBJECT = (
    'W.placed returns Told, which has no subject to be published to; write class Told(Event, subject="…"), '
    "or if it is an answer, @handles(reply=Told)"
)
EXPECTED = "write (self, event: Placed) or (self, event: Placed, ctx: Context)"
EXPECTED_BATCH = "write (self, events: list[Placed]) or (self, events: list[Placed], ctx: BatchContext)"


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (
            declare_override_without_handles,
            "W.placed overrides a handler without @handles; "
            "put @handles above it, or write placed = None to handle that event no more",
        ),
        (declare_no_event, f"W.placed takes no event; {EXPECTED}"),
        (declare_three_parameters, f"W.placed has too many parameters ('more'); {EXPECTED}"),
        (
            declare_keyword_parameter,
            f"W.placed: the parameter ctx: 'Context' can't be filled; {EXPECTED}",
        ),
        (
            declare_no_annotation,
            "W.placed: the parameter 'event' has no annotation; "
            'annotate it with an Event, or give the subject: @handles("orders.>")',
        ),
        (
            declare_no_event_type,
            "W.placed takes dict, which is no Event; "
            'annotate it with one, or give the subject: @handles("orders.>")',
        ),
        (
            declare_bytes_without_subject,
            "W.placed takes bytes, which is no Event; "
            'annotate it with one, or give the subject: @handles("orders.>")',
        ),
        (
            declare_abstract_event,
            "W.placed: the event Base has no subject and is only a base of others; "
            'write class Base(Event, subject="…"), or handle the events derived from it',
        ),
        (
            declare_two_for_one_event,
            "W: placed and again both handle 'orders.*.placed'; "
            "keep one of them, or handle it in two actors",
        ),
        (
            declare_unresolvable,
            "W.placed: the annotation 'Unimported' of 'event' can't be resolved "
            "(name 'Unimported' is not defined); "
            "define or import the type above the class, not only for type checkers",
        ),
        (declare_generator, "W.placed yields; return the event, or a list of events, instead"),
        (declare_static, "W.placed: a handler is a plain method; remove staticmethod"),
        (
            declare_bad_subject,
            "@handles: the subject 'a..b' is not valid: a token between dots is empty",
        ),
        (declare_returning_what_has_no_subject, EXPECTED_SUBJECT),
        (declare_returning_a_list_of_it, EXPECTED_SUBJECT),
        (declare_batch_returning_what_has_no_subject, EXPECTED_SUBJECT),
    ],
)  # fmt: skip
def test_a_wrong_handler_is_refused_when_the_class_is_made(declare: Callable[[], None], text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert str(caught.value).replace(f"{declare.__name__}.<locals>.Wrong", "W") == text


def test_a_handler_may_return_an_answer_a_base_of_events_or_what_is_unknown() -> None:
    class Common(Event):
        pass

    class Special(Common, subject="special"):
        pass

    class Fine(Actor):
        @handles(reply=Told)
        async def answer(self, event: Placed) -> Told | None: ...
        @handles("a")
        async def base(self, event: bytes) -> Common | list[Event] | tuple[Special, ...] | None: ...
        @handles("b")
        async def unknown(self, event: bytes) -> Unimported | Told:
            raise NotImplementedError

        @handles("c")
        async def not_for_us(self, event: bytes) -> Any: ...

    handlers = Fine.__understudy__.handlers
    assert [handler.method for handler in handlers] == ["answer", "base", "unknown", "not_for_us"]


def declare_answering_nothing() -> None:
    class Wrong(Actor):
        @handles(reply=Told)
        async def placed(self, event: Placed) -> None: ...


def declare_answering_by_something_else() -> None:
    class Wrong(Actor):
        @handles(reply=Told)
        async def placed(self, event: Placed) -> Told | list[Told] | None: ...


@pytest.mark.parametrize(
    ("declare", "returned"),
    [(declare_answering_nothing, "None"), (declare_answering_by_something_else, f"list[{__name__}.Told]")],
)
def test_a_handler_that_declares_answers_and_returns_others_is_refused(
    declare: Callable[[], None], returned: str
) -> None:
    """Each of its runs would fail."""
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert str(caught.value).replace(f"{declare.__name__}.<locals>.Wrong", "W") == (
        f"W.placed returns {returned}, but declares reply=Told; return a Told, or take reply= away"
    )


def test_a_handler_may_answer_by_what_may_be_what_it_declares() -> None:
    """By a base of it, or by what nobody can tell before it runs."""

    class Row(TypedDict):
        cents: int

    class Fine(Actor):
        @handles(reply=Told)
        async def base(self, event: Placed) -> Event:
            raise NotImplementedError

        @handles("a", reply=Told)
        async def annotated(self, event: bytes) -> Annotated[Told, "by hand"]:
            raise NotImplementedError

        @handles("b", reply=Told)
        async def never(self, event: bytes) -> NoReturn:
            raise NotImplementedError

        @handles("c", reply=Told)
        async def unknown(self, event: bytes) -> Unimported:
            raise NotImplementedError

        @handles("d", reply=Told)
        async def not_annotated(self, event: bytes): ...  # type: ignore[no-untyped-def]
        @handles("e", reply=Told)
        async def not_for_us(self, event: bytes) -> Any: ...
        @handles("f", reply=Told)
        async def row(self, event: bytes) -> Row:
            raise NotImplementedError

        @handles("g", reply=dict)
        async def a_dict(self, event: bytes) -> dict[str, int]:
            raise NotImplementedError

    assert len(Fine.__understudy__.handlers) == 8


def test_a_decorator_may_make_the_answer() -> None:
    """What the function inside returns says nothing of it then, and functools.wraps shows nothing else."""

    def told(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def call(*args: Any) -> Told:
            await method(*args)
            return Told()

        return call

    class Fine(Actor):
        @handles(reply=Told)
        @told
        async def placed(self, event: Placed) -> str:
            raise NotImplementedError

    assert only(Fine).reply is Told


def test_answers_that_cant_be_checked_are_refused() -> None:
    """A TypedDict's are dicts like others, so that each would fail when it is given."""

    class Row(TypedDict):
        cents: int

    with pytest.raises(DeclarationError) as caught:
        handles(reply=Row)
    assert str(caught.value).partition("<locals>.")[2] == (
        "Row, which no answer can be checked against: TypedDict does not support instance and class checks"
    )


@pytest.mark.parametrize("declare", [declare_on_a_class, declare_with_an_event])
def test_handles_stands_on_methods_only(declare: Callable[[], None]) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert str(caught.value).endswith(
        'put it on a method, bare or with a subject: @handles or @handles("orders.>")'
    )


def test_handles_with_empty_parentheses_says_how_to_write_it() -> None:
    anything: Any = handles
    with pytest.raises(DeclarationError) as caught:

        class Wrong(Actor):
            @anything()  # type: ignore[untyped-decorator]
            async def placed(self, event: Placed) -> None: ...

    assert str(caught.value) == (
        '@handles() gives no subject; write @handles, or with a subject @handles("orders.>")'
    )


TEN = Batch(size=10)


def test_a_batch_handler_is_described_by_what_its_list_holds() -> None:
    class Shop(Actor):
        @handles(batch=TEN)
        async def placed(self, events: list[Placed], ctx: BatchContext) -> None: ...

    handler = only(Shop)
    assert (handler.batch, handler.filter, handler.type) == (TEN, "orders.*.placed", Placed)
    assert (handler.raw, handler.wants_context, handler.is_async) == (False, True, True)
    assert handler.decode(b'{"region": "eu"}', None, "orders.eu.placed") == Placed(region="eu")
    with pytest.raises(DecodeError):
        handler.decode(b'{"region": "eu"}', None, "orders.us.placed")


def test_a_batch_by_subject_may_hold_anything_that_a_body_decodes_into() -> None:
    class Reader(Actor):
        @handles("dataclass", batch=TEN)
        def dataclass(self, events: list[Plain]) -> None: ...
        @handles("generic", batch=TEN)
        def generic(self, events: list[Page[int]]) -> None: ...
        @handles("typed", batch=TEN)
        def typed(self, events: list[list[int]]) -> None: ...
        @handles("untyped", batch=TEN)
        def untyped(self, events: list[Any]) -> None: ...
        @handles("bare", batch=TEN)
        def bare(self, events: list) -> None: ...  # type: ignore[type-arg]
        @handles("value", batch=TEN)
        def value(self, events): ...  # type: ignore[no-untyped-def]
        @handles("raw.>", batch=TEN)
        def raw(self, events: list[bytes]) -> None: ...

    by_name = {handler.method: handler for handler in Reader.__understudy__.handlers}
    assert {handler.batch for handler in by_name.values()} == {TEN}
    assert by_name["dataclass"].decode(b'{"x": 1}', None, "s") == Plain(1)
    assert by_name["generic"].decode(b'{"items": [1]}', None, "s") == Page(items=[1])
    assert by_name["typed"].decode(b"[1]", None, "s") == [1]
    assert by_name["raw"].decode(memoryview(b"[1]"), None, "s") == b"[1]"
    assert [name for name, handler in by_name.items() if handler.type is None] == ["untyped", "bare", "value"]
    assert [name for name, handler in by_name.items() if handler.raw] == ["raw"]


def test_without_a_batch_a_body_may_be_a_list_itself() -> None:
    class Reader(Actor):
        @handles("numbers")
        def numbers(self, event: list[int]) -> None: ...
        @handles("one")
        def one(self, event: Placed) -> None: ...

    numbers, one = Reader.__understudy__.handlers
    assert (numbers.batch, numbers.type, numbers.decode(b"[1]", None, "s")) == (None, list[int], [1])
    assert one.batch is None


def declare_a_batch_of_no_list() -> None:
    class Wrong(Actor):
        @handles(batch=TEN)
        async def placed(self, event: Placed) -> None: ...


def declare_a_batch_of_a_tuple() -> None:
    class Wrong(Actor):
        @handles("a", batch=TEN)
        async def placed(self, events: tuple[Placed, ...]) -> None: ...


def declare_a_list_without_a_batch() -> None:
    class Wrong(Actor):
        @handles
        async def placed(self, events: list[Placed]) -> None: ...


def declare_a_generic_list_without_a_batch() -> None:
    class Wrong(Actor):
        @handles("pages")
        async def placed(self, events: list[Page[int]]) -> None: ...


def declare_a_batch_without_annotation() -> None:
    class Wrong(Actor):
        @handles(batch=TEN)
        async def placed(self, events): ...  # type: ignore[no-untyped-def]


def declare_a_batch_of_no_events() -> None:
    class Wrong(Actor):
        @handles(batch=TEN)
        async def placed(self, events: list[bytes]) -> None: ...


def declare_a_batch_without_events() -> None:
    class Wrong(Actor):
        @handles("a", batch=TEN)
        async def placed(self) -> None: ...


def declare_a_batch_with_an_events_context() -> None:
    class Wrong(Actor):
        @handles(batch=TEN)
        async def placed(self, events: list[Placed], ctx: Context) -> None: ...


def declare_an_event_with_a_batchs_context() -> None:
    async def placed(self: Actor, event: Any, ctx: Any) -> None: ...

    # Not as text, unlike everything else in this module.
    placed.__annotations__ = {"event": Placed, "ctx": BatchContext}
    type("Wrong", (Actor,), {"placed": handles(placed)})


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (
            declare_a_batch_of_no_list,
            f"W.placed takes Placed, but with batch=… it is handed a list; {EXPECTED_BATCH}",
        ),
        (
            declare_a_batch_of_a_tuple,
            f"W.placed takes tuple, but with batch=… it is handed a list; {EXPECTED_BATCH}",
        ),
        (
            declare_a_list_without_a_batch,
            "W.placed takes a list of Placed, but no batch=… is given; "
            "write @handles(batch=Batch(size=100)), or take one Placed",
        ),
        (
            declare_a_generic_list_without_a_batch,
            "W.placed takes a list of Page, but no batch=… is given; "
            "write @handles(batch=Batch(size=100)), or take one Page",
        ),
        (
            declare_a_batch_without_annotation,
            "W.placed: the parameter 'events' has no annotation; "
            'annotate it with a list of an Event, or give the subject: @handles("orders.>")',
        ),
        (
            declare_a_batch_of_no_events,
            "W.placed takes bytes, which is no Event; "
            'annotate it with one, or give the subject: @handles("orders.>")',
        ),
        (declare_a_batch_without_events, f"W.placed takes no event; {EXPECTED_BATCH}"),
        (
            declare_a_batch_with_an_events_context,
            "W.placed: ctx is a Context, but a handler of a batch is given a BatchContext; annotate it so",
        ),
        (
            declare_an_event_with_a_batchs_context,
            "Wrong.placed: ctx is a BatchContext, but a handler of one event is given a Context; "
            "annotate it so",
        ),
    ],
)  # fmt: skip
def test_a_wrong_batch_handler_is_refused_when_the_class_is_made(
    declare: Callable[[], None], text: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert str(caught.value).replace(f"{declare.__name__}.<locals>.Wrong", "W") == text


@pytest.mark.parametrize("batch", [100, Batch])
def test_batch_is_given_as_a_batch(batch: Any) -> None:
    with pytest.raises(DeclarationError) as caught:
        handles("a", batch=batch)
    assert str(caught.value) == (
        f"@handles: batch is {batch!r}; give a Batch: @handles(batch=Batch(size=100))"
    )


def test_a_type_that_no_body_decodes_into_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"Wrong\.placed takes .*, which no body decodes into: "):
        declare_undecodable()


def test_a_handler_may_use_what_is_assigned_after_its_class() -> None:
    """As in a test whose handler looks at the app that is made of it."""

    class Early(Actor):
        @handles
        async def placed(self, event: Placed) -> None:
            seen.append(later)

    seen: list[str] = []
    later = "assigned"
    assert Early.__understudy__.handlers[0].type is Placed


def test_a_handler_may_declare_the_breakers_that_it_needs() -> None:
    """With or without a subject or a batch; their names are checked with the app."""

    class Paying(Actor):
        @handles(breakers=["payments", "mail"])
        async def placed(self, event: Placed) -> None: ...

        @handles("raw.>", breakers=("mail",))
        async def raw(self, event: bytes) -> None: ...

    assert [handler.breakers for handler in Paying.__understudy__.handlers] == [
        ("payments", "mail"),
        ("mail",),
    ]


@pytest.mark.parametrize("given", ["payments", [1], ["a b"], None])
def test_names_of_breakers_that_are_none_are_refused(given: object) -> None:
    """A text is no list of names."""
    with pytest.raises(DeclarationError, match="@handles: breakers"):
        handles("raw.>", breakers=given)  # type: ignore[call-overload]
