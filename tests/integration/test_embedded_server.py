"""The embedded nats-server: started, joined, stopped, gone with its launcher, clear about what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nats
import psutil
import pytest

from support.nats import NatsServer
from support.processes import GONE_SECONDS
from understudy.actors.errors import ConfigurationError
from understudy.runtime.broker.binary import REMEDIES, find_nats_server
from understudy.runtime.broker.embedded import START_TIMEOUT_SECONDS, EmbeddedServer, running_url

LAUNCH = """
import sys, signal
from pathlib import Path
from understudy.runtime.broker.embedded import EmbeddedServer
server = EmbeddedServer.start(Path(sys.argv[1]))
print(server.pid, server.url, flush=True)
signal.pause()
"""


async def test_what_a_stream_holds_survives_a_restart_on_the_same_port(nats_server: NatsServer) -> None:
    """The store is on file and stays where it is."""
    url = nats_server.url
    connection = await nats.connect(url)
    jetstream = connection.jetstream()
    await jetstream.add_stream(name="KEPT", subjects=["kept"])
    await jetstream.publish("kept", b"one")
    await connection.close()

    nats_server.restart()

    assert nats_server.url == url
    connection = await nats.connect(url)
    info = await connection.jetstream().stream_info("KEPT")
    assert info.state.messages == 1
    await connection.close()


def test_a_second_start_in_one_directory_joins_the_first(tmp_path: Path) -> None:
    """The second has no process of its own, and its stop leaves the server running."""
    first = EmbeddedServer.start(tmp_path)
    try:
        second = EmbeddedServer.start(tmp_path)
        assert (second.joined, second.pid, second.url) == (True, None, first.url)
        second.stop()
        assert first.is_alive()
        assert second.is_alive()
    finally:
        first.stop()
    assert not first.is_alive()
    assert not second.is_alive()
    assert running_url(tmp_path) is None


def test_a_directory_in_use_is_refused_to_whoever_must_not_join(tmp_path: Path) -> None:
    """`demo` and tests want a store that nobody else writes to."""
    server = EmbeddedServer.start(tmp_path)
    try:
        with pytest.raises(ConfigurationError, match="runs there already") as caught:
            EmbeddedServer.start(tmp_path, join=False)
        assert server.url in str(caught.value)
    finally:
        server.stop()


def test_a_url_left_by_a_killed_server_is_not_joined(tmp_path: Path) -> None:
    """The file alone proves nothing: a server of another name may have the port by now."""
    gone = EmbeddedServer.start(tmp_path / "gone")
    gone.kill()
    other = EmbeddedServer.start(tmp_path / "other")
    (tmp_path / "gone" / "nats.url").write_text(other.url)
    try:
        again = EmbeddedServer.start(tmp_path / "gone")
        assert not again.joined
        assert again.url != other.url
        again.stop()
    finally:
        other.stop()


def test_it_listens_on_loopback_only(nats_server: NatsServer) -> None:
    """Nothing of ours is reachable from another host."""
    addresses = {
        c.laddr.ip for c in psutil.Process(nats_server.pid).net_connections() if c.status == "LISTEN"
    }
    assert addresses == {"127.0.0.1"}


def test_it_dies_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """No server is left behind, though it has a session of its own."""
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, tmp_path], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline().split()[0])
    server = psutil.Process(pid)
    assert os.getsid(pid) == pid
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(30)
    launcher.stdout.close()
    assert psutil.wait_procs([server], timeout=GONE_SECONDS)[1] == []


def test_two_launchers_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    """One wins the directory's lock, the other joins."""
    launchers = [
        subprocess.Popen([sys.executable, "-c", LAUNCH, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        lines = [launcher.stdout.readline().split() for launcher in launchers if launcher.stdout]
        assert len({url for _, url in lines}) == 1
        assert sorted(pid == "None" for pid, _ in lines) == [False, True]
    finally:
        for launcher in launchers:
            launcher.kill()
            launcher.communicate()


def test_only_the_main_thread_may_start_one(tmp_path: Path) -> None:
    """The server dies with the thread that started it, so another thread's end would take it along."""
    caught: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedServer.start(tmp_path)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_a_directory_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    """The error comes before any process is started."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedServer.start(tmp_path / "file" / "below")
    assert str(caught.value) == (
        f"{tmp_path}/file/below: the embedded nats-server can't write there (Not a directory); "
        "name another with `directory` (UNDERSTUDY_DIRECTORY)"
    )


def test_a_url_file_that_was_overwritten_names_no_server(tmp_path: Path) -> None:
    """Whatever stands in it, no command may end in a traceback for it."""
    (tmp_path / "nats.url").write_bytes(b"\xff\xfe\x00")
    assert running_url(tmp_path) is None


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    """Its name is quoted as the server's configuration has it."""
    directory = tmp_path / 'données "été" #1; {x}'
    server = EmbeddedServer.start(directory)
    try:
        assert server.is_alive()
        assert (directory / "jetstream").is_dir()
    finally:
        server.stop()


def test_a_port_in_use_is_reported_with_the_servers_log(tmp_path: Path, nats_server: NatsServer) -> None:
    """What the server said goes into the message; nothing is left running."""
    with pytest.raises(ConfigurationError, match="address already in use"):
        EmbeddedServer.start(tmp_path, port=int(nats_server.url.rpartition(":")[2]))
    assert running_url(tmp_path) is None


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "no such file; "),
        ("#!/bin/sh\necho nats-server: v2.9.1\n", "is nats-server 2.9.1, but 2.12 or later is needed; "),
        ("#!/bin/sh\necho hello\n", "doesn't answer `--version` as nats-server does; "),
        ("no program", "can't be run: "),
    ],
)
def test_a_wrong_binary_is_named_with_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, says: str
) -> None:
    """What the variable names counts, and is never silently replaced by another."""
    path = tmp_path / "nats-server"
    if script is not None:
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setenv("UNDERSTUDY_NATS_SERVER", str(path))
    with pytest.raises(ConfigurationError) as caught:
        find_nats_server()
    assert f"UNDERSTUDY_NATS_SERVER={path}" in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).endswith(REMEDIES)


def test_a_server_that_ends_at_once_is_reported_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken store or binary doesn't make the start wait for its timeout."""
    path = tmp_path / "nats-server"
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo nats-server: v2.12.0 && exit\necho corrupt\nexit 3\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("UNDERSTUDY_NATS_SERVER", str(path))
    before = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedServer.start(tmp_path / "store")
    assert time.monotonic() - before < START_TIMEOUT_SECONDS
    assert str(caught.value) == (
        "the embedded nats-server ended at its start with status 3; "
        f"{tmp_path}/store/nats-server.log ends with:\ncorrupt"
    )


def test_it_syncs_as_often_as_it_is_told(tmp_path: Path) -> None:
    """`always` is in the configuration that the server accepted."""
    server = EmbeddedServer.start(tmp_path, sync_interval="always")
    try:
        assert "sync_interval: always" in (tmp_path / "nats-server.conf").read_text()
        assert server.is_alive()
    finally:
        server.stop()
