"""@handles, and what is read from a method that carries it."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, get_args, get_origin, overload

from understudy.actors.annotations import resolve
from understudy.actors.codec import Body, Decoder, decode_untyped, decoder
from understudy.actors.context import BatchContext, Context
from understudy.actors.errors import DeclarationError
from understudy.actors.event import Event, EventMeta, check_subject, event_spec
from understudy.actors.keywords import declares
from understudy.actors.names import check_name
from understudy.actors.policies import Batch
from understudy.actors.returned import has_subject, is_surely_no, returned_by, shown
from understudy.actors.subjects import check_filter, covers

_MARK = "__understudy_handles__"
_Method = TypeVar("_Method", bound=Callable[..., Any])
_Class: TypeAlias = type
_NOTHING: Any = object()
_EXPECTED = "write (self, event: Placed) or (self, event: Placed, ctx: Context)"
_EXPECTED_BATCH = "write (self, events: list[Placed]) or (self, events: list[Placed], ctx: BatchContext)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """One handler, with everything about it that can be known when its class is made.

    `type` is None where the handler takes the decoded value as it is; `raw` says that it takes the bytes.
    `decode(body, content_type, subject)` returns what the handler takes or raises DecodeError. With `batch`
    the handler takes a list; these three then say what its members are. `breakers` are the names of those
    without which it can do nothing. `reply` is the type of its answers, None if it gives none.

    `max_attempts` is how often it is tried, None for as often as the actor's policy says. With
    `has_last_word` it is run once more for what has used up its attempts, or has killed its process too
    often, and says itself what becomes of that.
    """

    method: str
    filter: str
    type: Any | None
    raw: bool
    wants_context: bool
    is_async: bool
    batch: Batch | None
    decode: Decoder
    breakers: tuple[str, ...] = ()
    reply: "_Class | None" = None
    max_attempts: int | None = None
    has_last_word: bool = False


@overload
def handles(method: _Method, /) -> _Method: ...
@overload
def handles(
    subject: str,
    /,
    *,
    batch: Batch | None = None,
    breakers: Sequence[str] = (),
    reply: type | None = None,
) -> Callable[[_Method], _Method]: ...
@overload
def handles(*, batch: Batch, breakers: Sequence[str] = ()) -> Callable[[_Method], _Method]: ...
@overload
def handles(*, breakers: Sequence[str], reply: type | None = None) -> Callable[[_Method], _Method]: ...
@overload
def handles(*, reply: type, breakers: Sequence[str] = ()) -> Callable[[_Method], _Method]: ...
@declares("@handles")
def handles(
    method_or_subject: Any = _NOTHING,
    /,
    *,
    batch: Batch | None = None,
    breakers: Sequence[str] = (),
    reply: type | None = None,
) -> Any:
    """Marks a method as the handler of an event type, or of a subject: `@handles("raw.>")`.

    Bare, it takes type and subject from the annotation of the first parameter, an Event. With a subject that
    parameter may be anything that a body decodes into, `bytes` for the body as it is, or not annotated.
    `async def` runs in the cell's event loop, `def` in a thread. A returned event, or list of events, is
    published and confirmed before the ack. The handler may run again for the same event.

    With `batch=Batch(size=…)` the parameter is a list: `list[Placed]`, or with a subject a list of anything.
    It holds at most `size` events in stream order; with `key`, events of many keys, of which none is in two
    batches at once. What doesn't decode never gets into a batch. When the handler returns, all of them are
    acked but those that it failed by `BatchContext.fail`; when it raises, all have failed.

    `breakers=["payments"]` names the circuit breakers without which the handler can do nothing. While one of
    them is open its deliveries alone wait, and the actor's others go on, as long as what waits takes no more
    than half the mailbox. A handler that declares none and meets an open breaker has the whole actor wait.

    `reply=Quote` says that it answers who asks, with a Quote: what it returns goes to them alone, and
    nowhere if nobody has asked. What it publishes besides goes by `ctx.publish`. A return annotation that
    names anything else is refused when the class is made.

    Raises:
        DeclarationError: what is given can't be used; what the method's signature lacks is said when its
            class is made.
    """
    # Its own type is no safeguard where nobody runs a type checker.
    given: object = batch
    if given is not None and not isinstance(given, Batch):
        raise DeclarationError(f"@handles: batch is {given!r}; give a Batch: @handles(batch=Batch(size=100))")
    names = _read_breakers(breakers)
    _check_reply(reply, batch)
    if isinstance(method_or_subject, str):
        subject = check_filter(method_or_subject, "@handles")
        return lambda method: _mark(method, _Mark(subject, batch, names, reply))
    if method_or_subject is not _NOTHING:
        return _mark(method_or_subject, _Mark(None, batch, names, reply))
    if batch is None and not names and reply is None:
        raise DeclarationError(
            '@handles() gives no subject; write @handles, or with a subject @handles("orders.>")'
        )
    return lambda method: _mark(method, _Mark(None, batch, names, reply))


def _read_breakers(given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple):
        raise DeclarationError(
            f'@handles: breakers is {given!r}; give a list of names: @handles(breakers=["payments"])'
        )
    return tuple(check_name(name, "@handles: breakers") for name in given)


def _check_reply(given: object, batch: Batch | None) -> None:
    if given is None:
        return
    if batch is not None:
        raise DeclarationError("@handles: a handler of batches can't answer; take reply= or batch= away")
    if not isinstance(given, type):
        raise DeclarationError(f"@handles: reply is {given!r}; give the class of the answers: reply=Quote")
    try:
        isinstance(None, given)
    except TypeError as error:
        raise DeclarationError(
            f"@handles: reply is {given.__qualname__}, which no answer can be checked against: {error}"
        ) from error
    try:
        decoder(given)
    except (TypeError, NameError) as error:
        raise DeclarationError(
            f"@handles: reply is {given.__qualname__}, which no body decodes into: {error}"
        ) from error


def _mark(method: Any, mark: "_Mark") -> Any:
    if not inspect.isfunction(method):
        raise DeclarationError(
            f"@handles stands on {method!r}; put it on a method, bare or with a subject: "
            f'@handles or @handles("orders.>")'
        )
    setattr(method, _MARK, mark)
    return method


def is_marked(method: object) -> bool:
    """Return whether @handles stands on a method."""
    return hasattr(method, _MARK)


def answers(method: object) -> bool:
    """Return whether @handles on a method declares a reply."""
    mark: _Mark | None = getattr(method, _MARK, None)
    return mark is not None and mark.reply is not None


@dataclasses.dataclass(frozen=True, slots=True)
class _Mark:
    subject: str | None
    batch: Batch | None
    breakers: tuple[str, ...]
    reply: _Class | None


def find_handlers(cls: type) -> tuple[HandlerSpec, ...]:
    """The handlers of an actor class in the order of their definition, inherited ones first.

    Raises:
        DeclarationError: a handler can't be called, overrides another unmarked, or two take the same.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            # staticmethod and classmethod hide the mark of the function inside; both are refused below.
            marked = hasattr(value, _MARK) or hasattr(getattr(value, "__func__", None), _MARK)
            if name in found and not marked and value is not None:
                raise DeclarationError(
                    f"{cls.__qualname__}.{name} overrides a handler without @handles; "
                    f"put @handles above it, or write {name} = None to handle that event no more"
                )
            if marked:
                found[name] = value
            else:
                found.pop(name, None)
    handlers = tuple(_read_handler(cls, name, method) for name, method in found.items())
    _check_unique(cls, handlers)
    return handlers


def _check_unique(cls: type, handlers: tuple[HandlerSpec, ...]) -> None:
    by_filter: dict[str, HandlerSpec] = {}
    for handler in handlers:
        other = by_filter.setdefault(handler.filter, handler)
        if other is not handler:
            raise DeclarationError(
                f"{cls.__qualname__}: {other.method} and {handler.method} both handle {handler.filter!r}; "
                f"keep one of them, or handle it in two actors"
            )


def _read_handler(cls: type, name: str, method: Any) -> HandlerSpec:
    where = f"{cls.__qualname__}.{name}"
    if not inspect.isfunction(method):
        raise DeclarationError(f"{where}: a handler is a plain method; remove {type(method).__name__}")
    inner = inspect.unwrap(method)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise DeclarationError(f"{where} yields; return the event, or a list of events, instead")
    mark: _Mark = getattr(method, _MARK)
    parameter, wants_context = _read_parameters(where, method, mark.batch)
    if parameter.annotation is inspect.Parameter.empty:
        if mark.subject is None:
            wanted = "an Event" if mark.batch is None else "a list of an Event"
            raise DeclarationError(
                f"{where}: the parameter {parameter.name!r} has no annotation; "
                f'annotate it with {wanted}, or give the subject: @handles("orders.>")'
            )
        type_: Any = Any
    else:
        resolved = resolve(where, cls, inner, parameter.annotation, repr(parameter.name))
        type_ = _member_type(where, resolved, mark.batch)
    filter_, decode = _read_type(where, type_, mark.subject)
    if mark.reply is None:
        _check_returned(where, cls, inner)
    elif inner is method:
        # A decorator may make the answer of what the function inside says that it returns.
        _check_answer(where, cls, inner, mark.reply)
    return HandlerSpec(
        method=name,
        filter=filter_,
        type=None if type_ in (Any, object) else type_,
        raw=type_ is bytes,
        wants_context=wants_context,
        is_async=inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(inner),
        batch=mark.batch,
        decode=decode,
        breakers=mark.breakers,
        reply=mark.reply,
    )


def _check_returned(where: str, cls: type, function: types.FunctionType) -> None:
    """Refuse a handler that says it publishes what has no subject: each of its runs would fail."""
    for member in published_types(returned_by(cls, function)):
        if isinstance(member, EventMeta) and member is not Event and not has_subject(member):
            name = member.__qualname__
            raise DeclarationError(
                f"{where} returns {name}, which has no subject to be published to; "
                f'write class {name}(Event, subject="…"), or if it is an answer, @handles(reply={name})'
            )


def _check_answer(where: str, cls: type, function: types.FunctionType, reply: type) -> None:
    """Refuse a handler that declares its answers and says it returns something else: each run would fail."""
    returned = returned_by(cls, function)
    wrong = [type_ for type_ in returned if is_surely_no(type_, reply)]
    if returned and all(type_ is types.NoneType for type_ in returned):
        wrong = [None]
    if wrong:
        name = reply.__qualname__
        raise DeclarationError(
            f"{where} returns {shown(wrong[0])}, but declares reply={name}; "
            f"return a {name}, or take reply= away"
        )


def published_types(returned: Sequence[Any]) -> typing.Iterator[Any]:
    """The types of what is published where a handler returns these: of lists and the like, their members."""
    for annotation in returned:
        origin = get_origin(annotation)
        if isinstance(origin, EventMeta) or origin is None:
            yield origin or annotation
        else:
            yield from published_types(get_args(annotation))


def _read_parameters(where: str, method: Any, batch: Batch | None) -> tuple[inspect.Parameter, bool]:
    expected = _EXPECTED if batch is None else _EXPECTED_BATCH
    parameters = list(inspect.signature(method).parameters.values())
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise DeclarationError(f"{where}: the parameter {parameter} can't be filled; {expected}")
    # The first is self.
    if len(parameters) < 2:
        raise DeclarationError(f"{where} takes no event; {expected}")
    if len(parameters) > 3:
        names = ", ".join(repr(parameter.name) for parameter in parameters[3:])
        raise DeclarationError(f"{where} has too many parameters ({names}); {expected}")
    if len(parameters) == 3:
        _check_context(where, parameters[2], batch)
    return parameters[1], len(parameters) == 3


def _check_context(where: str, parameter: inspect.Parameter, batch: Batch | None) -> None:
    # As text, since the annotation may name what is imported for type checkers alone.
    annotation = parameter.annotation
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    wrong, right = (BatchContext, Context) if batch is None else (Context, BatchContext)
    if name.rpartition(".")[2] == wrong.__name__:
        kind = "one event" if batch is None else "a batch"
        raise DeclarationError(
            f"{where}: {parameter.name} is a {wrong.__name__}, but a handler of {kind} is given "
            f"a {right.__name__}; annotate it so"
        )


def _member_type(where: str, type_: Any, batch: Batch | None) -> Any:
    """What one delivery decodes into: with `batch`, a member of the annotated list."""
    is_list = type_ is list or get_origin(type_) is list
    member = (get_args(type_) or (Any,))[0] if is_list else None
    if batch is not None:
        if not is_list:
            raise DeclarationError(
                f"{where} takes {_name(type_)}, but with batch=… it is handed a list; {_EXPECTED_BATCH}"
            )
        return member
    if isinstance(get_origin(member) or member, EventMeta):
        raise DeclarationError(
            f"{where} takes a list of {_name(member)}, but no batch=… is given; "
            f"write @handles(batch=Batch(size=100)), or take one {_name(member)}"
        )
    return type_


def _name(type_: Any) -> str:
    return getattr(get_origin(type_) or type_, "__qualname__", str(type_))


def _read_type(where: str, type_: Any, subject: str | None) -> tuple[str, Decoder]:
    origin = get_origin(type_) or type_
    name = _name(type_)
    spec = event_spec(origin)
    if subject is None:
        if isinstance(origin, EventMeta) and spec is None:
            raise DeclarationError(
                f"{where}: the event {name} has no subject and is only a base of others; "
                f'write class {name}(Event, subject="…"), or handle the events derived from it'
            )
        if spec is None:
            raise DeclarationError(
                f"{where} takes {name}, which is no Event; "
                f'annotate it with one, or give the subject: @handles("orders.>")'
            )
        subject = spec.filter
    if type_ is bytes:
        return subject, _decode_raw
    if type_ in (Any, object):
        return subject, decode_untyped
    try:
        decode = decoder(type_)
    except NameError as error:
        raise DeclarationError(f"{where}: a field of {name} can't be resolved: {error}") from error
    except TypeError as error:
        raise DeclarationError(f"{where} takes {name}, which no body decodes into: {error}") from error
    # A subject given by hand may be another one than the event's own, and then says nothing about its fields.
    if spec is not None and spec.placeholders and covers(spec.filter, subject):
        return subject, _with_subject(decode)
    return subject, decode


def _decode_raw(data: Body, content_type: str | None, subject: str = "") -> bytes:  # noqa: ARG001
    return bytes(data)


def _with_subject(decode: Decoder) -> Decoder:
    def decode_and_check(data: Body, content_type: str | None, subject: str = "") -> Any:
        event = decode(data, content_type)
        check_subject(event, subject)
        return event

    return decode_and_check
