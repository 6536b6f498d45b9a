"""A hash of what a user has declared of an actor, so that nodes can tell whether they run the same.

Of what was written, not of what follows from it: a version of this package with another default, or with one
option more, finds the same hash.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from understudy.actors.actor import ActorSpec
from understudy.actors.handlers import HandlerSpec

_CHARACTERS = 16


def hash_specification(spec: ActorSpec, stream: str) -> str:
    """Returns the hash of an actor's handlers and options, the same in every process and on every node.

    A function or class counts by its name, since its code can't be compared. The actor's name and its
    arguments are left out: a renamed actor may keep its durable, and arguments may differ from node to node.
    """
    declared = {
        "stream": stream,
        "handlers": sorted(map(_handler, spec.handlers)),
        "options": {name: _plain(value) for name, value in spec.options.given.items()},
    }
    text = json.dumps(declared, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_CHARACTERS]


def _handler(handler: HandlerSpec) -> list[str]:
    type_ = "bytes" if handler.raw else _name(handler.type)
    batch = json.dumps(_plain(handler.batch), sort_keys=True)
    return [handler.filter, type_, batch, *handler.breakers]


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, msgspec.Struct):
        defaults = {field.name: field.default for field in msgspec.structs.fields(value)}
        return {
            name: _plain(getattr(value, name))
            for name, default in defaults.items()
            if getattr(value, name) != default
        }
    return _name(value)


def _name(value: object) -> str:
    # Without the module: code may move.
    return str(getattr(value, "__qualname__", type(value).__qualname__))
