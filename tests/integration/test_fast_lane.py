"""The fast lane on a living connection: when it is taken, when it isn't, and that all goes on without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from support.cells import bench, until
from support.lane import Asked
from support.nats import NatsServer, configured_server
from support.proxy import proxy
from support.running import running
from support.running import until as until_blocking
from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.config.connection import ConnectionSpec
from understudy.runtime.app import App
from understudy.runtime.jetstream import connection, fast_lane
from understudy.runtime.jetstream.fast_lane import FastClient, FastParser
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.stream import Stream


class Placed(Event, subject="orders.placed"):
    number: int


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-check that a machine which stands still for a while doesn't fail."""
    monkeypatch.setattr(fast_lane, "SELF_CHECK_SECONDS", 30.0)


async def test_it_is_taken_where_it_works(module_nats_server: NatsServer) -> None:
    """And nothing is said of it."""
    with capture_logs() as logs:
        client = await connection.connect(ConnectionSpec(servers=(module_nats_server.url,)), name="test")
        assert type(client) is FastClient
        assert await connection.close(client)
    assert logs == []


async def test_it_is_not_even_tried_where_it_is_switched_off(
    module_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it would do: that is what the setting is for."""

    def refuse() -> FastClient:
        raise AssertionError("tried")

    monkeypatch.setattr(connection, "FastClient", refuse)
    spec = ConnectionSpec(servers=(module_nats_server.url,), fast_lane=False)
    client = await connection.connect(spec, name="test")
    assert type(client) is Client
    await connection.close(client)


def break_parser(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """Have the parser hand over frames as changed."""
    hand_over = FastParser._hand_over

    def broken(parser: FastParser, data: bytes, position: int = 0) -> int:
        receivers = parser.receivers
        parser.receivers = {sid: change(receiver) for sid, receiver in receivers.items()}
        try:
            return hand_over(parser, data, position)
        finally:
            parser.receivers = receivers

    monkeypatch.setattr(FastParser, "_hand_over", broken)


def break_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nats-py no longer keep what is to be written where it did."""

    def broken(client: FastClient, _frames: bytes) -> None:
        raise AttributeError("'FastClient' object has no attribute '_pending'")

    monkeypatch.setattr(FastClient, "write", broken)


BREAKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "swallows frames": (
        lambda monkeypatch: break_parser(monkeypatch, lambda _receiver: lambda *_frame: None),
        "TimeoutError, with ",
    ),
    "hands over too little": (
        lambda monkeypatch: break_parser(
            monkeypatch, lambda receiver: lambda *frame: receiver(*frame[:3], frame[3][:-1])
        ),
        "what came is not what was sent",
    ),
    "can't write": (
        break_write,
        "AttributeError 'FastClient' object has no attribute '_pending', with 0 of 6 frames back",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
async def test_where_its_self_check_fails_all_goes_on_without_it(
    module_nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One warning for each connection that says what is wrong; the connection that was tried is closed."""
    break_it, problem = BREAKS[kind]
    break_it(monkeypatch)
    if kind == "swallows frames":
        monkeypatch.setattr(fast_lane, "SELF_CHECK_SECONDS", 0.3)
    handled: list[int] = []

    class Billing(Actor):
        @handles
        async def placed(self, event: Placed) -> None:
            handled.append(event.number)

    name = f"O{list(BREAKS).index(kind)}"
    states: list[str] = []
    with capture_logs() as logs:
        async with proxy(module_nats_server.url) as between:
            spec = ConnectionSpec(servers=(between.url,))
            client = await connection.connect(spec, name="test", on_state=states.append)
            assert type(client) is Client
            assert (between.connections, states) == (2, [])
            assert [entry["event"] for entry in logs] == ["the fast lane is off: its self-check failed"]
            assert logs[0]["log_level"] == "warning"
            assert logs[0]["problem"].startswith(problem)
            between.cut()
            await until(lambda: states == ["disconnected", "connected"])
            await connection.close(client)
    async with bench(module_nats_server.url, tmp_path) as orders:
        app = App(name.lower(), streams=[Stream(name, subjects=["orders.>"])], children=[Billing])
        cell = await orders.cell(app)
        await asyncio.gather(*(orders.publisher.publish(Placed(number=number)) for number in range(500)))
        await orders.settled(app)
        # Else it fails, if it looks before the end: its consumer goes with the stream.
        await cell.stop()
        await orders.client.jetstream().delete_stream(name)
    assert sorted(handled) == list(range(500))


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[str]:
    """A broker that takes bodies of 1 KiB at most."""
    config = tmp_path / "narrow.conf"
    config.write_text("max_payload: 1024\n")
    async with configured_server("-c", str(config)) as url:
        yield url


async def test_it_is_taken_where_only_small_bodies_are(narrow: str) -> None:
    """The self-check sends nothing that a broker would close the connection for."""
    with capture_logs() as logs:
        client = await connection.connect(ConnectionSpec(servers=(narrow,)), name="test")
        assert type(client) is FastClient
        await connection.close(client)
    assert logs == []


@pytest.mark.parametrize("setting", ["true", "false"])
def test_a_run_is_on_the_lane_that_its_settings_say(
    module_nats_server: NatsServer, tmp_path: Path, setting: str
) -> None:
    """They reach the process that pulls."""
    lanes = tmp_path / "lanes"

    async def ask() -> None:
        async with Publisher.connect(module_nats_server.url) as publisher:
            await publisher.publish(Asked())

    with running(
        module_nats_server.url,
        tmp_path,
        "support.lane:app",
        LANE_FILE=str(lanes),
        UNDERSTUDY_NATS__FAST_LANE=setting,
    ) as run:
        asyncio.run(ask())
        until_blocking(lanes.exists)
        assert run.terminate() == 0
    assert set(lanes.read_text().splitlines()) == {setting.capitalize()}
