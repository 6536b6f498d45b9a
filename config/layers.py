"""Where settings come from: each source as a layer of plain values that knows its origin."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource

from understudy.config.connection import redact_url

Key = tuple[str, ...]

PREFIX = "UNDERSTUDY_"
FILE_NAME = "understudy.toml"
# Variables of ours that are no settings: a binary, and where a run's files lie.
_BINARY = "UNDERSTUDY_NATS_SERVER"
_APART = frozenset({_BINARY, "UNDERSTUDY_RUN_DIRECTORY"})
_FLAGS: dict[Key, str] = {("nats", "servers"): "--servers", ("http", "port"): "--http-port"}
_PATHS = frozenset(
    {("directory",), *(("nats", name) for name in ("credentials", "tls_ca", "tls_cert", "tls_key"))}
)
_CONTEXT_KEYS = {
    "url": "servers",
    "creds": "credentials",
    "user": "user",
    "password": "password",
    "token": "token",
    "ca": "tls_ca",
    "cert": "tls_cert",
    "key": "tls_key",
}
_CONTEXT_UNSUPPORTED = (
    "nkey",
    "nsc",
    "user_jwt",
    "user_seed",
    "socks_proxy",
    "jetstream_domain",
    "inbox_prefix",
)


def _dotted(key: Key) -> str:
    return ".".join(key)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One source's values.

    Attributes:
        values: what it says, by key.
        origin: says for a key where its value stands, for an error.
        shown: writes a key as one does in this source.
        problems: what could not be read at all.
    """

    origin: Callable[[Key], str]
    values: Mapping[Key, object] = field(default_factory=dict)
    shown: Callable[[Key], str] = _dotted
    problems: tuple[str, ...] = ()

    def without(self, keys: AbstractSet[Key]) -> Layer:
        """Return this layer as if it said nothing about the keys."""
        return replace(self, values={key: value for key, value in self.values.items() if key not in keys})


def flag_layer(flags: Mapping[str, object]) -> Layer:
    """Return what the command line gave; None and an empty list mean that it gave nothing."""
    values = {tuple(name.split(".")): value for name, value in flags.items() if value not in (None, [], ())}
    return Layer(values=values, origin=lambda key: f"flag {_flag(key)}")


def _flag(key: Key) -> str:
    return _FLAGS.get(key, f"--{'-'.join(key).replace('_', '-')}")


def environment_layer(settings: type[BaseSettings], known: AbstractSet[Key]) -> Layer:
    """Return what the UNDERSTUDY_ variables say; an empty one says nothing."""
    source = EnvSettingsSource(settings)
    values: dict[Key, object] = {}
    for name, value in os.environ.items():
        if name.upper().startswith(PREFIX) and name.upper() not in _APART and value:
            values[tuple(name[len(PREFIX) :].lower().split("__"))] = value
    # Only what is a setting: by the others the source would fail or say nothing.
    source.env_vars = {_variable(key).lower(): str(value) for key, value in values.items() if key in known}
    values |= _flat(source())
    return Layer(
        values=values,
        origin=lambda key: f"environment variable {_variable(key)}",
        shown=_variable,
        problems=_addresses_as_binary(),
    )


def _addresses_as_binary() -> tuple[str, ...]:
    value = os.environ.get(_BINARY, "")
    if "://" not in value:
        return ()
    shown = ",".join(map(redact_url, value.split(",")))
    return (
        f"{_BINARY} = {shown!r}: names the nats-server program to start, not servers to connect to; "
        f"put addresses into {_variable(('nats', 'servers'))} (environment variable {_BINARY})",
    )


def _variable(key: Key) -> str:
    return PREFIX + "__".join(key).upper()


def nats_variable_layer() -> Layer:
    """Return what NATS_URL and NATS_CREDS say, the variables of the `nats` command."""
    names: dict[Key, str] = {("nats", "servers"): "NATS_URL", ("nats", "credentials"): "NATS_CREDS"}
    values: dict[Key, object] = {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}
    return Layer(values=values, origin=lambda key: f"environment variable {names[key]}")


def nats_context_layer() -> tuple[Layer, bool]:
    """Return the context of the `nats` command, and whether NATS_CONTEXT names it or it is just selected."""
    directory = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "nats"
    named = os.environ.get("NATS_CONTEXT", "")
    name = named
    if not name:
        try:
            name = (directory / "context.txt").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError, RuntimeError):
            name = ""
    if not name:
        return Layer(origin=lambda _: ""), False
    path = directory / "context" / f"{name}.json"

    def origin(_: Key) -> str:
        return f"NATS context {name}, {path}"

    try:
        context = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(context, dict):
            raise ValueError("it holds no object")  # noqa: TRY004 - reported like other bad JSON, just below
    except (OSError, ValueError) as error:
        problem = f"NATS context {name} can't be read: {_reason(error)} ({path})"
        return Layer(origin=origin, problems=(problem,)), bool(named)
    unsupported = [key for key in _CONTEXT_UNSUPPORTED if context.get(key)]
    problems = tuple(
        f"NATS context {name} uses {key}, which isn't supported; "
        f"name servers and credentials by UNDERSTUDY_NATS__… instead ({path})"
        for key in unsupported
    )
    values: dict[Key, object] = {
        ("nats", ours): context[theirs] for theirs, ours in _CONTEXT_KEYS.items() if context.get(theirs)
    }
    return Layer(values=values, origin=origin, problems=problems), bool(named)


def _reason(error: Exception) -> str:
    """Return why a file can't be read, without its path, which an OSError's text has and ours too."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def file_layer(path: Path | None) -> Layer:
    """Return what the file says; without a path `understudy.toml` of the working directory, if it exists."""
    named = path is not None
    path = path or Path(FILE_NAME)

    def origin(key: Key) -> str:
        return f"{path}: {_dotted(key)}"

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Layer(origin=origin, problems=(f"{path}: no such file (flag --config)",) if named else ())
    except (OSError, UnicodeDecodeError) as error:
        return Layer(origin=origin, problems=(f"{path} can't be read: {_reason(error)}",))
    try:
        values = _flat(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        return Layer(origin=origin, problems=(f"{path} is no valid TOML: {error}",))
    # A path in a file is meant from where the file stands.
    for key in _PATHS & values.keys():
        value = values[key]
        if isinstance(value, str):
            values[key] = str(path.parent / Path(value).expanduser())
    return Layer(values=values, origin=origin)


def default_layer() -> Layer:
    """Return the defaults that ship with the package."""
    text = resources.files("understudy.config").joinpath("defaults.toml").read_text(encoding="utf-8")
    return Layer(values=_flat(tomllib.loads(text)), origin=lambda _: "default")


def _flat(tree: Mapping[str, Any], prefix: Key = ()) -> dict[Key, object]:
    values: dict[Key, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            values |= _flat(value, (*prefix, name))
        else:
            values[(*prefix, name)] = value
    return values
