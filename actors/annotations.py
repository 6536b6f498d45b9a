"""What an annotation of a method means, while the class that it belongs to is being made."""

import contextlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from understudy.actors.errors import DeclarationError


def resolve(where: str, cls: type, function: types.FunctionType, annotation: Any, of: str) -> Any:
    """The annotation as an object; a text (`from __future__ import annotations`) is looked up.

    `function` is the method of `cls` that carries it; `where` and `of` name in errors the method and what is
    annotated.

    Raises:
        DeclarationError: it is no type, or names what can't be found.
    """
    # Only this one annotation: the others may name what is imported for type checkers alone.
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
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
                f"{where}: the annotation {annotation!r} of {of} is no type: {error}"
            ) from error
        else:
            return resolved["it"]
    raise DeclarationError(
        f"{where}: the annotation {annotation!r} of {of} can't be resolved "
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
