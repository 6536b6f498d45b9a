"""`understudy check` against a real server: what it shows, what it changes, what its exit status says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nats
import pytest

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
    return subprocess.run(
        [sys.executable, "-m", "understudy.runtime", "check", "shop:app", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        # No bytecode: it is kept by second and size, and a test rewrites the app within one second.
        env={
            **os.environ,
            "NATS_URL": server.url,
            "XDG_CONFIG_HOME": str(directory),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


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


def test_a_target_that_is_no_app_is_status_2(directory: Path, nats_server: NatsServer) -> None:
    """Before anything is connected."""
    (directory / "shop.py").write_text("app = 3\n")
    result = check(directory, nats_server)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("understudy: ")
    assert "Traceback" not in result.stderr
