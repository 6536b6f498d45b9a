"""Names and the checks of plain values that declarations share."""

import difflib
import math
import re
from collections.abc import Iterable

from understudy.actors.errors import DeclarationError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def check_name(name: object, where: str) -> str:
    """Returns `name` if it can be part of subjects, durables and file names, else raises DeclarationError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            f"{where}: the name is {name!r}; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'"
        )
    return name


def kebab_case(class_name: str) -> str:
    """DelayMonitor -> delay-monitor, HTTPNotifier -> http-notifier."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", class_name)
    return spaced.lower()


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint for a word that isn't known: "; did you mean 'mailbox'?", or all that are known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""


def check_integer(value: object, where: str, *, minimum: int) -> int:
    """Returns `value` if it is an int of at least `minimum`, else raises DeclarationError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise DeclarationError(f"{where} is {value!r}; give an integer of {minimum} or more")
    return value


def check_seconds(value: object, where: str, *, zero: bool = False) -> float:
    """Returns `value` if it is a finite number above 0 (or 0, where `zero` allows it).

    Raises:
        DeclarationError: it isn't; `where` names it.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        lowest = 0 if zero else math.ulp(0)
        # Comparing refuses NaN and infinity too.
        if lowest <= value < math.inf:
            return value
    bound = "of 0 or more" if zero else "above 0"
    raise DeclarationError(f"{where} is {value!r}; give a finite number of seconds {bound}")


def check_choice(value: object, where: str, choices: tuple[str, ...]) -> None:
    """Raises DeclarationError unless `value` is one of `choices`."""
    if value not in choices:
        raise DeclarationError(f"{where} is {value!r}; use {' or '.join(map(repr, choices))}")
