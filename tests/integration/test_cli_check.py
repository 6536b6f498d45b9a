"""`understudy check` against a real server: what it shows, what it changes, what its exit status says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import nats
import pytest

from support.commands import run_command
from support.nats import NatsServer

APP = """
from understudy import Actor, App, Event, Stream, Supervisor, handles

class Placed(Event, subject="orders.placed"):
    id: int

class Clerk(Actor):
    @handles
    async def placed(self, event: Placed) -> None: ...

class Packer(Actor):
    @handles
    async def placed(self, event: Placed) -> None: ...

app = App(
    "shop",
    streams=[Stream("ORDERS", subjects=["orders.>"], max_messages=1000)],
    children=[Clerk, Supervisor("back", children=[Packer])],
)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def check(directory: Path, server: NatsServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(directory, server, "check", *arguments)


def command(
    directory: Path, server: NatsServer, name: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return run_command(
        *(name, "shop:app", *arguments),
        directory=directory,
        # No bytecode: it is kept by second and size, and a test rewrites the app within one second.
        environment={
            **os.environ,
            "NATS_URL": server.url,
            "XDG_CONFIG_HOME": str(directory),
            "UNDERSTUDY_RUN_DIRECTORY": str(directory / "runs"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


def publish(server: NatsServer, body: bytes) -> None:
    """Publish one order."""

    async def send() -> None:
        connection = await nats.connect(server.url)
        await connection.jetstream().publish("orders.placed", body)
        await connection.close()

    asyncio.run(send())


def test_it_shows_what_is_declared_and_what_is_missing(directory: Path, nats_server: NatsServer) -> None:
    """And changes nothing: a second look finds the same."""
    result = check(directory, nats_server)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.splitlines()[:5] == [
        "app shop  revision 0",
        "  supervisor root  one_for_one, 3 restarts in 5 s",
        "    cell clerk/0",
        "    supervisor back  one_for_one, 3 restarts in 5 s",
        "      cell packer/0",
    ]
    assert "  ORDERS  orders.>" in result.stdout
    assert "  shop-packer  orders.placed  on ORDERS" in result.stdout
    assert "  stream ORDERS does not exist" in result.stdout
    assert "  consumer shop-clerk does not exist" in result.stdout
    assert check(directory, nats_server).stdout == result.stdout


def test_with_apply_it_makes_what_is_missing(directory: Path, nats_server: NatsServer) -> None:
    """Then nothing differs any more."""
    assert check(directory, nats_server, "--apply").returncode == 0
    result = check(directory, nats_server)
    assert (result.returncode, result.stdout.splitlines()[-2]) == (0, "The server has all of it.")


def test_json_is_one_object(directory: Path, nats_server: NatsServer) -> None:
    """For programs: the app's specs and the changes."""
    result = check(directory, nats_server, "--json")
    report = json.loads(result.stdout)
    assert report["app"]["name"] == "shop"
    assert {"kind": "create", "resource": "stream ORDERS"}.items() <= report["changes"][0].items()
    assert report["applied"] is False


async def test_a_stream_that_differs_is_shown_and_changed_on_request(
    directory: Path, nats_server: NatsServer
) -> None:
    """Only in what the app states."""
    check(directory, nats_server, "--apply")
    (directory / "shop.py").write_text(APP.replace("max_messages=1000", "max_messages=2000"))
    result = check(directory, nats_server)
    assert result.returncode == 1
    assert "  stream ORDERS: max_msgs is 1000, the app declares 2000" in result.stdout
    assert check(directory, nats_server, "--apply").returncode == 0
    connection = await nats.connect(nats_server.url)
    assert (await connection.jetstream().stream_info("ORDERS")).config.max_msgs == 2000
    await connection.close()


async def test_a_stream_whose_subjects_overlap_anothers_is_status_2(
    directory: Path, nats_server: NatsServer
) -> None:
    """Named, and nothing is created beside it."""
    connection = await nats.connect(nats_server.url)
    await connection.jetstream().add_stream(name="OTHER", subjects=["orders.placed"])
    await connection.close()
    result = check(directory, nats_server, "--apply")
    assert result.returncode == 2
    assert "stream ORDERS can't be created: its subject orders.> overlaps stream OTHER" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_conflict_is_one_difference_among_others(directory: Path, nats_server: NatsServer) -> None:
    """Each with what to do; only --apply stops at it, before anything is changed."""
    check(directory, nats_server, "--apply")
    changed = APP.replace("max_messages=1000", 'storage="memory"').replace("(Actor)", "(Actor, start='new')")
    (directory / "shop.py").write_text(changed)
    result = check(directory, nats_server)
    assert (result.returncode, result.stderr) == (1, "")
    conflict = (
        "stream ORDERS: storage is file, the app declares memory; the server can't change that: declare what "
        "it has, or use another name"
    )
    assert f"  {conflict}\n" in result.stdout
    assert "  consumer shop-clerk: deliver_policy is all, the app declares new; " in result.stdout
    applied = check(directory, nats_server, "--apply")
    assert applied.returncode == 2
    assert conflict in applied.stderr
    assert check(directory, nats_server).stdout == result.stdout


def test_what_an_actor_that_is_gone_has_left_is_listed(directory: Path, nats_server: NatsServer) -> None:
    """It is no difference, and never deleted; as JSON too."""
    check(directory, nats_server, "--apply")
    publish(nats_server, b'{"id": 1}')
    without = APP.replace('Supervisor("back", children=[Packer])', "").replace(
        "children", "revision=1, children"
    )
    (directory / "shop.py").write_text(without)
    assert check(directory, nats_server, "--apply").returncode == 0
    result = check(directory, nats_server)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-3:-1] == [
        "left over:",
        "  consumer shop-packer of stream ORDERS, actor 'packer' of revision 0, 1 messages pending; "
        "'nats consumer rm ORDERS shop-packer' deletes it",
    ]
    report = json.loads(check(directory, nats_server, "--json").stdout)
    assert report["changes"] == []
    assert report["left_over"] == [
        {"stream": "ORDERS", "durable": "shop-packer", "actor": "packer", "revision": 0, "pending": 1}
    ]


def test_a_renamed_actor_is_a_difference_that_run_refuses(directory: Path, nats_server: NatsServer) -> None:
    """With the ways out, until --apply has made it all the same."""
    check(directory, nats_server, "--apply")
    (directory / "shop.py").write_text(
        APP.replace("Packer", "Sender").replace("children", "revision=1, children", 1)
    )
    result = check(directory, nats_server, "--json")
    assert result.returncode == 1
    (change,) = [one for one in json.loads(result.stdout)["changes"] if one["kind"] == "create"]
    assert (change["resource"], change["automatic"]) == ("consumer shop-sender", False)
    assert "durable='shop-packer' keeps its place" in change["remedy"]
    ran = command(directory, nats_server, "run", "--http-port", "0")
    assert ran.returncode == 2
    assert "consumer shop-sender does not exist, and would begin at the stream's start" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert check(directory, nats_server, "--json").stdout == result.stdout
    assert check(directory, nats_server, "--apply").returncode == 0
    assert check(directory, nats_server).returncode == 0


def test_what_a_newer_revision_has_made_stays_a_difference(directory: Path, nats_server: NatsServer) -> None:
    """Also with --apply, which leaves it."""
    (directory / "shop.py").write_text(APP.replace("children", "revision=2, children", 1))
    check(directory, nats_server, "--apply")
    (directory / "shop.py").write_text(APP.replace("(Actor)", "(Actor, ack_wait_seconds=20)"))
    result = check(directory, nats_server, "--apply")
    assert result.returncode == 1
    assert "  consumer shop-clerk: revision is 2, the app declares 0; " in result.stdout
    assert "  consumer shop-clerk: ack_wait is 15 s, the app declares 20 s\n" in result.stdout
    assert "done:" not in result.stdout
    assert check(directory, nats_server).stdout == result.stdout


def test_a_target_that_is_no_app_is_status_2(directory: Path, nats_server: NatsServer) -> None:
    """Before anything is connected."""
    (directory / "shop.py").write_text("app = 3\n")
    result = check(directory, nats_server)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("understudy: ")
    assert "Traceback" not in result.stderr
