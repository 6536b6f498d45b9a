"""NATS services: what is answered, what is refused, and who is known to be there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
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
async def broker(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """A broker and a client."""
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
    assert await find(broker) == (["other.three", "t.one", "t.two"], [])
    mute = await broker.connect()
    await mute.subscribe("t.mute.echo", cb=_ignore)
    await connection.confirm(mute)
    monkeypatch.setattr(services, "ANSWER_SECONDS", 0.3)
    found, silent = await find(broker)
    assert found == ["other.three", "t.one", "t.two"]
    assert silent == [Silent(subject="t.mute.echo", connection="test", address="127.0.0.1")]
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
    await serve(broker, "t.one", echo=echo)
    assert await find(broker) == (["t.one"], [])


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
