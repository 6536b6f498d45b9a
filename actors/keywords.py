"""Keywords of declarations: one that isn't known is answered with the one that was probably meant."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from understudy.actors.errors import DeclarationError
from understudy.actors.names import nearest

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def check_keywords(given: Iterable[str], known: Iterable[str], where: str, annotated: object = None) -> None:
    """Raises DeclarationError if one of `given` isn't known; `where` begins the message.

    `annotated` is a class or function whose annotations say which policies the known ones take, if any do.
    """
    known = tuple(known)
    for keyword in given:
        if keyword not in known:
            hint = _policies_with(keyword, known, annotated) or nearest(keyword, known)
            raise DeclarationError(f"{where}: unknown option {keyword!r}{hint}")


def declares(where: str) -> Callable[[Callable[_Given, _Made]], Callable[_Given, _Made]]:
    """Makes a DeclarationError of what Python answers to a wrong call by a bare TypeError.

    For the functions and `__init__` that a user's declarations call; `where` names them in the message. One
    that takes any keyword (`**options`) checks those itself.
    """

    def decorate(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
        signature = inspect.signature(function)
        parameters = signature.parameters.values()
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
        named = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        known = [name for name in named if name not in ("self", "cls")]

        @functools.wraps(function)
        def checked(*values: _Given.args, **keywords: _Given.kwargs) -> _Made:
            if not takes_any:
                check_keywords(keywords, known, where, function)
            try:
                signature.bind(*values, **keywords)
            except TypeError as error:
                raise DeclarationError(f"{where}: {error}") from None
            return function(*values, **keywords)

        return checked

    return decorate


class PolicyMeta(msgspec.StructMeta):
    """Of the structs that a user writes in declarations."""

    # Hidden from type checkers, which know the signature from the fields.
    if not TYPE_CHECKING:

        def __call__(cls, *values: object, **keywords: object) -> Any:  # noqa: N805 - a metaclass
            """Makes a policy; what msgspec refuses by a bare TypeError is a DeclarationError here."""
            check_keywords(keywords, cls.__struct_fields__, cls.__name__)
            try:
                return super().__call__(*values, **keywords)
            except DeclarationError:
                raise
            except TypeError as error:
                options = ", ".join(f"{name}=" for name in cls.__struct_fields__)
                raise DeclarationError(f"{cls.__name__}: {error}; give its options as {options}") from error


def _policies_with(keyword: str, known: Sequence[str], annotated: object) -> str:
    """The hint for a word that belongs into a policy: "; capacity is Mailbox's; write …"; else nothing."""
    owners, calls = [], []
    for option, annotation in get_type_hints(annotated).items() if annotated is not None else ():
        for policy, form in _policies_in(annotation):
            # What may be given by position is the name of one policy among several, and nothing that it sets.
            if keyword in policy.__struct_fields__ and keyword not in policy.__match_args__:
                required = [field.name for field in msgspec.structs.fields(policy) if field.required]
                values = ", ".join(f"{name}=…" for name in dict.fromkeys((*required, keyword)))
                owners.append(f"{policy.__name__}'s")
                calls.append(f"{option}={form.format(f'{policy.__name__}({values})')}")
    if not owners:
        return ""
    # An actor has several timeouts, and no `timeout_seconds`.
    calls += [f"{name}=…" for name in known if name.endswith(f"_{keyword}")]
    return f"; {keyword} is {' and '.join(owners)}; write {' or '.join(calls)}"


def _policies_in(annotation: object, form: str = "{}") -> Iterator[tuple[Any, str]]:
    """The policies that a value so annotated may be or hold, each with how it is written there."""
    if isinstance(annotation, PolicyMeta):
        yield annotation, form
    if get_origin(annotation) is Sequence:
        form = "[{}]"
    for argument in get_args(annotation):
        yield from _policies_in(argument, form)
