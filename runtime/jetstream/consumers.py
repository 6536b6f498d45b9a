"""Durable consumers: what an app declares against what the server has, and which revision made it.

Pure: from both follows what differs and what is done about it. Which fields the server lets one change was
tried on nats-server 2.15.1: all that is stated here but ack_policy, deliver_policy and deliver_subject.

Each consumer says in its metadata whose it is. An older revision of the app, as a node that restarts amid a
rolling deploy, changes nothing that a newer one has made; it runs with that, where it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from understudy.actors.subjects import covers, overlap
from understudy.runtime.jetstream import pinning
from understudy.runtime.jetstream.changes import (
    APPLIES,
    NANOSECONDS,
    ON_REQUEST,
    Change,
    LeftOver,
    Step,
    differing_fields,
)
from understudy.runtime.specs import AppSpec, ConsumerSpec, default_durable

# A message that was nak'd with a delay counts against max_ack_pending until it comes back, so a small
# limit would stall the consumer behind its failures. What a cell holds is bounded by its pull requests;
# this only bounds how many failures may wait for their turn.
DELAYED_NAKS = 100_000

Key = tuple[str, str]
"""A consumer's stream and its own name."""

_IMMUTABLE = ("ack_policy", "deliver_policy", "deliver_subject")
_PREFIX = "understudy."


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer's metadata says of who declared it.

    Args:
        app, actor: by name.
        revision: the app's.
        specification: a hash of what was declared.
    """

    app: str
    actor: str
    revision: int
    specification: str

    def metadata(self) -> dict[str, str]:
        """Return them as the server keeps them."""
        return {
            f"{_PREFIX}app": self.app,
            f"{_PREFIX}actor": self.actor,
            f"{_PREFIX}revision": str(self.revision),
            f"{_PREFIX}spec": self.specification,
        }


def read_marks(info: Mapping[str, Any]) -> Marks | None:
    """Return a consumer's marks; None if it has none, or none that can be read.

    Args:
        info: the server's description of the consumer.
    """
    metadata = info["config"].get("metadata") or {}
    app, revision = metadata.get(f"{_PREFIX}app"), metadata.get(f"{_PREFIX}revision", "")
    if not app or not revision.isdecimal():
        return None
    return Marks(
        app=app,
        actor=metadata.get(f"{_PREFIX}actor", ""),
        revision=int(revision),
        specification=metadata.get(f"{_PREFIX}spec", ""),
    )


def newest_revision(app: AppSpec, found: Mapping[Key, Mapping[str, Any]]) -> int:
    """Return the newest revision of the app that has left its mark on a consumer; 0 if none has.

    Args:
        app: what is declared.
        found: the server's descriptions of all consumers of the app's streams.
    """
    marks = (read_marks(info) for info in found.values())
    return max((one.revision for one in marks if one and one.app == app.name), default=0)


def plan_consumers(app: AppSpec, found: Mapping[Key, Mapping[str, Any]]) -> list[Step]:
    """Return what has to be done about an app's consumers, in order; nothing for one that is as declared.

    Args:
        app: what is declared.
        found: the server's descriptions of all consumers of the app's streams.
    """
    steps = []
    for consumer in app.consumers:
        info = found.get((consumer.stream, consumer.durable))
        step = _plan_missing(app, consumer, found) if info is None else _plan_found(app, consumer, info)
        if step.changes:
            steps.append(step)
    # On a work queue a subject must be given up by one consumer before another can have it.
    return sorted(steps, key=lambda step: not any(map(_narrows, step.changes)))


def find_left_over(app: AppSpec, found: Mapping[Key, Mapping[str, Any]]) -> tuple[LeftOver, ...]:
    """Return the consumers that this revision of the app, or an older one, has left behind.

    Args:
        app: what is declared.
        found: the server's descriptions of all consumers of the app's streams.
    """
    declared = {(consumer.stream, consumer.durable) for consumer in app.consumers}
    left = []
    for (stream, durable), info in sorted(found.items()):
        marks = read_marks(info)
        if marks is None or marks.app != app.name or (stream, durable) in declared:
            continue
        if marks.revision <= app.revision:
            left.append(
                LeftOver(
                    stream=stream,
                    durable=durable,
                    actor=marks.actor,
                    revision=marks.revision,
                    pending=info["num_pending"] + info["num_ack_pending"],
                )
            )
    return tuple(left)


def _narrows(change: Change) -> bool:
    return change.field == "filter_subjects" and not change.automatic


def _plan_missing(app: AppSpec, consumer: ConsumerSpec, found: Mapping[Key, Mapping[str, Any]]) -> Step:
    resource = f"consumer {consumer.durable}"
    newest = newest_revision(app, found)
    if newest > app.revision:
        change = Change(
            kind="create",
            resource=resource,
            automatic=False,
            remedy=f"revision {newest} of the app is deployed, and this is revision {app.revision}, which "
            f"makes none of its own; raise revision= if this one is the newer, or {APPLIES} makes it",
        )
    else:
        change = _replay(app, consumer, found) or Change(kind="create", resource=resource)
    config = _wanted(consumer) | {"metadata": _marks(app, consumer).metadata()}
    return Step(
        changes=(change,),
        subject=_subject(consumer),
        body={"stream_name": consumer.stream, "config": config, "action": "create"},
    )


def _replay(app: AppSpec, consumer: ConsumerSpec, found: Mapping[Key, Mapping[str, Any]]) -> Change | None:
    """Return the creation of a consumer that would have its events handled again: a renamed actor's.

    Who gives a declared actor another `durable=` means to: that is one of the ways out where a field can't
    be changed.
    """
    if consumer.start != "all":
        return None
    actors = {one.actor for one in app.consumers}
    named = consumer.durable != default_durable(app.name, consumer.actor)
    for left in find_left_over(app, found):
        old = _filters(found[left.stream, left.durable]["config"]) or [">"]
        again = [new for new in consumer.filters if any(overlap(new, one) for one in old)]
        gone = left.actor not in actors
        renamed = gone or (left.actor == consumer.actor and not named)
        if left.stream == consumer.stream and renamed and again:
            return Change(
                kind="create",
                resource=f"consumer {consumer.durable}",
                automatic=False,
                problem=f"does not exist, and would begin at the stream's start, though consumer "
                f"{left.durable} of actor {left.actor!r}{', which is gone,' if gone else ''} has handled "
                f"{', '.join(again)} before",
                remedy=f"if it is the same actor, durable={left.durable!r} keeps its place; "
                f"start='new' begins with what comes from now on; {APPLIES} makes it all the same, as does "
                f"deleting the old one ('nats consumer rm {left.stream} {left.durable}')",
            )
    return None


def _plan_found(app: AppSpec, consumer: ConsumerSpec, info: Mapping[str, Any]) -> Step:
    # What the server adds, an operator's settings and other's metadata stay.
    config = info["config"]
    have = config | {"filter_subjects": _filters(config)}
    wanted = _wanted(consumer)
    if "priority_policy" in have and not consumer.sole_owner:
        wanted |= {"priority_policy": "none", "priority_groups": [], "priority_timeout": 0}
    before, marks = read_marks(info), _marks(app, consumer)
    fields = differing_fields(wanted, have)
    if before is not None and before.app == app.name and before.revision > app.revision:
        # Nothing to send.
        return Step(changes=tuple(_keep(consumer, before, app.revision, fields)))
    changes = [_change(consumer, have, *field) for field in fields]
    changes += _mark_changes(consumer, before, marks)
    body = {key: value for key, value in (have | wanted).items() if key != "filter_subject"}
    metadata = {
        key: value for key, value in (have.get("metadata") or {}).items() if not key.startswith(_PREFIX)
    }
    body["metadata"] = metadata | marks.metadata()
    return Step(
        changes=tuple(changes),
        subject=_subject(consumer),
        body={"stream_name": consumer.stream, "config": body, "action": "update"},
        planned_from=config,
        outdates=before is None or before.revision < app.revision,
    )


def _keep(
    consumer: ConsumerSpec, before: Marks, revision: int, fields: list[tuple[str, str, str]]
) -> list[Change]:
    """Return what differs from a newer revision's consumer, and whether one can run with it."""
    resource = f"consumer {consumer.durable}"
    kept = [
        Change(
            kind="kept",
            resource=resource,
            field="revision",
            have=str(before.revision),
            want=str(revision),
            remedy="the newer one's consumer is left as it is",
        )
    ]
    if before.actor != consumer.actor:
        kept.append(
            Change(kind="kept", resource=resource, field="actor", have=before.actor, want=consumer.actor)
        )
    for field, have, want in fields:
        if field in ("priority_policy", "ack_policy", "deliver_subject"):
            shares = "keeps an order, which others would break" if consumer.sole_owner else "shares it"
            why = f", and this one {shares}" if field == "priority_policy" else ""
            kept.append(
                Change(
                    kind="conflict",
                    resource=resource,
                    field=field,
                    have=have,
                    want=want,
                    remedy=f"revision {before.revision} made it so{why}: run that revision here too, or "
                    "raise revision= above it",
                )
            )
        else:
            kept.append(Change(kind="kept", resource=resource, field=field, have=have, want=want))
    return kept


def _change(consumer: ConsumerSpec, old: dict[str, Any], field: str, have: str, want: str) -> Change:
    resource = f"consumer {consumer.durable}"
    if field in _IMMUTABLE:
        declare = (
            f"declare start={have!r}, or " if field == "deliver_policy" and have in ("all", "new") else ""
        )
        return Change(
            kind="conflict",
            resource=resource,
            field=field,
            have=have,
            want=want,
            remedy=f"the server can't change that: {declare}give the actor another durable=, or delete the "
            f"consumer ('nats consumer rm {consumer.stream} {consumer.durable}'), which forgets what was "
            f"handled; the one made instead begins at start={consumer.start!r}",
        )
    # A new handler widens the filters by itself; narrowing them drops events, so that takes a request.
    narrows = field == "filter_subjects" and not all(
        any(covers(new, one) for new in consumer.filters) for one in old["filter_subjects"] or [">"]
    )
    return Change(
        kind="update",
        resource=resource,
        field=field,
        have=have,
        want=want,
        automatic=not narrows,
        remedy=ON_REQUEST if narrows else "",
    )


def _mark_changes(consumer: ConsumerSpec, before: Marks | None, after: Marks) -> list[Change]:
    resource = f"consumer {consumer.durable}"
    if before is None:
        want = f"app {after.app}, actor {after.actor}, revision {after.revision}"
        return [Change(kind="update", resource=resource, field="metadata", have="empty", want=want)]
    changes = []
    for field in ("app", "actor", "revision"):
        have, want = getattr(before, field), getattr(after, field)
        if have != want:
            change = Change(kind="update", resource=resource, field=field, have=str(have), want=str(want))
            if field == "app":
                change = msgspec.structs.replace(
                    change,
                    automatic=False,
                    remedy="give the actor another durable=; or, if that app is gone or was renamed, "
                    f"{APPLIES} takes the consumer over",
                )
            changes.append(change)
    if (before.app, before.revision) == (after.app, after.revision):
        have, want = before.specification, after.specification
        if have != want:
            changes.append(
                Change(
                    kind="update",
                    resource=resource,
                    field="specification",
                    have=have or "empty",
                    want=want,
                    remedy=f"both are revision {after.revision}: raise revision= with each change, so that "
                    "nodes can tell which is the newer",
                )
            )
    return changes


def _marks(app: AppSpec, consumer: ConsumerSpec) -> Marks:
    return Marks(
        app=app.name, actor=consumer.actor, revision=app.revision, specification=consumer.specification
    )


def _wanted(consumer: ConsumerSpec) -> dict[str, Any]:
    return {
        "durable_name": consumer.durable,
        "ack_policy": "explicit",
        "ack_wait": round(consumer.ack_wait_seconds * NANOSECONDS),
        "deliver_policy": consumer.start,
        # Of a push consumer.
        "deliver_subject": "",
        # The server's count is never the measure of failure: drains and takeovers raise it.
        "max_deliver": -1,
        # Would go before ack_wait.
        "backoff": [],
        "headers_only": False,
        "max_ack_pending": DELAYED_NAKS + consumer.capacity * consumer.cells,
        "filter_subjects": list(consumer.filters),
        **(pinning.consumer_config(consumer.ack_wait_seconds) if consumer.sole_owner else {}),
    }


def _subject(consumer: ConsumerSpec) -> str:
    return f"CONSUMER.CREATE.{consumer.stream}.{consumer.durable}"


def _filters(config: Mapping[str, Any]) -> list[str]:
    single = config.get("filter_subject")
    return [single] if single else list(config.get("filter_subjects") or [])
