"""Streams and durable consumers: made if they are missing, compared with what the app states if not.

The server can't compare and write in one: between our look and our request another process may write. So a
consumer is looked at once more just before it is updated, and everything again afterwards; where another
revision was there first, what it left is judged anew. Should two still cross within one round trip, the later
request wins as a whole, and the next start of the newer revision puts it right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from nats.aio.client import Client

from understudy.actors.errors import TopologyError
from understudy.runtime.jetstream import api
from understudy.runtime.jetstream.changes import (
    NANOSECONDS,
    ON_REQUEST,
    Change,
    Step,
    Topology,
    differing_fields,
    refusals,
)
from understudy.runtime.jetstream.consumers import Key, find_left_over, newest_revision, plan_consumers
from understudy.runtime.jetstream.schedules import too_old
from understudy.runtime.specs import AppSpec, StreamSpec

ATTEMPTS_TTL_SECONDS = 7 * 24 * 3600
# Each further one is due to another process that starts with another revision at the same moment.
MAX_ROUNDS = 5

_NOBODYS = "nobody"
# A stream or consumer of that name is there with another configuration; a consumer is there no more.
_RACED = (10058, 10148, 10149)


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


def state_bucket(app: str) -> str:
    """Return the name of an app's KV bucket of actors' states."""
    return f"{app}-state"


def marks_bucket(app: str) -> str:
    """Return the name of an app's KV bucket of idempotency marks."""
    return f"{app}-idempotency"


def breakers_bucket(app: str) -> str:
    """Return the name of an app's KV bucket of circuit breakers."""
    return f"{app}-breakers"


def breakers_news(app: str) -> str:
    """Return the subject below which the server tells of each change in that bucket."""
    return f"understudy.{app}.breakers"


async def ensure_topology(client: Client, app: AppSpec, *, apply: bool, force: bool = False) -> Topology:
    """Compare an app's streams and consumers with the server's, and make and change what differs.

    Args:
        client: a connection.
        app: what is declared.
        apply: create what is missing, and update consumers; False changes nothing and refuses nothing.
        force: also what isn't done unasked (`check --apply`): change streams, narrow a consumer's filters,
            make one that would replay a renamed actor's events, take over another app's.

    Returns:
        What was found; with `apply` all of it is done, but for what a newer revision has made otherwise.

    Raises:
        TopologyError: what differs and may not or can't be changed, all of it; nothing was changed then. Or
            the server refused a request, or others went on changing the same.
        BrokerUnreachable: the server did not answer.
    """
    done: dict[tuple[str, str], Change] = {}
    written: set[str] = set()
    for _ in range(MAX_ROUNDS):
        steps, found = await _plan(client, app)
        left_over = find_left_over(app, found)
        if not apply:
            return Topology(changes=tuple(_changes(steps)), left_over=left_over)
        # What another process made of what we have written stands, unless its revision is older.
        steps = [step for step in steps if step.outdates or step.resource not in written]
        if problems := refusals(_changes(steps), on_request=force):
            raise TopologyError(problems)
        settled = True
        for step in steps:
            if step.subject:
                settled = False
                if not await _apply(client, step):
                    break
                written.add(step.resource)
            done |= {(change.resource, change.field): change for change in step.changes}
        if settled:
            return Topology(changes=tuple(done.values()), left_over=left_over)
    raise TopologyError(
        f"app {app.name}: other processes go on changing its streams and consumers; start it again when they "
        "are done"
    )


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


async def _plan(client: Client, app: AppSpec) -> tuple[list[Step], dict[Key, dict[str, Any]]]:
    """Return what is to be done, and all consumers of the app's streams."""
    # Such a server takes the configuration, leaves out what it doesn't know, and would deliver at once.
    if any(stream.timers for stream in app.streams) and (version := too_old(client)):
        names = ", ".join(stream.name for stream in app.streams if stream.timers)
        raise TopologyError(
            f"the server is nats-server {version}, and timers (stream {names}) need 2.12 or later; update "
            f"it, or declare the stream without timers=True"
        )
    streams = [
        (wanted, only_used, await api.stream_info(client, wanted["name"]))
        for wanted, only_used in _streams(app)
    ]
    found = await _find_consumers(client, app, {wanted["name"] for wanted, _, info in streams if info})
    newest = newest_revision(app, found)
    steps = []
    for wanted, only_used, info in streams:
        have = None if info is None else info["config"]
        step = plan_stream(wanted, have, only_used=only_used, newer=newest if newest > app.revision else None)
        if step is not None:
            steps.append(await _look_for_overlap(client, step, wanted["subjects"]))
    return [*steps, *plan_consumers(app, found)], found


async def _find_consumers(client: Client, app: AppSpec, streams: set[str]) -> dict[Key, dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for stream in sorted(streams & {one.name for one in app.streams}):
        for listed in await api.list_consumers(client, stream):
            found[stream, listed["name"]] = listed
    # Of the app's own ones the list says less, and may lack those that a cluster is just moving.
    for consumer in app.consumers:
        if consumer.stream in streams:
            info = await api.consumer_info(client, consumer.stream, consumer.durable)
            if info is None:
                found.pop((consumer.stream, consumer.durable), None)
            else:
                found[consumer.stream, consumer.durable] = info
    return found


def plan_stream(
    wanted: dict[str, Any], have: dict[str, Any] | None, *, only_used: bool, newer: int | None
) -> Step | None:
    """Return what has to be done about a stream; None if it is as declared.

    Args:
        wanted: what is stated.
        have: the server's configuration; None if there is no such stream.
        only_used: whether somebody else looks after it.
        newer: the app's revision that is deployed, if that is a newer one: then the stream is that one's.
    """
    name = wanted["name"]
    resource = f"stream {name}"
    if have is None:
        if only_used:
            problem = "does not exist, and the app only uses it"
            missing = Change(kind="conflict", resource=resource, problem=problem, remedy="create it first")
            return Step(changes=(missing,))
        create = Change(kind="create", resource=resource)
        return Step(changes=(create,), subject=f"STREAM.CREATE.{name}", body=wanted)
    fields = [] if only_used else differing_fields(wanted, have)
    if not fields:
        return None
    if newer is not None:
        kept = [
            Change(
                kind="kept",
                resource=resource,
                field=field,
                have=there,
                want=here,
                remedy=f"left as it is, since revision {newer} of the app is deployed",
            )
            for field, there, here in fields
        ]
        return Step(changes=tuple(kept))
    return Step(
        changes=tuple(_stream_change(resource, *field) for field in fields),
        subject=f"STREAM.UPDATE.{name}",
        body=have | wanted,
    )


def _stream_change(resource: str, field: str, have: str, want: str) -> Change:
    fixed = field == "storage" or (field == "retention" and "workqueue" in (have, want))
    return Change(
        kind="conflict" if fixed else "update",
        resource=resource,
        field=field,
        have=have,
        want=want,
        automatic=False,
        remedy="the server can't change that: declare what it has, or use another name"
        if fixed
        else ON_REQUEST,
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
    yield _bucket(attempts_bucket(app.name), ttl_seconds=ATTEMPTS_TTL_SECONDS), False
    if any(consumer.has_state for consumer in app.consumers):
        yield _bucket(state_bucket(app.name), ttl_seconds=0), False
    if any(consumer.has_marks for consumer in app.consumers):
        # Each mark has a lifetime of its own, that of its actor's window.
        yield _bucket(marks_bucket(app.name), ttl_seconds=0) | {"allow_msg_ttl": True}, False
    if app.has_breakers:
        name = breakers_bucket(app.name)
        # Told on plain subjects, hearing of a change takes no consumer.
        republish = {"src": f"$KV.{name}.>", "dest": f"{breakers_news(app.name)}.>"}
        yield _bucket(name, ttl_seconds=0) | {"republish": republish}, False


def _bucket(name: str, *, ttl_seconds: int) -> dict[str, Any]:
    """Return the fields that make a stream a KV bucket: ADR-8."""
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_age": ttl_seconds * NANOSECONDS,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }


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
        **({"allow_msg_schedules": True} if stream.timers else {}),
        **{field: value for field, value in stated.items() if value is not None},
    }


async def _look_for_overlap(client: Client, step: Step, subjects: list[str]) -> Step:
    """Return the step, or in its place what keeps the stream from having its subjects."""
    if not step.subject:
        return step
    for subject in subjects:
        answer = await api.request(client, "STREAM.NAMES", {"subject": subject})
        others = [other for other in answer.get("streams") or [] if f"stream {other}" != step.resource]
        if others:
            verb = "created" if step.changes[0].kind == "create" else "changed"
            overlap = Change(
                kind="conflict",
                resource=step.resource,
                problem=f"can't be {verb}: its subject {subject} overlaps stream {', '.join(others)}",
                remedy=f"use Stream.existing({others[0]!r}) or other subjects",
            )
            return Step(changes=(*step.changes, overlap))
    return step


async def _apply(client: Client, step: Step) -> bool:
    """Make a step's request.

    Returns:
        Whether it was made; False if the server has something else by now than what the step was planned for.
    """
    if step.planned_from is not None:
        stream, durable = step.body["stream_name"], step.body["config"]["durable_name"]
        info = await api.consumer_info(client, stream, durable)
        if info is None or info["config"] != step.planned_from:
            return False
    try:
        if _frees(step):
            # A pin outlives the policy (tried), and nobody else is served until it has timed out. Taken away
            # under load, it is a standby's at once, but for a group that nobody asks in.
            config = (step.planned_from or {}) | {"priority_groups": [_NOBODYS]}
            await api.request(client, step.subject, step.body | {"config": config})
            await api.request(client, f"CONSUMER.UNPIN.{stream}.{durable}", {"group": _NOBODYS})
        await api.request(client, step.subject, step.body)
    except api.ApiError as error:
        if error.error_code in _RACED:
            return False
        raise TopologyError(
            f"the server refused {step.subject}: {error.description} ({error.error_code})"
        ) from error
    return True


def _frees(step: Step) -> bool:
    """Return whether a step lets a consumer serve everyone that has served one owner."""
    before = step.planned_from or {}
    after = step.body.get("config", {})
    return before.get("priority_policy") == "pinned_client" and after.get("priority_policy") == "none"


def _changes(steps: Iterable[Step]) -> list[Change]:
    return [change for step in steps for change in step.changes]
