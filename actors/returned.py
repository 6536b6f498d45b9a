"""What a method says that it returns, while the class that it belongs to is being made."""

import inspect
import types
import typing
from typing import Any, get_args, get_origin

from understudy.actors.annotations import resolve
from understudy.actors.errors import DeclarationError
from understudy.actors.event import event_spec


def returned_by(cls: type, function: types.FunctionType) -> tuple[Any, ...]:
    """The types that a method of `cls` may return, of a union its members; none where nobody can tell."""
    annotation = inspect.signature(function).return_annotation
    if annotation is inspect.Signature.empty:
        return ()
    try:
        return _alternatives(resolve(function.__qualname__, cls, function, annotation, "what it returns"))
    except DeclarationError:
        # Nothing but a check needs it, and it may name what is imported for type checkers alone.
        return ()


def is_surely_no(type_: Any, wanted: type) -> bool:
    """Return whether no value of an annotated type can be of a wanted class; None is no value here."""
    class_ = get_origin(type_) or type_
    # Any is a class since Python 3.11.
    if class_ in (Any, types.NoneType) or not isinstance(class_, type):
        return False
    if getattr(class_, "_is_protocol", False):
        return False
    try:
        return not (issubclass(class_, wanted) or issubclass(wanted, class_))
    except TypeError:
        # A TypedDict, say, lets nobody ask.
        return False


def shown(type_: Any) -> str:
    """How an error names an annotated type: "Charged", "list[Charged]"."""
    return str(type_) if get_origin(type_) else getattr(type_, "__qualname__", str(type_))


def has_subject(event: type) -> bool:
    """Whether an event, or one of those derived from it, for which it may stand, can be published."""
    return event_spec(event) is not None or any(map(has_subject, event.__subclasses__()))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    # Annotated is a class, before Python 3.13.
    if get_origin(annotation) is typing.Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(one for member in get_args(annotation) for one in _alternatives(member))
    return (annotation,)
