"""The operator's hand on two nodes that share one broker: tree, pause, resume, restart, drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from support.commands import run_command
from support.launched import Launched, publish
from support.lines import read_lines
from support.nats import NatsServer
from support.tree import kill, wait_until
from understudy.config.connection import ConnectionSpec
from understudy.runtime.admin.nodes import find_nodes
from understudy.runtime.jetstream import connection, services

CELL = "recorder/0"
# So long commands wait for nodes that are connected and silent; a busy machine's may be so for a while.
ANSWER_SECONDS = 20.0


class Nodes:
    """Two nodes of the app recorder, and a terminal to command them from."""

    def __init__(self, directory: Path, server: NatsServer, **environment: str) -> None:
        self.directory = directory
        self.server = server
        self.record = directory / "record"
        self.environment = {"RECORD_FILE": str(self.record), **environment}
        self.running: list[Launched] = []

    def start(self, name: str) -> Launched:
        """Start a node, and return when it is ready."""
        node = Launched(
            self.directory / name,
            "support.recorder:app",
            servers=self.server.url,
            environment=self.environment,
        )
        self.running.append(node)
        return node.wait_until_ready()

    def type(
        self, *arguments: str, answer_seconds: float = ANSWER_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        if arguments[0] == "drain":
            # The node may end with a question that it has not answered, and is asked again only then.
            answer_seconds = 2
        return run_command(
            *arguments,
            *("--servers", self.server.url),
            directory=self.directory,
            answer_seconds=answer_seconds,
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Run a command, and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", "understudy.runtime", *arguments, "--servers", self.server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def trees(self) -> list[dict[str, Any]]:
        """Return what the nodes say of themselves, in the order in which they were started.

        As `tree --json` has it, without the process that the command would take each time.
        """

        async def ask() -> list[dict[str, Any]]:
            spec = ConnectionSpec(servers=(self.server.url,), fast_lane=False)
            client = await connection.connect(spec, name="test")
            try:
                found, _ = await find_nodes(client, None)
                return [json.loads(await services.ask(client, node.subject("tree"))) for node in found]
            finally:
                await connection.close(client)

        nodes = asyncio.run(ask())
        pids = [node.process.pid for node in self.running]
        return sorted(nodes, key=lambda node: pids.index(node["node"]["pid"]))

    def handled(self) -> Counter[int]:
        """Return how often each number was handled."""
        return Counter(int(line.split()[1]) for line in read_lines(self.record))

    def publish(self, numbers: range) -> None:
        """Publish numbered events."""
        publish(self.server.url, *({"number": number} for number in numbers), subject="notes.noted")

    def info(self) -> dict[str, Any]:
        """Return the server's description of the consumer."""

        async def ask() -> dict[str, Any]:
            client = await nats.connect(self.server.url)
            subject = "$JS.API.CONSUMER.INFO.NOTES.recorder-recorder"
            answer: dict[str, Any] = json.loads((await client.request(subject, timeout=30)).data)
            await client.close()
            return answer

        return asyncio.run(ask())


@pytest.fixture
def nodes(tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A broker for nodes, which are ended with the test."""
    monkeypatch.setattr(services, "ANSWER_SECONDS", ANSWER_SECONDS)
    made = Nodes(tmp_path, nats_server, RECORD_SECONDS="0.005")
    yield made
    for node in made.running:
        # One that was stopped must not outlive the test.
        node.process.send_signal(signal.SIGCONT)
        node.__exit__()


def name(node: Launched) -> str:
    """Return what a node is called."""
    return f"{os.uname().nodename}:{node.process.pid}"


def test_the_tree_shows_every_node_and_fits_a_terminal(nodes: Nodes) -> None:
    """As text and as JSON; each cell with what it has done."""
    first, second = nodes.start("a"), nodes.start("b")
    nodes.publish(range(40))
    wait_until(lambda: len(nodes.handled()) == 40)
    shown = nodes.type("tree", "--app", "recorder")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    # A heading is as long as the host's name makes it.
    assert max(len(line) for line in lines if not line.startswith("recorder on ")) <= 100
    for node in (first, second):
        assert sum(line.startswith(f"recorder on {name(node)}  run ") for line in lines) == 1
    cells = [line.split() for line in lines if CELL in line]
    assert [cell[:5] for cell in cells] == [["└─", CELL, "up", "1", "0"]] * 2
    wait_until(
        lambda: sum(tree["tree"]["children"][0]["children"][0]["status"]["counters"]["handled"]
                    for tree in nodes.trees()) == 40
    )  # fmt: skip
    trees = json.loads(nodes.type("tree", "--json").stdout)["nodes"]
    assert {tree["node"]["pid"] for tree in trees} == {first.process.pid, second.process.pid}
    assert {tree["node"]["app"] for tree in trees} == {"recorder"}
    assert [tree["not_ready"] for tree in trees] == [{}, {}]


def test_the_stock_tools_of_nats_see_the_nodes_as_services(nodes: Nodes) -> None:
    """Ping, info and statistics as ADR-32 has them; every node's endpoints have subjects of their own."""
    nodes.start("a")
    nodes.start("b")

    async def ask(verb: str) -> list[dict[str, Any]]:
        client = await nats.connect(nodes.server.url)
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        await client.publish(f"$SRV.{verb}.understudy", reply=inbox)
        found = [json.loads((await answers.next_msg(timeout=30)).data) for _ in range(2)]
        await client.close()
        return found

    for verb in ("PING", "INFO", "STATS"):
        answers = asyncio.run(ask(verb))
        assert {answer["type"] for answer in answers} == {f"io.nats.micro.v1.{verb.lower()}_response"}
        assert {answer["name"] for answer in answers} == {"understudy"}
        assert len({answer["id"] for answer in answers}) == 2
        assert {answer["metadata"]["pid"] for answer in answers} == {
            str(node.process.pid) for node in nodes.running
        }
    for answer in asyncio.run(ask("INFO")):
        group = f"understudy.recorder.{answer['metadata']['run_id']}"
        subjects = {endpoint["subject"] for endpoint in answer["endpoints"]}
        assert subjects == {f"{group}.tree", f"{group}.actor", f"{group}.drain"}


def test_a_paused_actor_handles_nothing_on_any_node_and_then_all_of_it_once(nodes: Nodes) -> None:
    """What is published meanwhile waits; both nodes stay ready."""
    first, second = nodes.start("a"), nodes.start("b")
    nodes.publish(range(300))
    paused = nodes.type("actor", "pause", "recorder")
    assert paused.returncode == 0, paused.stderr
    lines = paused.stdout.splitlines()
    assert len(lines) == 2
    for node in (first, second):
        assert any(line.startswith(f"recorder on {name(node)}: {CELL} is paused") for line in lines)
    before = nodes.handled()
    nodes.publish(range(300, 400))
    # They wait in the stream, where nobody asks for them, or are held.
    assert nodes.info()["num_pending"] >= 100
    assert nodes.handled() == before
    assert [tree["not_ready"] for tree in nodes.trees()] == [{}, {}]
    assert first.get("/readyz").status_code == second.get("/readyz").status_code == 200
    shown = nodes.type("tree").stdout
    assert shown.count("paused by the operator") == 2
    resumed = nodes.type("actor", "resume", "recorder")
    assert resumed.returncode == 0
    assert resumed.stdout.count(f": {CELL} is up") == 2
    wait_until(lambda: len(nodes.handled()) == 400)
    wait_until(lambda: nodes.info()["num_ack_pending"] == 0)
    assert set(nodes.handled().values()) == {1}


def test_one_cell_on_one_node_is_paused_and_the_other_node_goes_on(nodes: Nodes) -> None:
    """`--node` narrows it down, and so does a cell's name."""
    first, second = nodes.start("a"), nodes.start("b")
    assert nodes.type("actor", "pause", CELL, "--node", name(first)).returncode == 0
    nodes.publish(range(200))
    wait_until(lambda: len(nodes.handled()) == 200)
    pids = {int(line.split()[0]) for line in read_lines(nodes.record)}
    assert pids == {second.child(CELL)["pid"]}


@pytest.mark.parametrize("killed", [CELL, "ops"])
def test_a_pause_outlives_a_killed_cell_and_a_killed_supervisor(nodes: Nodes, killed: str) -> None:
    """The replacement takes over what was held, and handles it after the pause, once."""
    node = nodes.start("a")
    nodes.publish(range(300))
    wait_until(lambda: len(nodes.handled()) > 3)
    assert nodes.type("actor", "pause", "recorder").returncode == 0
    before = nodes.handled()
    kill(node.child(killed)["pid"])
    node.wait_for_child(killed, 2)
    child = node.wait_for_child(CELL, 2)
    cell = nodes.trees()[0]["tree"]["children"][0]["children"][0]
    assert cell["status"]["pid"] == child["pid"]
    assert cell["status"]["pause"] == "paused"
    assert cell["status"]["reason"] == "paused by the operator"
    assert node.get("/readyz").status_code == 200
    assert nodes.handled() == before
    assert nodes.type("actor", "resume", CELL).returncode == 0
    wait_until(lambda: len(nodes.handled()) == 300)
    assert set(nodes.handled().values()) == {1}


def test_a_restart_is_graceful_and_no_failure(nodes: Nodes) -> None:
    """The cell drains and goes on in its next generation; nothing counts it as a restart."""
    node = nodes.start("a")
    ops, root = node.child("ops"), nodes.trees()[0]["tree"]["status"]
    nodes.publish(range(300))
    wait_until(lambda: len(nodes.handled()) > 3)
    # One more than its supervisor would bear as failures.
    for generation in range(2, 7):
        restarted = nodes.type("actor", "restart", "recorder")
        assert restarted.returncode == 0, restarted.stderr
        assert restarted.stdout == f"recorder on {name(node)}: {CELL} is up, in generation {generation}\n"
    child = node.child(CELL)
    assert (child["generation"], child["restarts"], child["crashed"]) == (6, 0, False)
    assert child["last_reason"] == "restarted by the operator"
    assert (node.child("ops")["pid"], node.child("ops")["generation"]) == (ops["pid"], 1)
    assert nodes.trees()[0]["tree"]["status"]["pid"] == root["pid"]
    wait_until(lambda: len(nodes.handled()) == 300)
    assert set(nodes.handled().values()) == {1}
    assert node.log("escalated") == []


def test_a_restart_leaves_siblings_alone_whatever_the_strategy(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """Here one_for_all, which after a failure would restart both."""
    nodes = Nodes(tmp_path, nats_server)
    with Launched(tmp_path / "a", "support.apps:together", servers=nats_server.url) as node:
        node.wait_until_ready()
        sibling = node.child("bystander/0")["pid"]
        assert nodes.type("actor", "restart", "recorder").returncode == 0
        assert node.child("recorder/0")["generation"] == 2
        assert node.child("bystander/0")["pid"] == sibling


def test_a_paused_cell_that_is_restarted_is_paused_again(nodes: Nodes) -> None:
    """It gives back what it held, and has it again after the pause."""
    node = nodes.start("a")
    nodes.publish(range(200))
    wait_until(lambda: len(nodes.handled()) > 3)
    assert nodes.type("actor", "pause", "recorder").returncode == 0
    before = nodes.handled()
    restarted = nodes.type("actor", "restart", CELL)
    assert restarted.stdout == f"recorder on {name(node)}: {CELL} is paused, in generation 2\n"
    assert nodes.type("actor", "pause", "recorder").stdout == f"recorder on {name(node)}: {CELL} is paused\n"
    assert nodes.handled() == before
    assert nodes.type("actor", "resume", "recorder").returncode == 0
    wait_until(lambda: len(nodes.handled()) == 200)
    assert set(nodes.handled().values()) == {1}


def statuses(nodes: Nodes) -> list[dict[str, Any]]:
    """Return what each node's cell says of itself."""
    return [tree["tree"]["children"][0]["status"] for tree in nodes.trees()]


def test_a_paused_sole_owner_that_is_killed_and_then_restarted_keeps_the_order(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """Its replacement keeps pin and pause; a restart then hands over to the other node, paused as well."""
    nodes = Nodes(tmp_path, nats_server, OWNER_SECONDS="0.002")
    with (
        Launched(
            tmp_path / "a", "support.owner_app:app", servers=nats_server.url, environment=nodes.environment
        ) as first,
        Launched(
            tmp_path / "b", "support.owner_app:app", servers=nats_server.url, environment=nodes.environment
        ) as second,
    ):
        nodes.running += [first.wait_until_ready(), second.wait_until_ready()]
        customers = [{"number": number, "customer": f"c{number % 3}"} for number in range(300)]
        publish(nats_server.url, *customers, subject="notes.noted")
        wait_until(lambda: len(read_lines(nodes.record)) > 3)
        # A cell that is paused learns no more that another is active.
        wait_until(lambda: "standby" in [status["state"] for status in statuses(nodes)])
        assert nodes.type("actor", "pause", "recorder").returncode == 0
        handled = read_lines(nodes.record)
        (pid,) = {int(line.split()[2]) for line in handled}
        owner = next(node for node in nodes.running if node.child(CELL)["pid"] == pid)
        kill(pid)
        owner.wait_for_child(CELL, 2)
        assert nodes.type("actor", "pause", CELL).returncode == 0
        reasons = [status["reason"] for status in statuses(nodes)]
        assert sorted(reasons) == ["paused by the operator", "paused by the operator, another cell is active"]
        assert nodes.type("actor", "restart", CELL, "--node", name(owner)).returncode == 0
        assert read_lines(nodes.record) == handled
        assert nodes.type("actor", "resume", "recorder").returncode == 0
        wait_until(lambda: len(read_lines(nodes.record)) >= 300)
        numbers = [int(line.split()[3]) for line in read_lines(nodes.record)]
        assert sorted(numbers) == list(range(300))
        assert all(
            mine == sorted(mine) for mine in ([one for one in numbers if one % 3 == key] for key in range(3))
        )


def test_an_unknown_name_is_answered_with_the_nearest(nodes: Nodes) -> None:
    """Status 1, for a node's name too, and nothing is done."""
    nodes.start("a")
    typed = nodes.type("actor", "pause", "recoder")
    assert typed.returncode == 1
    assert typed.stderr == "understudy: no actor or cell is called 'recoder'; did you mean 'recorder'?\n"
    for command in (["drain"], ["actor", "pause", "recorder"]):
        nowhere = nodes.type(*command, "--node", "b")
        assert nowhere.returncode == 1
        assert nowhere.stderr.startswith("understudy: no node is called 'b'; there are:\n")
    nodes.publish(range(1))
    wait_until(lambda: len(nodes.handled()) == 1)


def test_a_drained_node_ends_and_the_other_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    """Which is meant has to be said where there are several; the last one needs no name."""
    go = tmp_path / "go"
    nodes.environment |= {"RECORD_STUCK": "0", "RECORD_GO": str(go)}
    first, second = nodes.start("a"), nodes.start("b")
    unclear = nodes.type("drain")
    assert unclear.returncode == 2
    assert unclear.stderr.startswith("understudy: 2 nodes run; choose by --node, or take --all:\n")
    assert all(name(node) in unclear.stderr for node in (first, second))
    nodes.publish(range(400))
    # More than one of them holds.
    wait_until(lambda: nodes.info()["num_ack_pending"] > 64)
    with nodes.begin("drain", "--node", name(first)) as typed:
        assert typed.stderr is not None
        assert [typed.stderr.readline() for _ in range(2)] == [
            f"recorder on {name(first)}: draining, for up to 27 s "
            "(its shutdown_timeout_seconds, and a little to kill what is left)\n",
            f"recorder on {name(first)}: 0 of 1 cells have stopped\n",
        ]
        go.touch()
        out, err = typed.communicate(timeout=60)
    assert (typed.returncode, out) == (0, f"recorder on {name(first)}: drained\n"), err
    assert first.wait() == 0
    assert [tree["node"]["pid"] for tree in nodes.trees()] == [second.process.pid]
    wait_until(lambda: len(nodes.handled()) == 400)
    assert set(nodes.handled().values()) == {1}
    assert nodes.type("drain").returncode == 0
    assert second.wait() == 0
    nobody = nodes.type("drain")
    assert nobody.returncode == 3
    assert nobody.stderr == f"understudy: no node of any app answers at {nodes.server.url}\n"
    assert nodes.type("tree").returncode == 3
    assert nodes.type("actor", "pause", "recorder").returncode == 3


def test_a_signal_to_a_node_that_the_operator_drains_kills_nothing(nodes: Nodes, tmp_path: Path) -> None:
    """It is the first one, as a service manager sends it that knows of no drain."""
    go = tmp_path / "go"
    nodes.environment |= {"RECORD_STUCK": "10", "RECORD_GO": str(go)}
    node = nodes.start("a")
    nodes.publish(range(40))
    wait_until(lambda: len(nodes.handled()) == 10)
    with nodes.begin("drain") as typed:
        wait_until(lambda: node.log("draining"))
        assert node.process.poll() is None
        node.process.terminate()
        go.touch()
        typed.communicate(timeout=60)
    assert typed.returncode == 0
    assert node.wait() == 0
    assert nodes.info()["num_ack_pending"] == 0


def test_all_nodes_are_drained_at_once(nodes: Nodes) -> None:
    """Each process ends with 0."""
    running = [nodes.start("a"), nodes.start("b")]
    drained = nodes.type("drain", "--all", "--app", "recorder", "--json")
    assert drained.returncode == 0
    told = {node.pop("node"): node for node in json.loads(drained.stdout)["nodes"]}
    assert len({node.pop("run_id") for node in told.values()}) == 2
    assert told == {f"recorder on {name(node)}": {"drained": True, "problem": ""} for node in running}
    assert [node.wait() for node in running] == [0, 0]


def test_a_drain_that_leaves_something_says_what(tmp_path: Path, nats_server: NatsServer) -> None:
    """Its process ends with 75, and so does the command."""
    nodes = Nodes(tmp_path, nats_server, OWNER_STUCK="0", UNDERSTUDY_SHUTDOWN_TIMEOUT_SECONDS="2")
    # An app without a second supervisor: that has half a second to say so, or is named as well.
    with Launched(
        tmp_path / "a", "support.owner_app:app", servers=nats_server.url, environment=nodes.environment
    ) as node:
        nodes.running.append(node.wait_until_ready())
        nodes.publish(range(2))
        wait_until(lambda: nodes.trees()[0]["tree"]["children"][0]["status"]["held"] == 2)
        drained = nodes.type("drain")
        assert drained.stdout == f"owners on {name(node)}: not everything was drained: {CELL}\n"
        assert drained.returncode == 75
        assert node.wait() == 75


def test_a_node_that_is_killed_while_it_drains_is_not_called_drained(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """It has gone without a last word."""
    nodes = Nodes(tmp_path, nats_server, RECORD_SECONDS="20")
    with nodes.start("a") as node:
        nodes.publish(range(1))
        wait_until(lambda: nodes.info()["num_ack_pending"] == 1)
        with nodes.begin("drain") as typed:
            wait_until(lambda: node.log("draining"))
            node.process.kill()
            out, _ = typed.communicate(timeout=60)
        assert (
            out == f"recorder on {name(node)}: ended without saying how: killed, or the broker went first\n"
        )
        assert typed.returncode == 75


def test_a_stopped_node_is_named_as_not_answering(nodes: Nodes) -> None:
    """The broker still has its connection; what it can't answer for isn't called done."""
    first, second = nodes.start("a"), nodes.start("b")
    second.process.send_signal(signal.SIGSTOP)
    silent = f"recorder on {name(second)} (127.0.0.1)"
    shown = nodes.type("tree", answer_seconds=2)
    assert shown.returncode == 1
    assert f"recorder on {name(first)}  run " in shown.stdout
    assert shown.stdout.splitlines()[-2].startswith(f"{silent}  run ")
    assert shown.stdout.splitlines()[-1] == "  connected, but doesn't answer"
    paused = nodes.type("actor", "pause", "recorder", answer_seconds=2)
    assert paused.returncode == 75
    assert paused.stdout.splitlines() == [
        f"recorder on {name(first)}: {CELL} is paused",
        f"{silent}: connected, but doesn't answer",
    ]
    resumed = nodes.type("actor", "resume", "recorder", "--json", answer_seconds=2)
    assert resumed.returncode == 75
    answering, unheard = json.loads(resumed.stdout)["nodes"]
    assert answering.pop("run_id") != unheard.pop("run_id")
    assert answering == {
        "node": f"recorder on {name(first)}",
        "done": True,
        "cells": [{"cell": CELL, "done": True, "text": "is up"}],
    }
    assert unheard == {
        "node": silent,
        "done": False,
        "cells": [{"cell": "", "done": False, "text": "connected, but doesn't answer"}],
    }
    second.process.send_signal(signal.SIGCONT)
    wait_until(lambda: nodes.type("tree").returncode == 0)


def test_nodes_are_there_again_after_the_broker_was_away(nodes: Nodes) -> None:
    """With their endpoints."""
    nodes.start("a")
    nodes.start("b")
    nodes.server.restart()
    wait_until(lambda: len(nodes.trees()) == 2)
    wait_until(lambda: [tree["not_ready"] for tree in nodes.trees()] == [{}, {}])
    assert nodes.type("actor", "pause", "recorder").returncode == 0
    assert nodes.type("drain", "--all").returncode == 0
