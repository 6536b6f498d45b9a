"""What differs between an app and the server, and what is done about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

NANOSECONDS = 1_000_000_000
APPLIES = "'understudy check TARGET --apply'"
ON_REQUEST = f"{APPLIES} changes it, or declare what the server has"

_DURATIONS = ("priority_timeout", "ack_wait", "max_age", "duplicate_window")

Kind = Literal["create", "update", "conflict", "kept"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between what the app declares and what the server has.

    Args:
        kind: `create` a missing resource; `update` a field; `conflict`, what can't be changed and keeps the
            app from running; `kept`, what a newer revision of the app has made so.
        resource: `stream NAME` or `consumer NAME`.
        field: the server's name of the field, or a part of the consumer's metadata; empty for what concerns
            the whole.
        have, want: its value there and here.
        automatic: whether `run` does it unasked; the rest takes `check --apply`.
        problem: what is wrong, where that isn't a missing resource or a field's two values.
        remedy: what to do about it; empty where nothing has to be done.
    """

    kind: Kind
    resource: str
    field: str = ""
    have: str = ""
    want: str = ""
    automatic: bool = True
    problem: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """Return the difference as one line."""
        if self.problem:
            return f"{self.resource} {self.problem}"
        if self.kind == "create":
            return f"{self.resource} does not exist"
        return f"{self.resource}: {self.field} is {self.have}, the app declares {self.want}"

    @property
    def advice(self) -> str:
        """The difference and what to do about it, as one line."""
        return f"{self}; {self.remedy}" if self.remedy else str(self)

    @property
    def done(self) -> str:
        """What was done about it, as one line."""
        if self.kind == "create":
            return f"{self.resource} created"
        if self.kind == "update":
            return f"{self.resource}: {self.field} changed from {self.have} to {self.want}"
        return self.advice


class LeftOver(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer that the app has made and no longer declares.

    Args:
        stream, durable: the consumer.
        actor: whose it was.
        revision: the app's that declared it last.
        pending: messages that it hasn't delivered, or whose delivery wasn't settled.
    """

    stream: str
    durable: str
    actor: str
    revision: int
    pending: int

    def __str__(self) -> str:
        """Return it as one line, with how to delete it."""
        return (
            f"consumer {self.durable} of stream {self.stream}, actor {self.actor!r} of revision "
            f"{self.revision}, {self.pending} messages pending; "
            f"'nats consumer rm {self.stream} {self.durable}' deletes it"
        )


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """How an app and the server compare.

    Args:
        changes: what differs, or what was done about it.
        left_over: consumers of actors that the app no longer has.
    """

    changes: tuple[Change, ...] = ()
    left_over: tuple[LeftOver, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The differences of one stream or consumer, and the one request that settles them.

    Args:
        changes: what differs.
        subject, body: the request, without `$JS.API.`; an empty subject if there is none to make.
        planned_from: the configuration that this was planned from; None if there was none.
        outdates: whether what is there was made by an older revision, or before revisions were noted.
    """

    changes: tuple[Change, ...]
    subject: str = ""
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    planned_from: dict[str, Any] | None = None
    outdates: bool = False

    @property
    def resource(self) -> str:
        """What all of it is about."""
        return self.changes[0].resource


def refusals(changes: Iterable[Change], *, on_request: bool) -> list[str]:
    """Return what keeps the app from running, or `check --apply` from applying.

    Args:
        changes: what differs.
        on_request: whether the user asks for what isn't done unasked.
    """
    return [
        change.advice
        for change in changes
        if change.kind == "conflict" or not (change.kind == "kept" or change.automatic or on_request)
    ]


def differing_fields(wanted: dict[str, Any], have: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the fields of `wanted` that `have` has otherwise: name, its value there, its value here."""
    found = []
    for field, value in wanted.items():
        actual = have.get(field)
        if isinstance(value, list) and isinstance(actual, list):
            same = sorted(value) == sorted(actual)
        else:
            same = value == actual or (not value and not actual)
        if not same:
            found.append((field, _show(field, actual), _show(field, value)))
    return found


def _show(field: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "empty"
    if field in _DURATIONS and isinstance(value, int):
        return f"{value / NANOSECONDS:g} s"
    return "empty" if value in (None, "") else str(value)
