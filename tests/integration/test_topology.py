"""Streams and consumers: made if missing, compared with what the app declares if not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client

from support.nats import NatsServer
from understudy.actors.actor import Actor
from understudy.actors.errors import TopologyError
from understudy.actors.handlers import handles
from understudy.actors.policies import Mailbox
from understudy.actors.supervision import Child
from understudy.config.connection import ConnectionSpec
from understudy.runtime.app import App
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.topology import Backlog, Change, backlog, ensure_topology
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


def spec_of(actor: type[Actor] = Billing, stream: Stream | None = None, **child: Any) -> AppSpec:
    """Return the spec of the app shop, its actor called billing."""
    return App(
        "shop",
        streams=[stream or Stream("ORDERS", subjects=["orders.>"])],
        children=[Child(actor, name="billing", **child)],
    ).spec()


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
    assert [str(change) for change in made] == ALL_MADE
    config = await consumer_config(client)
    assert config["ack_policy"] == "explicit"
    assert config["ack_wait"] == 15_000_000_000
    assert config["max_deliver"] == -1
    assert config["deliver_policy"] == "all"
    assert config.get("filter_subject") or config["filter_subjects"] == ["orders.placed"]
    before = await everything(client)
    assert await ensure_topology(client, spec_of(), apply=True) == []
    assert await ensure_topology(client, spec_of(), apply=True, force=True) == []
    assert await everything(client) == before
    assert await backlog(client, "ORDERS", "shop-billing") == Backlog(pending=0, ack_pending=0, redelivered=0)


async def test_without_apply_nothing_is_made(client: Client) -> None:
    """The differences are named all the same."""
    assert [str(change) for change in await ensure_topology(client, spec_of(), apply=False)] == ALL_MADE
    assert await everything(client) == []
    with pytest.raises(TopologyError) as raised:
        await backlog(client, "ORDERS", "shop-billing")
    assert str(raised.value) == "consumer shop-billing of stream ORDERS does not exist"


async def test_what_is_not_stated_is_not_compared(client: Client) -> None:
    """An operator's own settings stay."""
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], max_age=3600, description="ops")
    changes = await ensure_topology(client, spec_of(), apply=True)
    assert [str(change) for change in changes] == [ALL_MADE[1], ALL_MADE[2], ALL_MADE[3]]
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
    assert await refused(client, memory, apply=False, force=True) == [problem]
    assert await ensure_topology(client, memory, apply=False) == [
        Change(kind="conflict", resource="stream ORDERS", field="storage", have="file", want="memory")
    ]


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
    )
    remedy = "'understudy check TARGET --apply' changes it, or declare what the server has"
    assert await refused(client, changed) == [
        f"stream ORDERS: subjects is orders.>, the app declares orders.>, bills.>; {remedy}",
        f"stream ORDERS: max_age is 0 s, the app declares 60 s; {remedy}",
        f"stream ORDERS: max_msgs is -1, the app declares 1000; {remedy}",
        f"stream ORDERS: duplicate_window is 120 s, the app declares 30 s; {remedy}",
        f"consumer shop-billing: ack_wait is 15 s, the app declares 30 s; {remedy}",
    ]
    before = await everything(client)
    assert len(await ensure_topology(client, changed, apply=False, force=True)) == 5
    assert await everything(client) == before
    assert len(await ensure_topology(client, changed, apply=True, force=True)) == 5
    assert await ensure_topology(client, changed, apply=True) == []
    info = await client.jetstream().stream_info("ORDERS")
    assert info.config.subjects == ["orders.>", "bills.>"]
    assert (await consumer_config(client))["ack_wait"] == 30_000_000_000


@pytest.mark.parametrize("wider", [Wider, Two])
async def test_a_new_handler_widens_the_filters_by_itself(client: Client, wider: type[Actor]) -> None:
    """The consumer goes on where it was."""
    await ensure_topology(client, spec_of(), apply=True)
    changes = await ensure_topology(client, spec_of(wider), apply=True)
    want = ", ".join(wider.__understudy__.filters)
    assert [str(change) for change in changes] == [
        f"consumer shop-billing: filter_subjects is orders.placed, the app declares {want}"
    ]
    assert await ensure_topology(client, spec_of(wider), apply=True) == []


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
    assert await ensure_topology(client, spec_of(), apply=True) == []


async def test_a_consumer_without_filters_takes_everything(client: Client) -> None:
    """So any filter narrows it."""
    await ensure_topology(client, spec_of(), apply=True)
    config = await consumer_config(client)
    config = {field: value for field, value in config.items() if not field.startswith("filter")}
    await api.request(
        client,
        "CONSUMER.CREATE.ORDERS.shop-billing",
        {"stream_name": "ORDERS", "config": config, "action": "update"},
    )
    assert await refused(client, spec_of()) == [
        "consumer shop-billing: filter_subjects is empty, the app declares orders.placed; "
        "'understudy check TARGET --apply' changes it, or declare what the server has"
    ]


async def test_a_consumer_of_another_kind_can_t_be_changed(client: Client) -> None:
    """Where it starts was settled when it was made."""
    await ensure_topology(client, spec_of(), apply=True)
    assert await refused(client, spec_of(start="new"), force=True) == [
        "consumer shop-billing: deliver_policy is all, the app declares new; "
        "the server can't change that: declare what it has, or use another name"
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
    assert await refused(client, spec, apply=False, force=True) == [problem]
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.placed"], max_msgs=5)
    assert [str(change) for change in await ensure_topology(client, spec, apply=True)] == ALL_MADE[1:]
    assert await ensure_topology(client, spec, apply=True) == []


async def test_the_server_s_refusal_is_quoted(client: Client) -> None:
    """What can't be foreseen is said in the server's words."""
    spec = spec_of(stream=Stream("ORDERS", subjects=["orders.>"], replicas=3))
    with pytest.raises(TopologyError) as raised:
        await ensure_topology(client, spec, apply=True)
    assert str(raised.value).startswith("the server refused STREAM.CREATE.ORDERS: ")
    assert "replicas > 1 not supported in non-clustered mode (10074)" in str(raised.value)
