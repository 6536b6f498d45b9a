"""NATS services: what is answered, what is refused, and who is known to be there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats
from structlog.testing import capture_logs

from support.cells import Bench, bench, until
from support.nats import NatsServer
from understudy.actors.errors import UnderstudyError
from understudy.runtime.admin.nodes import Node
from understudy.runtime.admin.operator import Operator, semantic
from understudy.runtime.cell.paused import read_paused
from understudy.runtime.jetstream import connection, services
from understudy.runtime.jetstream.services import Absent, Instance, Question, Refused, Silent, Unanswered


@pytest.fixture
async def broker(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """A broker and a client, with time for those who answer."""
    monkeypatch.setattr(services, "ANSWER_SECONDS", 30.0)
    async with bench(nats_server.url, tmp_path) as made:
        yield made


async def serve(broker: Bench, group: str, **endpoints: services.Handler) -> Any:
    """Have a connection of its own serve, and return it."""
    client = await broker.connect()
    await services.serve(
        client,
        name="tested",
        version="1.0.0",
        description="tested here",
        metadata={"group": group},
        group=group,
        endpoints=endpoints,
    )
    await connection.confirm(client)
    return client


async def echo(question: Question) -> bytes:
    """Answer with the question."""
    return question.body


def subject_of(instance: Instance) -> str:
    """Return the endpoint that all have."""
    return f"{instance.metadata['group']}.echo"


async def find(broker: Bench) -> tuple[list[str], list[Silent]]:
    """Return the groups that answer, and who doesn't."""
    found, silent = await services.find(broker.client, "tested", subjects="t.*.echo", subject_of=subject_of)
    return sorted(instance.metadata["group"] for instance in found), silent


async def finds(broker: Bench, groups: list[str], silent: list[Silent]) -> None:
    """Wait until those and no others are found: a search has little time for who is slow to answer."""

    async def are_found() -> bool:
        return await find(broker) == (groups, silent)

    await until(are_found)


async def test_an_answer_a_refusal_and_a_failure(broker: Bench) -> None:
    """Errors come in ADR-32's headers, in one line."""

    async def refuse(_: Question) -> bytes:
        raise Refused("404", "there is\nno such thing")

    async def fail(_: Question) -> bytes:
        raise ValueError("of my own")

    await serve(broker, "t.one", echo=echo, refuse=refuse, fail=fail)
    assert await services.ask(broker.client, "t.one.echo", b"hello") == b"hello"
    with pytest.raises(Refused, match=r"^there is no such thing$") as refused:
        await services.ask(broker.client, "t.one.refuse")
    assert refused.value.code == "404"
    with capture_logs() as logs, pytest.raises(Refused, match=r"^ValueError: of my own$") as refused:
        await services.ask(broker.client, "t.one.fail")
    assert refused.value.code == "500"
    assert [entry["event"] for entry in logs] == ["a service's endpoint failed"]
    with pytest.raises(Absent):
        await services.ask(broker.client, "t.two.echo")


async def test_further_answers_come_on_the_same_subject(broker: Bench) -> None:
    """The first decides whether the question was heard at all."""
    asked: list[Question] = []

    async def note(question: Question) -> bytes:
        asked.append(question)
        return b"first"

    async def refuse(_: Question) -> bytes:
        raise Refused("409", "not now")

    await serve(broker, "t.one", note=note, refuse=refuse)
    async with services.ask_for_more(broker.client, "t.one.note") as answers:
        assert await answers.get() == b"first"
        await asked[0].answer(b"second")
        assert await answers.get() == b"second"
    with pytest.raises(Refused, match="not now"):
        async with services.ask_for_more(broker.client, "t.one.refuse"):
            pass
    with pytest.raises(Absent):
        async with services.ask_for_more(broker.client, "t.two.note"):
            pass


async def test_instances_are_found_and_silent_ones_named(
    broker: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens and doesn't answer is in the server's list of connections."""
    assert await find(broker) == ([], [])
    await serve(broker, "t.one", echo=echo)
    await serve(broker, "t.two", echo=echo)
    await serve(broker, "other.three", echo=echo)
    everyone = ["other.three", "t.one", "t.two"]
    await finds(broker, everyone, [])
    mute = await broker.connect()
    await mute.subscribe("t.mute.echo", cb=_ignore)
    await connection.confirm(mute)
    monkeypatch.setattr(services, "ANSWER_SECONDS", 0.3)
    await finds(broker, everyone, [Silent(subject="t.mute.echo", connection="test", address="127.0.0.1")])
    with pytest.raises(Unanswered):
        await services.ask(broker.client, "t.mute.echo")
    with pytest.raises(Unanswered):
        async with services.ask_for_more(broker.client, "t.mute.echo"):
            pass


async def test_who_may_not_see_the_connections_still_finds_who_answers(
    broker: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a user whose permissions leave that subject out."""
    monkeypatch.setattr(services, "_CONNECTIONS", "nobody.answers.here")
    monkeypatch.setattr(services, "ANSWER_SECONDS", 0.5)
    await serve(broker, "t.one", echo=echo)
    await finds(broker, ["t.one"], [])


async def _ignore(_: Any) -> None:
    """Say nothing."""


async def test_a_question_that_wants_no_answer_is_acted_on(broker: Bench) -> None:
    """`nats pub` is enough to pause an actor."""
    heard: list[bytes] = []

    async def note(question: Question) -> bytes:
        heard.append(question.body)
        return b""

    await serve(broker, "t.one", note=note)
    await broker.client.publish("t.one.note", b"hello")
    await until(lambda: heard == [b"hello"])
    assert await services.ask(broker.client, "t.one.note", b"again") == b""


# Discovery, as ADR-32 has it

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]+$")]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Version = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$")]


class Identified(msgspec.Struct, forbid_unknown_fields=True):
    """What every answer begins with."""

    type: str
    name: Name
    id: Text
    version: Version
    metadata: dict[str, str]


class Ping(Identified):
    """An answer to $SRV.PING."""

    type: Literal["io.nats.micro.v1.ping_response"]


class EndpointAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """An endpoint in an answer to $SRV.INFO."""

    name: Name
    subject: Text
    queue_group: Text
    metadata: dict[str, str]


class Info(Identified):
    """An answer to $SRV.INFO."""

    type: Literal["io.nats.micro.v1.info_response"]
    description: str
    endpoints: list[EndpointAnswer]


class EndpointCounts(msgspec.Struct, forbid_unknown_fields=True):
    """An endpoint in an answer to $SRV.STATS; durations in nanoseconds."""

    name: Name
    subject: Text
    queue_group: Text
    num_requests: Count
    num_errors: Count
    last_error: str
    processing_time: Count
    average_processing_time: Count
    data: dict[str, Any]


class Stats(Identified):
    """An answer to $SRV.STATS."""

    type: Literal["io.nats.micro.v1.stats_response"]
    started: Annotated[datetime, msgspec.Meta(tz=True)]
    endpoints: list[EndpointCounts]


ANSWERS: dict[str, tuple[Any, Any]] = {
    "PING": (Ping, ServicePing),
    "INFO": (Info, ServiceInfo),
    "STATS": (Stats, ServiceStats),
}


async def discover(broker: Bench, verb: str, *of: str, count: int) -> list[Any]:
    """Return the answers to a question of discovery, by all who answer, read as strictly as can be."""
    ours, theirs = ANSWERS[verb]
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def on_answer(message: Msg) -> None:
        answers.put_nowait(message.data)

    inbox = broker.client.new_inbox()
    subscription = await broker.client.subscribe(inbox, cb=on_answer)
    await broker.client.publish(".".join(("$SRV", verb, *of)), reply=inbox)
    read = []
    for _ in range(count):
        body = json.loads(await answers.get())
        # What nats-py's own client types make of it is the same again.
        assert theirs.from_dict(body).to_dict() == body
        read.append(msgspec.convert(body, ours))
    await connection.confirm(broker.client)
    assert answers.empty()
    await subscription.unsubscribe()
    return sorted(read, key=lambda one: str(one.metadata))


@pytest.mark.parametrize("verb", ANSWERS)
async def test_all_instances_answer_to_all_and_to_their_name_and_one_to_its_id(
    broker: Bench, verb: str
) -> None:
    """Each with the type that its verb has, and the same id whatever is asked."""
    await serve(broker, "t.one", echo=echo)
    await serve(broker, "t.two", echo=echo)
    everyone = await discover(broker, verb, count=2)
    assert [one.metadata for one in everyone] == [{"group": "t.one"}, {"group": "t.two"}]
    assert {(one.name, one.version) for one in everyone} == {("tested", "1.0.0")}
    ids = [one.id for one in everyone]
    assert ids == [one.id for one in await discover(broker, verb, "tested", count=2)]
    assert [ids[1]] == [one.id for one in await discover(broker, verb, "tested", ids[1], count=1)]
    assert len(set(ids)) == 2
    with pytest.raises(Absent):
        await services.ask(broker.client, f"$SRV.{verb}.other")
    with pytest.raises(Absent):
        await services.ask(broker.client, f"$SRV.{verb}.tested.nobody")


async def test_info_lists_what_may_be_asked(broker: Bench) -> None:
    """Each endpoint with the subject that reaches this instance alone."""
    await serve(broker, "t.one", echo=echo, other=echo)
    (info,) = await discover(broker, "INFO", "tested", count=1)
    assert info.description == "tested here"
    assert info.endpoints == [
        EndpointAnswer(name=name, subject=f"t.one.{name}", queue_group="q", metadata={})
        for name in ("echo", "other")
    ]


async def test_stats_count_what_was_asked_and_what_failed(broker: Bench) -> None:
    """Who wants no answer is no error."""
    before = datetime.now(UTC)

    async def refuse(_: Question) -> bytes:
        raise Refused("404", "there is no such thing")

    await serve(broker, "t.one", echo=echo, refuse=refuse)
    await services.ask(broker.client, "t.one.echo")
    await broker.client.publish("t.one.echo")
    await services.ask(broker.client, "t.one.echo")
    with pytest.raises(Refused):
        await services.ask(broker.client, "t.one.refuse")
    (stats,) = await discover(broker, "STATS", "tested", count=1)
    assert before.timestamp() - 1 <= stats.started.timestamp() <= datetime.now(UTC).timestamp()
    echoed, refused = stats.endpoints
    assert (echoed.num_requests, echoed.num_errors, echoed.last_error) == (3, 0, "")
    assert (refused.num_requests, refused.num_errors) == (1, 1)
    assert refused.last_error == "404:there is no such thing"
    for counts in stats.endpoints:
        assert counts.processing_time > 0
        assert counts.average_processing_time == counts.processing_time // counts.num_requests


# The operator's endpoints


class Launcher:
    """A launcher as its operator sees it."""

    def __init__(self) -> None:
        self.is_draining = False
        self.fails = False
        self.done: list[str] = []

    def tree(self) -> object:
        """Return a tree."""
        return {"name": "root"}

    def not_ready(self) -> dict[str, str]:
        """Return what isn't ready."""
        return {"cell mail/0": "starting"}

    def generations(self) -> dict[str, int]:
        """Return three cells."""
        return {"mail/0": 1, "mail/1": 4, "billing/0": 0}

    async def pause_changed(self) -> None:
        """Note it."""
        if self.fails:
            raise UnderstudyError("the root does not hear")
        self.done.append("pause changed")

    async def restart(self, cells: tuple[str, ...]) -> None:
        """Note it."""
        self.done.append(f"restart {' '.join(cells)}")

    def begin_drain(self) -> float:
        """Note it."""
        self.is_draining = True
        return 27.0


NODE = Node(app="shop", run_id="0123456789abcdef", host="web-1", pid=4711, revision=3, version="0.1.0")


async def operate(broker: Bench, tmp_path: Path) -> tuple[Launcher, Operator]:
    """Have an operator serve."""
    launcher = Launcher()
    operator = Operator(launcher, NODE, tmp_path)
    client = await broker.connect()
    await operator.serve(client)
    await connection.confirm(client)
    return launcher, operator


async def act(broker: Bench, **request: str) -> Any:
    """Ask the actor endpoint."""
    body = json.dumps(request).encode()
    return json.loads(await services.ask(broker.client, NODE.subject("actor"), body))


async def test_an_actor_s_name_stands_for_all_its_cells(broker: Bench, tmp_path: Path) -> None:
    """What is paused is written down before anyone is told, and adds up."""
    launcher, _ = await operate(broker, tmp_path)
    assert await act(broker, action="pause", name="mail") == {"generations": {"mail/0": 1, "mail/1": 4}}
    assert read_paused(tmp_path) == {"mail/0", "mail/1"}
    assert await act(broker, action="pause", name="billing/0") == {"generations": {"billing/0": 0}}
    assert await act(broker, action="resume", name="mail/1") == {"generations": {"mail/1": 4}}
    assert read_paused(tmp_path) == {"mail/0", "billing/0"}
    assert await act(broker, action="restart", name="mail") == {"generations": {"mail/0": 1, "mail/1": 4}}
    assert launcher.done == [*["pause changed"] * 3, "restart mail/0 mail/1"]


async def test_a_node_s_statistics_say_in_short_how_it_is(broker: Bench, tmp_path: Path) -> None:
    """Where the whole tree can be asked for; the other endpoints have nothing to add."""
    launcher, _ = await operate(broker, tmp_path)
    await act(broker, action="pause", name="mail/1")
    launcher.is_draining = True
    (stats,) = await discover(broker, "STATS", "understudy", count=1)
    assert stats.metadata == NODE.metadata()
    assert {endpoint.name: endpoint.data for endpoint in stats.endpoints} == {
        "tree": {
            "ready": False,
            "not_ready": {"cell mail/0": "starting"},
            "draining": True,
            "cells": 3,
            "paused": ["mail/1"],
        },
        "actor": {},
        "drain": {},
    }
    (info,) = await discover(broker, "INFO", "understudy", count=1)
    assert [endpoint.subject for endpoint in info.endpoints] == list(
        map(NODE.subject, ("tree", "actor", "drain"))
    )


async def test_what_an_operator_may_not_do(broker: Bench, tmp_path: Path) -> None:
    """Nothing is changed by a name or an action that isn't known, nor while draining."""
    launcher, operator = await operate(broker, tmp_path)
    with pytest.raises(Refused, match=r"^no actor or cell is called 'mial'; did you mean 'mail'") as refused:
        await act(broker, action="pause", name="mial")
    assert refused.value.code == "404"
    for wrong in ({"action": "stop", "name": "mail"}, {"action": "pause"}):
        with pytest.raises(Refused, match=r"^wanted .*: Invalid enum|^wanted .* missing required") as refused:
            await act(broker, **wrong)
        assert refused.value.code == "400"
    launcher.fails = True
    with pytest.raises(Refused, match=r"^UnderstudyError: the root does not hear$"):
        await act(broker, action="pause", name="mail")
    launcher.is_draining = True
    with pytest.raises(Refused, match=r"^this node is draining$") as refused:
        await act(broker, action="resume", name="mail")
    assert refused.value.code == "409"
    assert launcher.done == []
    await operator.say_last(0, ())


async def test_a_drain_is_answered_twice(broker: Bench, tmp_path: Path) -> None:
    """At once with how long it may take, and in the end with how it went; to all who asked."""
    launcher, operator = await operate(broker, tmp_path)
    async with (
        services.ask_for_more(broker.client, NODE.subject("drain")) as one,
        services.ask_for_more(broker.client, NODE.subject("drain")) as other,
    ):
        assert launcher.is_draining
        for answers in (one, other):
            assert json.loads(await answers.get()) == {"timeout_seconds": 27.0}
        tree = json.loads(await services.ask(broker.client, NODE.subject("tree")))
        assert tree.pop("clock") > 0
        assert tree == {
            "node": msgspec.to_builtins(NODE),
            "not_ready": {"cell mail/0": "starting"},
            "tree": {"name": "root"},
        }
        await operator.say_last(75, ["mail/0"])
        for answers in (one, other):
            assert json.loads(await answers.get()) == {"exit_status": 75, "left": ["mail/0"]}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.0", "0.1.0"),
        ("0.2.0rc1", "0.2.0-rc1"),
        ("1.2", "1.2.0"),
        ("0.1.0.dev3+g12ab", "0.1.0-dev3.g12ab"),
    ],
)
def test_versions_are_semantic_ones(version: str, expected: str) -> None:
    """Since nats-py refuses others."""
    assert semantic(version) == expected
