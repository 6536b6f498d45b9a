"""Settings from every source, merged by precedence; all problems in one report, each with its origin."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from understudy.actors.errors import ConfigurationError
from understudy.config.connection import redact_url
from understudy.config.layers import (
    Key,
    Layer,
    default_layer,
    environment_layer,
    file_layer,
    flag_layer,
    nats_context_layer,
    nats_variable_layer,
)
from understudy.config.settings import Settings

# What pydantic begins a message with, where ours has the key.
_SUBJECT = re.compile(r"^(Value error,|Input|List|String|Path|Value) ")
# By pydantic's kind of error, where its own words speak of Python or of how it reads a text.
_WORDS = {
    "path_type": "should be a path",
    "string_type": "should be a text",
    "string_too_short": "should not be empty",
    "too_short": "should not be empty",
    "list_type": "should be a list",
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "should be an integer"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
}
_SERVERS: Key = ("nats", "servers")
_SIGN_IN: frozenset[Key] = frozenset(("nats", name) for name in ("credentials", "user", "password", "token"))


def load_settings(*, config_file: Path | None = None, flags: dict[str, object] | None = None) -> Settings:
    """Return the settings that hold: flags, environment, NATS_URL and NATS_CREDS, understudy.toml, defaults.

    A NATS context counts right after NATS_URL if NATS_CONTEXT names it. One that is only selected in the
    `nats` command counts just before the defaults: it must not redirect a project whose file names servers.
    Either counts as a whole, so that its credentials never go to servers that were named elsewhere.

    Args:
        config_file: a file to read in place of `understudy.toml` in the working directory.
        flags: what the command line gave, by dotted key (`nats.servers`); None means not given.

    Raises:
        ConfigurationError: with every problem: its key, its value, what is allowed, its origin.
    """
    known = _known_keys(Settings)
    context, context_is_named = nats_context_layer()
    layers = [
        flag_layer(flags or {}),
        environment_layer(Settings, set(known)),
        nats_variable_layer(),
        file_layer(config_file),
        default_layer(),
    ]
    # A context that any stronger layer's servers replace is left out whole.
    position = 3 if context_is_named else 4
    if not any(_SERVERS in layer.values for layer in layers[:position]):
        if any(_SIGN_IN & layer.values.keys() for layer in layers[:position]):
            context = context.without(_SIGN_IN)
        layers.insert(position, context)

    problems = [problem for layer in layers for problem in layer.problems]
    merged: dict[Key, tuple[object, Layer]] = {}
    for layer in reversed(layers):
        for key, value in layer.values.items():
            if key in known:
                merged[key] = (value, layer)
            else:
                problems.append(_unknown(key, layer, known))
    try:
        settings = Settings(**_nested({key: value for key, (value, _) in merged.items()}))
    except ValidationError as error:
        problems.extend(_describe(detail, merged, known) for detail in error.errors())
    else:
        if not problems:
            settings._nats_is_default = merged[_SERVERS][1] is layers[-1]
            return settings
    raise ConfigurationError(problems)


def _known_keys(model: type[BaseModel], prefix: Key = ()) -> dict[Key, bool]:
    """Return every key, and whether its value is a secret."""
    known: dict[Key, bool] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            known |= _known_keys(field.annotation, (*prefix, name))
        else:
            known[(*prefix, name)] = SecretStr.__name__ in str(field.annotation)
    return known


def _nested(values: dict[Key, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        branch = tree
        for part in key[:-1]:
            branch = branch.setdefault(part, {})
        branch[key[-1]] = value
    return tree


def _unknown(key: Key, layer: Layer, known: dict[Key, bool]) -> str:
    inside = [other for other in known if other[: len(key)] == key]
    if inside:
        return (
            f"{layer.shown(key)} is a group: set {layer.shown(inside[0])} and the like ({layer.origin(key)})"
        )
    by_name = {".".join(other): other for other in known}
    # Separators are often what was mistaken (HTTP_PORT), so they don't count.
    nearest = difflib.get_close_matches(".".join(key), by_name, n=1, cutoff=0.5)
    hint = f"; did you mean {layer.shown(by_name[nearest[0]])}?" if nearest else ""
    return f"{layer.shown(key)} is no setting{hint} ({layer.origin(key)})"


def _describe(detail: Any, merged: dict[Key, tuple[object, Layer]], known: dict[Key, bool]) -> str:
    key = next((key for key in merged if detail["loc"][: len(key)] == key), None)
    text = in_words(detail)
    if key is None:  # about several keys at once, which the text names
        return text
    value, layer = merged[key]
    return f"{'.'.join(key)} = {_shown_value(key, value, secret=known[key])}: {text} ({layer.origin(key)})"


def in_words(detail: Any) -> str:
    """Return what a value should be, by pydantic's account of what is wrong with it.

    Args:
        detail: one of the `errors()` of a ValidationError.
    """
    return _WORDS.get(detail["type"]) or _SUBJECT.sub("", str(detail["msg"]))


def _shown_value(key: Key, value: object, *, secret: bool) -> str:
    if secret:
        return "***"
    if key == _SERVERS:
        urls = (
            value.split(",")
            if isinstance(value, str)
            else value
            if isinstance(value, list | tuple)
            else [value]
        )
        return ", ".join(redact_url(str(url).strip()) for url in urls)
    return repr(str(value) if isinstance(value, Path) else value)
