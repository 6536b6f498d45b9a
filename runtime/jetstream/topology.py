"""Streams and durable consumers: made if they are missing, verified in what the app states if not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from nats.aio.client import Client

from understudy.actors.errors import TopologyError
from understudy.actors.subjects import covers
from understudy.runtime.jetstream import api, pinning
from understudy.runtime.specs import AppSpec, ConsumerSpec, StreamSpec

NANOSECONDS = 1_000_000_000
ATTEMPTS_TTL_SECONDS = 7 * 24 * 3600
# A message that was nak'd with a delay counts against max_ack_pending until it comes back, so a small
# limit would stall the consumer behind its failures. What a cell holds is bounded by its pull requests;
# this only bounds how many failures may wait for their turn.
DELAYED_NAKS = 100_000

# What a consumer is changed to without being asked: nothing that is stored depends on it.
_FREELY_CHANGED = ("max_ack_pending", "priority_policy", "priority_groups", "priority_timeout")
_DURATIONS = ("priority_timeout", "ack_wait", "max_age", "duplicate_window")

Kind = Literal["create", "update", "conflict"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between what the app declares and what the server has.

    Args:
        kind: `create` a missing resource; `update` a field that the server lets us change; `conflict`, a
            field that it doesn't.
        resource: `stream NAME` or `consumer NAME`.
        field: the server's name of the field; empty for `create`.
        have, want: its value there and here.
    """

    kind: Kind
    resource: str
    field: str = ""
    have: str = ""
    want: str = ""

    def __str__(self) -> str:
        """Return the difference as one line."""
        if self.kind == "create":
            return f"{self.resource} does not exist"
        return f"{self.resource}: {self.field} is {self.have}, the app declares {self.want}"

    @property
    def done(self) -> str:
        """What was done about it, as one line."""
        if self.kind == "create":
            return f"{self.resource} created"
        return f"{self.resource}: {self.field} changed from {self.have} to {self.want}"


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer has before it, in messages.

    Args:
        pending: not delivered yet.
        ack_pending: delivered and not acknowledged.
        redelivered: of those, how many were delivered more than once.
    """

    pending: int
    ack_pending: int
    redelivered: int


def dead_letter_stream(app: str) -> str:
    """Return the name of an app's dead-letter stream."""
    return f"{app.upper()}_DEAD_LETTERS"


def attempts_bucket(app: str) -> str:
    """Return the name of an app's KV bucket of attempts."""
    return f"{app}-attempts"


async def ensure_topology(client: Client, app: AppSpec, *, apply: bool, force: bool = False) -> list[Change]:
    """Compare an app's streams and consumers with the server's, and make what is missing.

    Args:
        client: a connection.
        app: what is declared.
        apply: create what is missing, and widen a consumer's filters; False changes nothing.
        force: update every field that the server lets us change, too; with `apply` off, find out whether
            that would succeed (`check`).

    Returns:
        What was found: all of it is done if `apply` and no exception was raised.

    Raises:
        TopologyError: what differs and may not or can't be changed, all of it; nothing was changed then.
        BrokerUnreachable: the server did not answer.
    """
    plan = _Plan(force)
    for wanted, existing_only in _streams(app):
        await _plan_stream(client, plan, wanted, existing_only=existing_only)
    for consumer in app.consumers:
        await _plan_consumer(client, plan, consumer)
    if plan.refused and (apply or force):
        raise TopologyError(plan.refused)
    if not apply:
        return plan.changes
    for subject, body in plan.actions:
        await _apply(client, subject, body)
    return plan.changes


async def backlog(client: Client, stream: str, durable: str) -> Backlog:
    """Return what a consumer has before it.

    Raises:
        TopologyError: there is no such consumer.
    """
    info = await api.consumer_info(client, stream, durable)
    if info is None:
        raise TopologyError(f"consumer {durable} of stream {stream} does not exist")
    return Backlog(
        pending=info["num_pending"], ack_pending=info["num_ack_pending"], redelivered=info["num_redelivered"]
    )


class _Plan:
    """What was found so far, and the requests that would put it right."""

    def __init__(self, force: bool) -> None:
        self.changes: list[Change] = []
        self.actions: list[tuple[str, dict[str, Any]]] = []
        self.refused: list[str] = []
        self._force = force

    def create(self, resource: str, subject: str, body: dict[str, Any]) -> None:
        self.changes.append(Change(kind="create", resource=resource))
        self.actions.append((subject, body))

    def update(
        self, changes: list[Change], subject: str, body: dict[str, Any], allowed: tuple[str, ...] = ()
    ) -> None:
        """Note the differences, and refuse those whose fields aren't allowed to change by themselves."""
        if not changes:
            return
        self.changes += changes
        self.actions.append((subject, body))
        for change in changes:
            if change.kind == "conflict":
                self.refused.append(
                    f"{change}; the server can't change that: declare what it has, or use another name"
                )
            elif not self._force and change.field not in allowed:
                self.refused.append(
                    f"{change}; 'understudy check TARGET --apply' changes it, or declare what the server has"
                )


async def _plan_stream(client: Client, plan: _Plan, wanted: dict[str, Any], *, existing_only: bool) -> None:
    name = str(wanted["name"])
    info = await api.stream_info(client, name)
    if existing_only:
        if info is None:
            plan.refused.append(f"stream {name} does not exist, and the app only uses it; create it first")
    elif info is None:
        overlap = await _overlapping(client, name, wanted["subjects"])
        if overlap:
            plan.refused.append(f"stream {name} can't be created: {overlap}")
        plan.create(f"stream {name}", f"STREAM.CREATE.{name}", wanted)
    else:
        changes = _differences(f"stream {name}", wanted, info["config"], fixed=("storage", "retention"))
        overlap = await _overlapping(client, name, wanted["subjects"]) if changes else ""
        if overlap:
            plan.refused.append(f"stream {name} can't be changed: {overlap}")
        plan.update(changes, f"STREAM.UPDATE.{name}", info["config"] | wanted)


async def _plan_consumer(client: Client, plan: _Plan, consumer: ConsumerSpec) -> None:
    wanted = _consumer_config(consumer)
    resource = f"consumer {consumer.durable}"
    subject = f"CONSUMER.CREATE.{consumer.stream}.{consumer.durable}"
    info = await _consumer_info(client, consumer)
    if info is None:
        plan.create(resource, subject, {"stream_name": consumer.stream, "config": wanted, "action": "create"})
        return
    have = info["config"] | {"filter_subjects": _filters(info["config"])}
    if "priority_policy" in have and not consumer.sole_owner:
        wanted |= {"priority_policy": "none", "priority_groups": [], "priority_timeout": 0}
    changes = _differences(resource, wanted, have, fixed=("ack_policy", "deliver_policy"))
    config = {key: value for key, value in (have | wanted).items() if key != "filter_subject"}
    # A new handler widens the filters by itself; narrowing them drops events, so that takes a request.
    widens = all(
        any(covers(new, old) for new in wanted["filter_subjects"]) for old in have["filter_subjects"] or [">"]
    )
    plan.update(
        changes,
        subject,
        {"stream_name": consumer.stream, "config": config, "action": "update"},
        allowed=("filter_subjects", *_FREELY_CHANGED) if widens else _FREELY_CHANGED,
    )


def _streams(app: AppSpec) -> Iterable[tuple[dict[str, Any], bool]]:
    for stream in app.streams:
        yield _stream_config(stream), stream.existing
    yield (
        {
            "name": dead_letter_stream(app.name),
            "subjects": [f"dead-letters.{app.name}.>"],
            "storage": "file",
            "retention": "limits",
            "allow_direct": True,
        },
        False,
    )
    bucket = attempts_bucket(app.name)
    # The fields that make a stream a KV bucket: ADR-8.
    yield (
        {
            "name": f"KV_{bucket}",
            "subjects": [f"$KV.{bucket}.>"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "max_age": ATTEMPTS_TTL_SECONDS * NANOSECONDS,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
        },
        False,
    )


def _stream_config(stream: StreamSpec) -> dict[str, Any]:
    stated = {
        "storage": stream.storage,
        "retention": stream.retention,
        "max_age": None if stream.max_age_seconds is None else round(stream.max_age_seconds * NANOSECONDS),
        "max_bytes": stream.max_bytes,
        "max_msgs": stream.max_messages,
        "duplicate_window": (
            None
            if stream.duplicate_window_seconds is None
            else round(stream.duplicate_window_seconds * NANOSECONDS)
        ),
        "num_replicas": stream.replicas,
    }
    return {
        "name": stream.name,
        "subjects": list(stream.subjects),
        **{field: value for field, value in stated.items() if value is not None},
    }


def _consumer_config(consumer: ConsumerSpec) -> dict[str, Any]:
    return {
        "durable_name": consumer.durable,
        "ack_policy": "explicit",
        "ack_wait": round(consumer.ack_wait_seconds * NANOSECONDS),
        "deliver_policy": consumer.start,
        # The server's count is never the measure of failure: drains and takeovers raise it.
        "max_deliver": -1,
        "max_ack_pending": DELAYED_NAKS + consumer.capacity * consumer.cells,
        "filter_subjects": list(consumer.filters),
        **(pinning.consumer_config(consumer.ack_wait_seconds) if consumer.sole_owner else {}),
    }


async def _consumer_info(client: Client, consumer: ConsumerSpec) -> dict[str, Any] | None:
    try:
        return await api.consumer_info(client, consumer.stream, consumer.durable)
    except api.ApiError as error:
        if error.error_code == _STREAM_NOT_FOUND:
            return None
        raise


_STREAM_NOT_FOUND = 10059


def _filters(config: dict[str, Any]) -> list[str]:
    single = config.get("filter_subject")
    return [single] if single else list(config.get("filter_subjects") or [])


def _differences(
    resource: str, wanted: dict[str, Any], have: dict[str, Any], *, fixed: tuple[str, ...]
) -> list[Change]:
    changes = []
    for field, value in wanted.items():
        actual = have.get(field)
        if isinstance(value, list) and isinstance(actual, list):
            same = sorted(value) == sorted(actual)
        else:
            same = value == actual or (not value and not actual)
        if not same:
            kind: Kind = "conflict" if field in fixed else "update"
            changes.append(
                Change(
                    kind=kind,
                    resource=resource,
                    field=field,
                    have=_show(field, actual),
                    want=_show(field, value),
                )
            )
    return changes


def _show(field: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "empty"
    if field in _DURATIONS and isinstance(value, int):
        return f"{value / NANOSECONDS:g} s"
    return str(value)


async def _overlapping(client: Client, name: str, subjects: list[str]) -> str:
    for subject in subjects:
        answer = await api.request(client, "STREAM.NAMES", {"subject": subject})
        others = [other for other in answer.get("streams") or [] if other != name]
        if others:
            return (
                f"its subject {subject} overlaps stream {', '.join(others)}; "
                f"use Stream.existing({others[0]!r}) or other subjects"
            )
    return ""


async def _apply(client: Client, subject: str, body: dict[str, Any]) -> None:
    try:
        await api.request(client, subject, body)
    except api.ApiError as error:
        raise TopologyError(
            f"the server refused {subject}: {error.description} ({error.error_code})"
        ) from error
