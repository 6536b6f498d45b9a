"""What an entry may show: plain values, none of them a secret."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
# Longer texts are cut in the middle: a traceback says most at its end.
MAX_TEXT = 16_384
# What is longer is no name.
MAX_NAME = 64
# A name in which nothing can be hidden.
_MAX_PLAIN = 32
# And of those that are longer still, no more is looked at.
MAX_SEARCHED = 16 * MAX_TEXT

_WHOLE = ("pass", "pwd", "nkey", "jwt")
# In the text of an entry, where no key tells; followed by `=` or `:`. A longer name may end with one of them.
_NAMES = (
    "passwords?",
    "passwd",
    "passphrase",
    "secrets?",
    # Tokens in the plural are mostly counted.
    "token",
    "(?:api|access|private)[_-]?keys?",
    "credentials?",
    # Words of their own, as in db_pass, DB_PASS and dbPass: a bypass is no secret, nor is a monkey. What is
    # before them is looked at afterwards, since to do so at every letter takes ten times as long.
    *(rf"{name}(?<![a-z0-9]{name})" for name in _WHOLE),
    *(rf"(?-i:{name.title()}(?<=[a-z0-9]{name.title()}))" for name in _WHOLE),
)
# One of which a text has that has one of these names: to look for them is much quicker.
_HINTS = ("pass", "pwd", "secret", "token", "key", "jwt", "seed", "credential", "authorization", "cookie")
# Headers, whose value goes on to the end of the line.
_HEADERS = r"(?:proxy-)?authorization|(?:set-)?cookies?"
# Names made of several words are secret if one of the words is, or two that follow each other.
_SECRET_WORDS = frozenset(
    [
        *("password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "token", "jwt"),
        *("authorization", "credential", "credentials", "cookie", "cookies", "nkey", "nkeys", "apikey"),
        *("apikeys", "accesskey", "accesskeys", "privatekey", "privatekeys"),
    ]
)
# As in PGPASSWORD, and as in a text.
_SECRET_ENDS = ("password", "passwd", "passphrase")
# Not as in pass_rate and seed_rows.
_SECRET_LAST = frozenset({"pass", "seed"})
_SECRET_PAIRS = frozenset((first, last) for first in ("api", "access", "private") for last in ("key", "keys"))
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Between name and value, with what may be around the name in JSON, a dict's text or a pair's, and what
# begins a list.
_IS = r"""(?:\\*["']?\s*[:=]\s*|["']\s*,\s*)(?:[\[(]\s*)?(?:[bru](?=["']))?"""
# A quoted value, which may be cut off; the last is of JSON within JSON.
_QUOTED = r""""(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|(?P<escaped>\\+["']).*?(?<!\\)(?P=escaped)"""
# A mapping's text, which may be cut off.
_MAPPING = r"\{[^{}]*\}?"
# A number is the seed of a random generator, and no key.
_SEED = rf"seed(?<![a-z0-9]seed)(?!{_IS}-?\d+(?![\w.]))"

# `user:password@` or `token@` of a URL, to the last `@` before a space or the next URL: a password may have
# one.
_USER_INFO = re.compile(r"://(?:(?!://)\S)*@")
# Each with a text without which there is none.
_BY_FORM = (
    ("://", _USER_INFO, f"://{HIDDEN}@"),
    # What a .creds or .pem file has between its lines of dashes.
    (
        "-----BEGIN",
        re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?(?:-----END|\Z)", re.DOTALL),
        rf"-----BEGIN \1-----{HIDDEN}",
    ),
    # An nkey's seed, and a JWT, whose beginning is short: else a text full of it takes half a minute.
    ("S", re.compile(r"S[UAONCX][A-Z2-7]{56}\b"), HIDDEN),
    ("eyJ", re.compile(r"eyJ[\w-]{8,1000}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    ("Bearer", re.compile(r"Bearer [\w.~+/=-]+"), f"Bearer {HIDDEN}"),
)


class Redaction:
    """Makes whatever was logged plain values, with `***` in place of secrets.

    Args:
        names: of fields, keys and headers whose values are secret, beside those that always are.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        own = tuple(names)
        self._hints = (*_HINTS, *(name.lower() for name in own))
        self._own_names = frozenset(_normal(name) for name in own)
        self._known: dict[str, bool] = {}
        name = "|".join((*map(re.escape, own), *_NAMES, _SEED))
        # A word that goes on, as in `tokens`, isn't the name.
        self._named = re.compile(
            rf"((?:{name})(?:[_-](?:key|value))?{_IS})({_QUOTED}|{_MAPPING}|[^\s,;&)}}\]\"'\\]+)",
            re.IGNORECASE,
        )
        self._header = re.compile(
            rf"((?:{_HEADERS}){_IS})({_QUOTED}|{_MAPPING}|[^\r\n\\\"']+)", re.IGNORECASE
        )

    def is_secret(self, name: str) -> bool:
        """Return whether a value under this name is one."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= 1024:  # names may be made from data
                self._known.clear()
            known = self._known[name] = self._is_secret(name)
        return known

    def _is_secret(self, name: str) -> bool:
        if _normal(name) in self._own_names:
            return True
        words = [word.lower() for word in _WORD.findall(name)]
        return (
            not _SECRET_WORDS.isdisjoint(words)
            or any(word.endswith(_SECRET_ENDS) for word in words)
            or any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))
            or not _SECRET_LAST.isdisjoint(words[-1:])
        )

    def text(self, text: str) -> str:
        """Return a text without the secrets that can be told by their form or by the name before them."""
        whole = len(text)
        if whole > MAX_SEARCHED:
            text = text[: MAX_SEARCHED // 2] + text[-MAX_SEARCHED // 2 :]
        text = self._clean(text)
        if len(text) > MAX_TEXT:
            # Only now: what is left of a secret that was cut is no longer known for one.
            half = MAX_TEXT // 2
            text = f"{text[:half]} … cut, of {whole} characters … {text[-half:]}"
        return text

    def _clean(self, text: str) -> str:
        for hint, form, replacement in _BY_FORM:
            if hint in text:
                text = form.sub(replacement, text)
        lower = text.lower()
        if any(hint in lower for hint in self._hints):
            text = self._header.sub(_hide_value, text)
            text = self._named.sub(_hide_value, text)
        return text

    def value(self, value: object, inside: tuple[int, ...] = ()) -> Any:
        """Return a value as JSON has it: what is in it redacted, what JSON lacks as text.

        Args:
            value: anything; if it can't be shown, that is what is said of it.
            inside: the containers around it.
        """
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value if type(value) is str else shown(value))
        if isinstance(value, int):
            # Of more than 64 bits, few readers take any.
            return int(value) if -(2**63) <= value < 2**64 else str(int(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return self.text(bytes(value).decode("utf-8", "backslashreplace"))
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if id(value) in inside:
                return "…"
            try:
                return self._container(value, (*inside, id(value)))
            except Exception as error:  # noqa: BLE001 - a user's container may raise anything
                return f"<{type(value).__qualname__} that can't be shown: {type(error).__qualname__}>"
        return self.text(shown(value))

    def _container(self, value: Any, inside: tuple[int, ...]) -> Any:
        if isinstance(value, Mapping):
            return self.fields(value, inside)
        if isinstance(value, list | tuple) and len(value) == 2 and self._names_a_secret(value[0]):
            # A header as many libraries have them.
            return [self.value(value[0], inside), HIDDEN]
        return [self.value(item, inside) for item in value]

    def _names_a_secret(self, value: object) -> bool:
        name = value.decode("latin-1") if isinstance(value, bytes) else value
        return isinstance(name, str) and len(name) <= MAX_NAME and self.is_secret(name)

    def fields(self, fields: Mapping[Any, object], inside: tuple[int, ...] = ()) -> dict[str, Any]:
        """Return fields as `value` does, those with a secret's name hidden."""
        plain: dict[str, Any] = {}
        for key, value in fields.items():
            name = key if isinstance(key, str) else shown(key)
            hidden = self.is_secret(name) and not _is_telling(name, value)
            # Keys are made from data too, such as a server's URL; to look at each takes too long.
            is_plain = len(name) <= _MAX_PLAIN and name.isidentifier()
            plain[name if is_plain else self.text(name)] = HIDDEN if hidden else self.value(value, inside)
        return plain


def shown(value: object) -> str:
    """Return a value's text, or that it has none."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything
        return f"<{type(value).__qualname__} that can't be shown: {type(error).__qualname__}>"


def _is_telling(name: str, value: object) -> bool:
    """Return whether a value under a secret's name is none: whether there is one, or a random seed."""
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, int) and name.lower().endswith("seed")


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")


def _hide_value(match: re.Match[str]) -> str:
    value = match[2]
    quote = match["escaped"] or (value[0] if value[0] in "\"'" else "")
    return f"{match[1]}{quote}{HIDDEN}{quote}"
