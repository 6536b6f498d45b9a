"""@handles, and what is read from a method that carries it."""

import contextlib
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, overload

from understudy.actors.codec import Body, Decoder, decode_untyped, decoder
from understudy.actors.context import BatchContext, Context
from understudy.actors.errors import DeclarationError
from understudy.actors.event import EventMeta, check_subject, event_spec
from understudy.actors.names import check_name
from understudy.actors.policies import Batch
from understudy.actors.subjects import check_filter, covers

_MARK = "__understudy_handles__"
_Method = TypeVar("_Method", bound=Callable[..., Any])
_NOTHING: Any = object()
_EXPECTED = "write (self, event: Placed) or (self, event: Placed, ctx: Context)"
_EXPECTED_BATCH = "write (self, events: list[Placed]) or (self, events: list[Placed], ctx: BatchContext)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """One handler, with everything about it that can be known when its class is made.

    `type` is None where the handler takes the decoded value as it is; `raw` says that it takes the bytes.
    `decode(body, content_type, subject)` returns what the handler takes or raises DecodeError. With `batch`
    the handler takes a list; these three then say what its members are. `breakers` are the names of those
    without which it can do nothing.
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


@overload
def handles(method: _Method, /) -> _Method: ...
@overload
def handles(
    subject: str, /, *, batch: Batch | None = None, breakers: Sequence[str] = ()
) -> Callable[[_Method], _Method]: ...
@overload
def handles(*, batch: Batch, breakers: Sequence[str] = ()) -> Callable[[_Method], _Method]: ...
@overload
def handles(*, breakers: Sequence[str]) -> Callable[[_Method], _Method]: ...
def handles(
    method_or_subject: Any = _NOTHING, /, *, batch: Batch | None = None, breakers: Sequence[str] = ()
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
    """
    # Its own type is no safeguard where nobody runs a type checker.
    given: object = batch
    if given is not None and not isinstance(given, Batch):
        raise DeclarationError(f"@handles: batch is {given!r}; give a Batch: @handles(batch=Batch(size=100))")
    names = _read_breakers(breakers)
    if isinstance(method_or_subject, str):
        subject = check_filter(method_or_subject, "@handles")
        return lambda method: _mark(method, _Mark(subject, batch, names))
    if method_or_subject is not _NOTHING:
        return _mark(method_or_subject, _Mark(None, batch, names))
    if batch is None and not names:
        raise DeclarationError(
            '@handles() gives no subject; write @handles, or with a subject @handles("orders.>")'
        )
    return lambda method: _mark(method, _Mark(None, batch, names))


def _read_breakers(given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple):
        raise DeclarationError(
            f'@handles: breakers is {given!r}; give a list of names: @handles(breakers=["payments"])'
        )
    return tuple(check_name(name, "@handles: breakers") for name in given)


def _mark(method: Any, mark: "_Mark") -> Any:
    if not inspect.isfunction(method):
        raise DeclarationError(
            f"@handles stands on {method!r}; put it on a method, bare or with a subject: "
            f'@handles or @handles("orders.>")'
        )
    setattr(method, _MARK, mark)
    return method


@dataclasses.dataclass(frozen=True, slots=True)
class _Mark:
    subject: str | None
    batch: Batch | None
    breakers: tuple[str, ...]


def find_handlers(cls: type) -> tuple[HandlerSpec, ...]:
    """The handlers of an actor class in the order of their definition, inherited ones first."""
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
        type_ = _member_type(where, _resolve(where, cls, inner, parameter), mark.batch)
    filter_, decode = _read_type(where, type_, mark.subject)
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
    )


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


def _resolve(where: str, cls: type, function: types.FunctionType, parameter: inspect.Parameter) -> Any:
    """The annotation as an object; a text (`from __future__ import annotations`) is looked up."""
    # Only this one annotation: the others may name what is imported for type checkers alone.
    holder = types.SimpleNamespace(__annotations__={"event": parameter.annotation})
    scopes: list[Mapping[str, Any]] = [{**_closure(function), **vars(cls)}]
    scopes.extend(_enclosing_scopes(function))
    problem: NameError | None = None
    for scope in scopes:
        try:
            resolved = typing.get_type_hints(holder, function.__globals__, dict(scope), include_extras=True)
        except NameError as error:
            problem = problem or error
        except (TypeError, SyntaxError, AttributeError) as error:
            raise DeclarationError(
                f"{where}: the annotation {parameter.annotation!r} of {parameter.name!r} is no type: {error}"
            ) from error
        else:
            return resolved["event"]
    raise DeclarationError(
        f"{where}: the annotation {parameter.annotation!r} of {parameter.name!r} can't be resolved "
        f"({problem}); define or import the type above the class, not only for type checkers"
    )


def _closure(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        # What is assigned after the class statement isn't there yet.
        with contextlib.suppress(ValueError):
            found[name] = cell.cell_contents
    return found


def _enclosing_scopes(function: types.FunctionType) -> typing.Iterator[Mapping[str, Any]]:
    """The local variables of the functions that are running the class statement, innermost first.

    A class made inside a function may be annotated, as text, with an event made there too.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is function.__globals__:
            yield frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]
