"""Keywords of declarations: one that isn't known is answered with the one that was probably meant."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from understudy.actors.errors import DeclarationError
from understudy.actors.names import nearest

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def check_keywords(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises DeclarationError if one of `given` isn't known; `where` begins the message."""
    known = tuple(known)
    for keyword in given:
        if keyword not in known:
            raise DeclarationError(f"{where}: unknown option {keyword!r}{nearest(keyword, known)}")


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
                check_keywords(keywords, known, where)
            try:
                signature.bind(*values, **keywords)
            except TypeError as error:
                raise DeclarationError(f"{where}: {error}") from None
            return function(*values, **keywords)

        return checked

    return decorate
