"""Streams and consumers: made if missing, compared with what the app declares if not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from nats.aio.client import Client

from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.errors import TopologyError
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox, RetryPolicy
from understudy.actors.supervision import Child, ChildLike
from understudy.config.connection import ConnectionSpec
from understudy.runtime.app import App
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.changes import LeftOver, Topology
from understudy.runtime.jetstream.topology import Backlog, backlog, ensure_topology
from understudy.runtime.specs import AppSpec
from understudy.runtime.stream import Stream

ALL_MADE = [
    "stream ORDERS does not exist",
    "stream SHOP_DEAD_LETTERS does not exist",
    "stream KV_shop-attempts does not exist",
    "consumer shop-billing does not exist",
]


class Billing(Actor, mailbox=Mailbox(capacity=100)):
    @handles("orders.placed")
    async def placed(self, event: dict[str, Any]) -> None: ...


class Wider(Actor, mailbox=Mailbox(capacity=100)):
    @handles("orders.*")
    async def placed(self, event: dict[str, Any]) -> None: ...


class Two(Actor, mailbox=Mailbox(capacity=100)):
    @handles("orders.placed")
    async def placed(self, event: dict[str, Any]) -> None: ...

    @handles("orders.paid")
    async def paid(self, event: dict[str, Any]) -> None: ...


def spec_of(
    actor: type[Actor] = Billing,
    stream: Stream | None = None,
    *,
    app: str = "shop",
    name: str = "billing",
    revision: int = 0,
    **child: Any,
) -> AppSpec:
    """Return the spec of an app of one actor."""
    return App(
        app,
        streams=[stream or Stream("ORDERS", subjects=["orders.>"])],
        children=[Child(actor, name=name, **child)],
        revision=revision,
    ).spec()


def lines(topology: Topology) -> list[str]:
    """Return what differs, one line each."""
    return [str(change) for change in topology.changes]


def another_specification(before: AppSpec, after: AppSpec) -> str:
    """Return the line that says so, of the first actor."""
    old, new = before.consumers[0], after.consumers[0]
    return (
        f"consumer {new.durable}: specification is {old.specification}, the app declares {new.specification}"
    )


def marks(config: dict[str, Any]) -> dict[str, str]:
    """Return what a consumer's metadata says of us, without the prefix."""
    return {
        key.removeprefix("understudy."): value
        for key, value in config["metadata"].items()
        if key.startswith("understudy.")
    }


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A connection to an empty broker."""
    client = await connection.connect(ConnectionSpec(servers=(nats_server.url,)), name="test")
    yield client
    await client.close()


async def consumer_config(client: Client) -> dict[str, Any]:
    """Return what the server says of the app's consumer."""
    info = await api.consumer_info(client, "ORDERS", "shop-billing")
    assert info is not None
    config: dict[str, Any] = info["config"]
    return config


async def update(client: Client, config: dict[str, Any]) -> None:
    """Change the app's consumer as an operator may."""
    body = {"stream_name": "ORDERS", "config": config, "action": "update"}
    await api.request(client, "CONSUMER.CREATE.ORDERS.shop-billing", body)


async def everything(client: Client) -> list[Any]:
    """Return the configuration of all streams and their consumers."""
    streams = (await api.request(client, "STREAM.LIST"))["streams"]
    found: list[Any] = []
    for stream in sorted(streams, key=lambda stream: str(stream["config"]["name"])):
        consumers = await api.request(client, f"CONSUMER.LIST.{stream['config']['name']}")
        found.append((stream["config"], stream["created"]))
        found += [(consumer["config"], consumer["created"]) for consumer in consumers["consumers"]]
    return found


async def refused(client: Client, spec: AppSpec, **options: bool) -> list[str]:
    """Return why the topology is refused, and check that nothing was changed."""
    before = await everything(client)
    with pytest.raises(TopologyError) as raised:
        await ensure_topology(client, spec, **{"apply": True, **options})
    assert await everything(client) == before
    return list(raised.value.problems)


async def test_makes_what_is_missing_and_then_finds_nothing_to_do(client: Client) -> None:
    """Stream, dead letters, attempts and consumer; a second start changes nothing."""
    made = await ensure_topology(client, spec_of(), apply=True)
    assert lines(made) == ALL_MADE
    config = await consumer_config(client)
    assert config["ack_policy"] == "explicit"
    assert config["ack_wait"] == 15_000_000_000
    assert config["max_deliver"] == -1
    assert config["deliver_policy"] == "all"
    assert config["filter_subjects"] == ["orders.placed"]
    assert marks(config) == {
        "app": "shop",
        "actor": "billing",
        "revision": "0",
        "spec": spec_of().consumers[0].specification,
    }
    before = await everything(client)
    assert await ensure_topology(client, spec_of(), apply=True) == Topology()
    assert await ensure_topology(client, spec_of(), apply=True, force=True) == Topology()
    assert await everything(client) == before
    assert await backlog(client, "ORDERS", "shop-billing") == Backlog(pending=0, ack_pending=0, redelivered=0)


async def test_without_apply_nothing_is_made(client: Client) -> None:
    """The differences are named all the same."""
    assert lines(await ensure_topology(client, spec_of(), apply=False)) == ALL_MADE
    assert await everything(client) == []
    with pytest.raises(TopologyError) as raised:
        await backlog(client, "ORDERS", "shop-billing")
    assert str(raised.value) == "consumer shop-billing of stream ORDERS does not exist"


async def test_what_is_not_stated_is_not_compared(client: Client) -> None:
    """An operator's own settings stay."""
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], max_age=3600, description="ops")
    assert lines(await ensure_topology(client, spec_of(), apply=True)) == ALL_MADE[1:]
    info = await client.jetstream().stream_info("ORDERS")
    assert (info.config.max_age, info.config.description) == (3600, "ops")


async def test_a_storage_that_differs_can_t_be_changed(client: Client) -> None:
    """Not even by force; the error says what to do."""
    await ensure_topology(client, spec_of(), apply=True)
    memory = spec_of(stream=Stream("ORDERS", subjects=["orders.>"], storage="memory"))
    problem = (
        "stream ORDERS: storage is file, the app declares memory; "
        "the server can't change that: declare what it has, or use another name"
    )
    assert await refused(client, memory) == [problem]
    assert await refused(client, memory, force=True) == [problem]
    (change,) = (await ensure_topology(client, memory, apply=False)).changes
    assert (change.kind, change.advice) == ("conflict", problem)


async def test_every_difference_is_named_in_one_error(client: Client) -> None:
    """Each with what the server has, what the app declares, and the remedy; force applies them all."""
    await ensure_topology(client, spec_of(), apply=True)
    changed = spec_of(
        stream=Stream(
            "ORDERS",
            subjects=["orders.>", "bills.>"],
            max_messages=1000,
            max_age_seconds=60,
            duplicate_window_seconds=30,
        ),
        ack_wait_seconds=30,
        revision=1,
    )
    remedy = "'understudy check TARGET --apply' changes it, or declare what the server has"
    assert await refused(client, changed) == [
        f"stream ORDERS: subjects is orders.>, the app declares orders.>, bills.>; {remedy}",
        f"stream ORDERS: max_age is 0 s, the app declares 60 s; {remedy}",
        f"stream ORDERS: max_msgs is -1, the app declares 1000; {remedy}",
        f"stream ORDERS: duplicate_window is 120 s, the app declares 30 s; {remedy}",
    ]
    before = await everything(client)
    assert len((await ensure_topology(client, changed, apply=False)).changes) == 6
    assert await everything(client) == before
    assert len((await ensure_topology(client, changed, apply=True, force=True)).changes) == 6
    assert await ensure_topology(client, changed, apply=True) == Topology()
    info = await client.jetstream().stream_info("ORDERS")
    assert info.config.subjects == ["orders.>", "bills.>"]
    assert (await consumer_config(client))["ack_wait"] == 30_000_000_000


@pytest.mark.parametrize("wider", [Wider, Two])
async def test_a_new_handler_widens_the_filters_by_itself(client: Client, wider: type[Actor]) -> None:
    """The consumer goes on where it was."""
    await ensure_topology(client, spec_of(), apply=True)
    found = await ensure_topology(client, spec_of(wider, revision=1), apply=True)
    want = ", ".join(wider.__understudy__.filters)
    assert lines(found) == [
        f"consumer shop-billing: filter_subjects is orders.placed, the app declares {want}",
        "consumer shop-billing: revision is 0, the app declares 1",
    ]
    assert await ensure_topology(client, spec_of(wider, revision=1), apply=True) == Topology()


@pytest.mark.parametrize("wider", [Wider, Two])
async def test_filters_are_narrowed_only_on_request(client: Client, wider: type[Actor]) -> None:
    """What a removed handler's subjects held would be lost to it."""
    await ensure_topology(client, spec_of(wider), apply=True)
    have = ", ".join(wider.__understudy__.filters)
    assert await refused(client, spec_of()) == [
        f"consumer shop-billing: filter_subjects is {have}, the app declares orders.placed; "
        "'understudy check TARGET --apply' changes it, or declare what the server has"
    ]
    await ensure_topology(client, spec_of(), apply=True, force=True)
    assert await ensure_topology(client, spec_of(), apply=True) == Topology()
    assert (await consumer_config(client))["filter_subjects"] == ["orders.placed"]


async def test_a_consumer_without_filters_takes_everything(client: Client) -> None:
    """So any filter narrows it."""
    await ensure_topology(client, spec_of(), apply=True)
    config = await consumer_config(client)
    config = {field: value for field, value in config.items() if not field.startswith("filter")}
    await update(client, config)
    assert await refused(client, spec_of()) == [
        "consumer shop-billing: filter_subjects is empty, the app declares orders.placed; "
        "'understudy check TARGET --apply' changes it, or declare what the server has"
    ]


async def test_a_consumer_of_another_kind_can_t_be_changed(client: Client) -> None:
    """Where it starts was settled when it was made."""
    await ensure_topology(client, spec_of(), apply=True)
    assert await refused(client, spec_of(start="new"), force=True) == [
        "consumer shop-billing: deliver_policy is all, the app declares new; the server can't change that: "
        "declare start='all', or give the actor another durable=, or delete the consumer ('nats consumer rm "
        "ORDERS shop-billing'), which forgets what was handled; the one made instead begins at start='new'"
    ]


async def test_an_overlap_names_the_other_stream(client: Client) -> None:
    """And how to use that one instead; nothing is made."""
    await client.jetstream().add_stream(name="EVERYTHING", subjects=["orders.placed"])
    assert await refused(client, spec_of()) == [
        "stream ORDERS can't be created: its subject orders.> overlaps stream EVERYTHING; "
        "use Stream.existing('EVERYTHING') or other subjects"
    ]


async def test_an_overlap_of_a_new_subject_names_the_other_stream(client: Client) -> None:
    """A stream that grows may meet another; nothing is changed then."""
    await ensure_topology(client, spec_of(), apply=True)
    await client.jetstream().add_stream(name="BILLS", subjects=["bills.paid"])
    grown = spec_of(stream=Stream("ORDERS", subjects=["orders.>", "bills.*"]), ack_wait_seconds=30)
    assert await refused(client, grown, force=True) == [
        "stream ORDERS can't be changed: its subject bills.* overlaps stream BILLS; "
        "use Stream.existing('BILLS') or other subjects"
    ]


async def test_an_existing_stream_is_only_used(client: Client) -> None:
    """Missing, it is an error; there, nothing of it is compared."""

    class Reading(Actor, stream="ORDERS"):
        @handles("orders.placed")
        async def placed(self, event: dict[str, Any]) -> None: ...

    spec = spec_of(Reading, Stream.existing("ORDERS"))
    problem = "stream ORDERS does not exist, and the app only uses it; create it first"
    assert await refused(client, spec) == [problem]
    assert (await ensure_topology(client, spec, apply=False)).changes[0].advice == problem
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.placed"], max_msgs=5)
    assert lines(await ensure_topology(client, spec, apply=True)) == ALL_MADE[1:]
    assert await ensure_topology(client, spec, apply=True) == Topology()


async def test_the_server_s_refusal_is_quoted(client: Client) -> None:
    """What can't be foreseen is said in the server's words."""
    spec = spec_of(stream=Stream("ORDERS", subjects=["orders.>"], replicas=3))
    with pytest.raises(TopologyError) as raised:
        await ensure_topology(client, spec, apply=True)
    assert str(raised.value).startswith("the server refused STREAM.CREATE.ORDERS: ")
    assert "replicas > 1 not supported in non-clustered mode (10074)" in str(raised.value)


async def test_what_can_change_is_updated_by_a_newer_revision(client: Client) -> None:
    """Ack wait, priorities and the rest, unasked; the position is kept, and others' metadata."""
    await ensure_topology(client, spec_of(), apply=True)
    jetstream = client.jetstream()
    await jetstream.publish("orders.placed", b"{}")
    # The server takes ack_wait from the first backoff.
    config = await consumer_config(client) | {"max_deliver": 5, "backoff": [1_000_000_000]}
    config["metadata"] |= {"team": "payments"}
    await update(client, config)
    owned = spec_of(revision=1, ack_wait_seconds=30, ordered=True, mailbox=Mailbox(capacity=7))
    found = await ensure_topology(client, owned, apply=True)
    assert all(change.automatic for change in found.changes)
    assert lines(found) == [
        "consumer shop-billing: ack_wait is 1 s, the app declares 30 s",
        "consumer shop-billing: max_deliver is 5, the app declares -1",
        "consumer shop-billing: backoff is 1000000000, the app declares empty",
        "consumer shop-billing: max_ack_pending is 100100, the app declares 100007",
        "consumer shop-billing: priority_policy is empty, the app declares pinned_client",
        "consumer shop-billing: priority_groups is empty, the app declares owner",
        "consumer shop-billing: priority_timeout is empty, the app declares 60 s",
        "consumer shop-billing: revision is 0, the app declares 1",
    ]
    config = await consumer_config(client)
    assert (config["ack_wait"], config["max_deliver"], config["max_ack_pending"]) == (30 * 10**9, -1, 100007)
    assert config["priority_policy"] == "pinned_client"
    assert config["metadata"]["team"] == "payments"
    assert marks(config)["revision"] == "1"
    assert await ensure_topology(client, owned, apply=True) == Topology()
    assert (await backlog(client, "ORDERS", "shop-billing")).pending == 1
    shared = spec_of(revision=2)
    await ensure_topology(client, shared, apply=True)
    assert "priority_policy" not in await consumer_config(client)
    assert await ensure_topology(client, shared, apply=True) == Topology()


async def test_an_older_revision_leaves_all_as_it_is(client: Client) -> None:
    """Even on request; it runs with what the newer one made, and is told what differs."""
    newer_stream = Stream("ORDERS", subjects=["orders.>", "bills.>"])
    newer = spec_of(Two, newer_stream, revision=2, ack_wait_seconds=30, retry=RetryPolicy(max_attempts=7))
    await ensure_topology(client, newer, apply=True)
    before = await everything(client)
    for force in (False, True):
        found = await ensure_topology(client, spec_of(revision=1), apply=True, force=force)
        assert {change.kind for change in found.changes} == {"kept"}
        assert lines(found) == [
            "stream ORDERS: subjects is orders.>, bills.>, the app declares orders.>",
            "consumer shop-billing: revision is 2, the app declares 1",
            "consumer shop-billing: ack_wait is 30 s, the app declares 15 s",
            "consumer shop-billing: filter_subjects is orders.placed, orders.paid, "
            "the app declares orders.placed",
        ]
        assert await everything(client) == before


@pytest.mark.parametrize("keeps_order", [False, True])
async def test_an_older_revision_does_not_run_where_order_would_break(
    client: Client, keeps_order: bool
) -> None:
    """A sole owner can't share a consumer, nor one that shares take from a sole owner's."""
    await ensure_topology(client, spec_of(revision=2, ordered=not keeps_order), apply=True)
    have, want = ("empty", "pinned_client") if keeps_order else ("pinned_client", "none")
    shares = "keeps an order, which others would break" if keeps_order else "shares it"
    assert await refused(client, spec_of(revision=1, ordered=keeps_order)) == [
        f"consumer shop-billing: priority_policy is {have}, the app declares {want}; revision 2 made it so, "
        f"and this one {shares}: run that revision here too, or raise revision= above it"
    ]


async def test_an_older_revision_makes_no_consumer(client: Client) -> None:
    """It would begin at the start of the stream with what the newer one has no need to handle."""
    await ensure_topology(client, spec_of(name="invoicing", revision=2), apply=True)
    problem = (
        "consumer shop-billing does not exist; revision 2 of the app is deployed, and this is revision 1, "
        "which makes none of its own; raise revision= if this one is the newer, or 'understudy check TARGET "
        "--apply' makes it"
    )
    assert await refused(client, spec_of(revision=1)) == [problem]
    assert lines(await ensure_topology(client, spec_of(revision=1), apply=True, force=True)) == [ALL_MADE[3]]


async def test_another_specification_of_the_same_revision_is_updated_and_said(client: Client) -> None:
    """Whoever starts last wins, so the revision should have been raised."""
    await ensure_topology(client, spec_of(), apply=True)
    changed = spec_of(retry=RetryPolicy(max_attempts=7))
    (change,) = (await ensure_topology(client, changed, apply=True)).changes
    assert str(change) == another_specification(spec_of(), changed)
    assert change.remedy == (
        "both are revision 0: raise revision= with each change, so that nodes can tell which is the newer"
    )
    assert marks(await consumer_config(client))["spec"] == changed.consumers[0].specification
    raised = spec_of(revision=1)
    (change,) = (await ensure_topology(client, raised, apply=True)).changes
    assert (str(change), change.remedy) == ("consumer shop-billing: revision is 0, the app declares 1", "")


async def test_a_consumer_without_metadata_is_adopted(client: Client) -> None:
    """As one made before there was any; it goes on where it was."""
    await ensure_topology(client, spec_of(), apply=True)
    config = await consumer_config(client)
    await update(client, config | {"metadata": {}})
    (change,) = (await ensure_topology(client, spec_of(), apply=True)).changes
    assert change.done == (
        "consumer shop-billing: metadata changed from empty to app shop, actor billing, revision 0"
    )
    assert await consumer_config(client) == config


async def test_another_app_s_consumer_is_not_taken_unasked(client: Client) -> None:
    """Two apps that share a durable would each miss what the other gets."""
    await ensure_topology(client, spec_of(), apply=True)
    other = spec_of(app="store", durable="shop-billing", revision=3)
    assert await refused(client, other) == [
        "consumer shop-billing: app is shop, the app declares store; give the actor another durable=; or, if "
        "that app is gone or was renamed, 'understudy check TARGET --apply' takes the consumer over"
    ]
    await ensure_topology(client, other, apply=True, force=True)
    assert marks(await consumer_config(client))["app"] == "store"
    assert await ensure_topology(client, other, apply=True) == Topology()


async def test_a_renamed_actor_does_not_replay_the_stream_unasked(client: Client) -> None:
    """Refused with the ways out, of which each works."""
    await ensure_topology(client, spec_of(), apply=True)
    renamed = spec_of(name="invoicing", revision=1)
    problem = (
        "consumer shop-invoicing does not exist, and would begin at the stream's start, though consumer "
        "shop-billing of actor 'billing', which is gone, has handled orders.placed before; if it is the same "
        "actor, durable='shop-billing' keeps its place; start='new' begins with what comes from now on; "
        "'understudy check TARGET --apply' makes it all the same, as does deleting the old one ('nats "
        "consumer rm ORDERS shop-billing')"
    )
    assert await refused(client, renamed) == [problem]
    left_over = LeftOver(stream="ORDERS", durable="shop-billing", actor="billing", revision=0, pending=0)
    found = await ensure_topology(client, renamed, apply=False)
    assert [change.advice for change in found.changes] == [problem]
    assert found.left_over == (left_over,)
    kept = await ensure_topology(
        client, spec_of(name="invoicing", revision=1, durable="shop-billing"), apply=True
    )
    assert lines(kept) == [
        "consumer shop-billing: actor is billing, the app declares invoicing",
        "consumer shop-billing: revision is 0, the app declares 1",
    ]
    assert kept.left_over == ()


@pytest.mark.parametrize("way_out", ["new", "apply", "delete"])
async def test_a_renamed_actor_may_begin_anew(client: Client, way_out: str) -> None:
    """From now on, or from the start where that is asked for."""
    await ensure_topology(client, spec_of(), apply=True)
    await client.jetstream().publish("orders.placed", b"{}")
    start = "new" if way_out == "new" else "all"
    if way_out == "delete":
        await api.request(client, "CONSUMER.DELETE.ORDERS.shop-billing")
    renamed = spec_of(name="invoicing", revision=1, start=start)
    made = await ensure_topology(client, renamed, apply=True, force=way_out == "apply")
    assert made.changes[0].done == "consumer shop-invoicing created"
    assert (await backlog(client, "ORDERS", "shop-invoicing")).pending == int(start == "all")
    found = await ensure_topology(client, renamed, apply=True)
    assert found.changes == ()
    assert [left.pending for left in found.left_over] == ([] if way_out == "delete" else [1])


async def test_what_is_no_rename_is_left_over_only(client: Client) -> None:
    """No common subject, another app's, or an actor that was given another durable on purpose."""

    class Paid(Actor):
        @handles("orders.paid")
        async def paid(self, event: dict[str, Any]) -> None: ...

    await ensure_topology(client, spec_of(), apply=True)
    found = await ensure_topology(client, spec_of(app="store", name="invoicing"), apply=True)
    assert found.left_over == ()
    found = await ensure_topology(client, spec_of(Paid, name="paying", revision=1), apply=True)
    assert [left.durable for left in found.left_over] == ["shop-billing"]
    found = await ensure_topology(client, spec_of(revision=2, durable="shop-again"), apply=True)
    assert [left.durable for left in found.left_over] == ["shop-billing", "shop-paying"]
    # Nor is what a newer revision has made.
    found = await ensure_topology(client, spec_of(revision=0), apply=False)
    assert found.left_over == ()


async def test_to_lose_one_s_durable_is_a_rename_too(client: Client) -> None:
    """The actor is declared still, but without durable= it would begin anew."""
    await ensure_topology(client, spec_of(durable="shop-again"), apply=True)
    (problem,) = await refused(client, spec_of(revision=1))
    assert problem.startswith(
        "consumer shop-billing does not exist, and would begin at the stream's start, though consumer "
        "shop-again of actor 'billing' has handled orders.placed before; if it is the same actor, "
        "durable='shop-again' keeps its place; "
    )


async def test_a_push_consumer_is_no_actor_s(client: Client) -> None:
    """Nor can it be made one; what an operator has set beside stays out of it."""
    await ensure_topology(client, spec_of(stream=Stream("ORDERS", subjects=["orders.>"])), apply=True)
    await api.request(client, "CONSUMER.DELETE.ORDERS.shop-billing")
    config = {"durable_name": "shop-billing", "deliver_subject": "here", "ack_policy": "none"}
    body = {"stream_name": "ORDERS", "config": config, "action": "create"}
    await api.request(client, "CONSUMER.CREATE.ORDERS.shop-billing", body)
    fields = ("ack_policy is none", "deliver_subject is here")
    problems = [problem for problem in await refused(client, spec_of()) if "can't change that" in problem]
    assert [problem.partition(": ")[2].partition(",")[0] for problem in problems] == list(fields)


async def test_a_subject_of_a_work_queue_moves_from_one_actor_to_another(client: Client) -> None:
    """It allows one consumer a subject, so the one that gives it up comes first, whatever its place."""

    class Paying(Actor):
        @handles("orders.paid")
        async def paid(self, event: dict[str, Any]) -> None: ...

    def app(revision: int, *children: ChildLike) -> AppSpec:
        queue = Stream("ORDERS", subjects=["orders.>"], retention="workqueue")
        return App("shop", streams=[queue], children=children, revision=revision).spec()

    await ensure_topology(client, app(1, Child(Two, name="billing")), apply=True)
    moved = app(2, Paying, Child(Billing, name="billing"))
    assert len(await refused(client, moved)) == 1
    await ensure_topology(client, moved, apply=True, force=True)
    assert await ensure_topology(client, moved, apply=True) == Topology()


async def test_retention_changes_where_the_server_lets_it(client: Client) -> None:
    """Between limits and interest, on request; never to or from a work queue."""
    await ensure_topology(client, spec_of(), apply=True)
    interest = spec_of(stream=Stream("ORDERS", subjects=["orders.>"], retention="interest"))
    assert len(await refused(client, interest)) == 1
    assert lines(await ensure_topology(client, interest, apply=True, force=True)) == [
        "stream ORDERS: retention is limits, the app declares interest"
    ]
    queue = spec_of(stream=Stream("ORDERS", subjects=["orders.>"], retention="workqueue"))
    assert len(await refused(client, queue, force=True)) == 1


async def test_it_sees_consumers_beyond_the_first_page_of_the_server_s_list(client: Client) -> None:
    """Which has 256."""
    await ensure_topology(client, spec_of(name="zebra"), apply=True)
    jetstream = client.jetstream()
    await asyncio.gather(
        *(jetstream.add_consumer("ORDERS", name=f"other-{i}", inactive_threshold=60) for i in range(300))
    )
    found = await ensure_topology(client, spec_of(revision=1), apply=False)
    assert [left.durable for left in found.left_over] == ["shop-zebra"]


class Crossing:
    """A client that lets another process write just before one of our requests.

    Args:
        client: the connection.
        before: the beginning of the request's subject, without `$JS.API.`.
        other: what the other process does.
        skip: how many such requests it lets pass before.

    Attributes:
        times: how often it will do it.
    """

    def __init__(
        self,
        client: Client,
        before: str,
        other: Callable[[], Awaitable[Any]],
        *,
        times: int = 1,
        skip: int = 0,
    ) -> None:
        self._client = client
        self._before = f"$JS.API.{before}"
        self._other = other
        self._skip = skip
        self.times = times

    async def request(self, subject: str, payload: bytes, timeout: float) -> Any:  # noqa: ASYNC109
        """Do as nats-py's own."""
        if subject.startswith(self._before) and self.times:
            if self._skip:
                self._skip -= 1
            else:
                self.times -= 1
                await self._other()
        return await self._client.request(subject, payload, timeout=timeout)


@pytest.mark.parametrize("before", ["CONSUMER.CREATE", "STREAM.CREATE.ORDERS"])
async def test_two_nodes_that_start_at_once_make_the_same(client: Client, before: str) -> None:
    """What the other has made meanwhile is what we wanted."""
    crossing = Crossing(client, before, lambda: ensure_topology(client, spec_of(), apply=True))
    await ensure_topology(cast("Client", crossing), spec_of(), apply=True)
    assert crossing.times == 0
    assert await ensure_topology(client, spec_of(), apply=True) == Topology()


@pytest.mark.parametrize("step", ["made", "looked at", "looked at again"])
@pytest.mark.parametrize("ours", [1, 3])
async def test_of_two_revisions_that_start_at_once_the_newer_wins(
    client: Client, ours: int, step: str
) -> None:
    """Whichever was there first: an update that was planned for something else isn't sent."""
    specs = {1: spec_of(revision=1), 3: spec_of(Two, revision=3, ack_wait_seconds=30)}
    if step != "made":
        await ensure_topology(client, spec_of(), apply=True)
    before = "CONSUMER.CREATE" if step == "made" else "CONSUMER.INFO"
    theirs = specs[4 - ours]

    async def other() -> None:
        await ensure_topology(client, theirs, apply=True)

    # Of two looks at the consumer, the second comes just before the update.
    crossing = Crossing(client, before, other, skip=int(step == "looked at again"))
    crossed = await ensure_topology(cast("Client", crossing), specs[ours], apply=True)
    assert ("kept" in {change.kind for change in crossed.changes}) == (ours == 1)
    config = await consumer_config(client)
    assert (config["ack_wait"], marks(config)["revision"]) == (30 * 10**9, "3")
    assert sorted(config["filter_subjects"]) == ["orders.paid", "orders.placed"]
    assert (await ensure_topology(client, specs[3], apply=True)).changes == ()


async def test_what_an_older_revision_writes_over_ours_is_put_right(client: Client) -> None:
    """It looked before we wrote, and wrote after."""
    await ensure_topology(client, spec_of(), apply=True)
    old = await consumer_config(client)

    async def write_late() -> None:
        if marks(await consumer_config(client))["revision"] == "2":
            await update(client, old)

    newer = spec_of(revision=2, ack_wait_seconds=30)
    # Before every look: the one that follows our update finds the old one's work.
    crossing = Crossing(client, "STREAM.INFO.ORDERS", write_late, times=2)
    await ensure_topology(cast("Client", crossing), newer, apply=True)
    assert crossing.times == 0
    config = await consumer_config(client)
    assert (config["ack_wait"], marks(config)["revision"]) == (30 * 10**9, "2")


async def test_it_gives_up_where_others_never_stop(client: Client) -> None:
    """Instead of changing the same for ever."""
    await ensure_topology(client, spec_of(), apply=True)
    waits = itertools.count(1_000_000_000)

    async def write() -> None:
        await update(client, await consumer_config(client) | {"ack_wait": next(waits)})

    crossing = Crossing(client, "CONSUMER.INFO", write, times=1000)
    with pytest.raises(TopologyError) as raised:
        await ensure_topology(cast("Client", crossing), spec_of(revision=1), apply=True)
    assert str(raised.value) == (
        "app shop: other processes go on changing its streams and consumers; "
        "start it again when they are done"
    )
