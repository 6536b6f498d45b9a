"""Connecting: to a broker that wants a password, to one that refuses, to one that says nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import certifi
import pytest
import uvloop

from support.nats import NatsServer, configured_server, free_port
from understudy.actors.errors import BrokerError, BrokerRefused, BrokerUnreachable, ConfigurationError
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import connection

PASSWORD = "opensesame"


@pytest.fixture
async def guarded() -> AsyncIterator[str]:
    """A broker that lets nobody in without user and password."""
    async with configured_server("--user", "ali", "--pass", PASSWORD) as url:
        yield url


async def test_the_right_password_is_let_in(guarded: str) -> None:
    """User and password go to the server."""
    spec = ConnectionSpec(servers=(guarded,), user="ali", password=PASSWORD)
    client = await connection.connect(spec, name="test")
    assert client.is_connected
    await connection.close(client)


@pytest.mark.parametrize("password", ["wrong-one", None])
async def test_a_refusal_is_told_apart_and_shows_no_password(guarded: str, password: str | None) -> None:
    """The text says which settings to look at."""
    user = "ali" if password else None
    spec = ConnectionSpec(servers=(guarded,), user=user, password=password)
    with pytest.raises(BrokerRefused) as caught:
        await connection.connect(spec, name="test")
    assert str(caught.value) == (
        f"the broker at {guarded} refused the connection: authorization violation; "
        "check nats.user and nats.password, nats.token or nats.credentials"
    )


@pytest.mark.parametrize(("scheme", "tls_ca"), [("tls", None), ("nats", certifi.where())])
async def test_where_tls_is_asked_for_no_password_goes_out_in_clear_text(
    scheme: str, tls_ca: str | None
) -> None:
    """Whether the server offers none, or somebody in between says so."""
    received: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"auth_required":true}\r\n'
        )
        received.append(await reader.read())
        writer.close()

    plain = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"{scheme}://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
    spec = ConnectionSpec(servers=(url,), user="ali", password=PASSWORD, tls_ca=tls_ca)
    with pytest.raises(BrokerRefused) as caught:
        await connection.connect(spec, name="test")
    assert str(caught.value).startswith(
        f"the broker at {url} offers no TLS, which tls:// or nats.tls_ca asks"
    )
    plain.close()
    await plain.wait_closed()
    assert received
    assert not any(received)


async def test_a_server_that_says_nothing_is_given_up_after_the_timeout() -> None:
    """It accepts and never greets."""
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    spec = ConnectionSpec(servers=(f"nats://127.0.0.1:{port}",), connect_timeout_seconds=1)
    with pytest.raises(BrokerUnreachable) as caught:
        await asyncio.wait_for(connection.connect(spec, name="test"), 30)
    assert str(caught.value).startswith(f"no broker answers at nats://127.0.0.1:{port}: ")
    silent.close()


async def test_what_a_lost_connection_leaves_unconfirmed_is_our_error(guarded: str) -> None:
    """Callers know one kind of error for a broker that is away."""
    spec = ConnectionSpec(servers=(guarded,), user="ali", password=PASSWORD)
    client = await connection.connect(spec, name="test")
    await connection.confirm(client)
    await client.close()
    with pytest.raises(BrokerError, match="did not confirm what was written"):
        await connection.confirm(client)


async def test_a_missing_file_is_named_before_anything_is_tried() -> None:
    """Every one of them, by its setting."""
    spec = ConnectionSpec(servers=("nats://127.0.0.1:1",), credentials="/none.creds", tls_ca="/none.pem")
    with pytest.raises(ConfigurationError) as caught:
        await connection.connect(spec, name="test")
    assert caught.value.problems == (
        "nats.credentials: /none.creds: no such file",
        "nats.tls_ca: /none.pem: no such file",
    )


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_run_without_a_broker_is_status_3_and_leaves_nothing(
    guarded: str, tmp_path: Path, refuses: bool
) -> None:
    """Whether it refuses or isn't there; the password in the URL is shown in neither case."""
    host = guarded.removeprefix("nats://") if refuses else f"127.0.0.1:{free_port()}"
    run = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "understudy.runtime", "run", "support.recorder:app"),
            *("--servers", f"nats://eve:hunter2@{host}", "--http-port", "0"),
        ],
        env={
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "UNDERSTUDY_RUN_DIRECTORY": str(tmp_path),
            "PATH": "/usr/bin:/bin",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 3, run.stderr
    assert ("refused the connection" if refuses else "no broker answers at") in run.stderr.splitlines()[-1]
    assert "hunter2" not in run.stdout + run.stderr
    assert list((tmp_path / "recorder").iterdir()) == []


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_close_bears_that_the_socket_is_gone(
    nats_server: NatsServer, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What waits to be written then isn't; each event loop has an exception of its own for that."""

    async def close_late() -> bool:
        lost = asyncio.Event()
        client = await connection.connect(
            ConnectionSpec(servers=(nats_server.url,)),
            name="test",
            on_state=lambda state: lost.set() if state != "connected" else None,
        )
        nats_server.kill()
        await lost.wait()
        await client.publish("tests.late", b"")
        return await connection.close(client)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert not runner.run(close_late())
