"""A server that denies acks: the cell handles no more, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cells import app_of, bench, until
from support.nats import configured_server
from understudy.actors.actor import Actor
from understudy.actors.handlers import handles
from understudy.runtime.supervision.statefile import ChildStatus
from understudy.runtime.supervision.tree import Cell

DENIED = """
jetstream { store_dir: "%s" }
authorization { users: [
  { user: cell, password: cell, permissions: { publish: { deny: ["$JS.ACK.>"] } } }
] }
no_auth_user: cell
"""
UP = ChildStatus(
    kind="cell",
    name="clerk/0",
    state="up",
    pid=1,
    start_ticks=1,
    generation=1,
    restarts=0,
    last_reason="",
    crashed=False,
    cell_file="",
)


@pytest.mark.parametrize("fast_lane", [True, False])
async def test_a_cell_whose_acks_are_denied_halts_and_isnt_ready(tmp_path: Path, fast_lane: bool) -> None:
    """Else it would be ready for ever, and handle each event again whenever that has waited for its ack."""
    handled: list[str] = []

    class Clerk(Actor, concurrency=1):
        @handles("orders.>")
        async def placed(self, text: str) -> None:
            handled.append(text)

    configuration = tmp_path / "nats-server.conf"
    configuration.write_text(DENIED % tmp_path)
    async with (
        configured_server("-c", str(configuration)) as url,
        bench(url, tmp_path, fast_lane=fast_lane) as orders,
    ):
        run = await orders.cell(app_of(Clerk))
        assert Cell(name="clerk/0", supervision=UP, status=run.status).problem == ""
        await orders.publisher.publish("one", subject="orders.placed")
        await until(lambda: run.status.state == "halted")
        assert Cell(name="clerk/0", supervision=UP, status=run.status).problem == (
            "halted: the server denies acks; have it let this user publish to $JS.ACK.>, "
            "then restart the actor"
        )
        backlog = await orders.backlog(app_of(Clerk))
        assert (handled, backlog.ack_pending) == (["one"], 1)
