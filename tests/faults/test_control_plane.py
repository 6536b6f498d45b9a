"""Nobody but the processes of a run can speak to its control plane."""

from __future__ import annotations

import contextlib
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launched import Launched, publish
from support.nats import NatsServer, accepts, free_port
from support.tree import TESTS, kill, wait_until
from understudy.runtime.supervision.control import DIGEST_BYTES
from understudy.runtime.supervision.self_check import send_frame


class Attack:
    """What makes a file wherever it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.fixture(scope="module")
def run(module_nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A running system."""
    directory = tmp_path_factory.mktemp("run")
    with Launched(directory, "support.apps:app", servers=module_nats_server.url) as launched:
        yield launched.wait_until_ready()


def test_every_socket_of_ours_is_on_loopback(run: Launched) -> None:
    """Launcher, admin, logger, supervisors and cells: each listens, and on 127.0.0.1 alone."""
    sockets = run.sockets()
    assert len(sockets) == 7
    assert all(sockets.values())
    assert {host for listening in sockets.values() for host, _ in listening} == {"127.0.0.1"}


def test_a_pickle_without_the_right_signature_executes_nowhere(run: Launched, tmp_path: Path) -> None:
    """Sent to every port of every process, in Thespian's own framing; each that listens to it refuses it."""
    file = tmp_path / "executed"
    attack = pickle.dumps(Attack(file))
    for pid, listening in run.sockets().items():
        for _, port in listening:
            # Nor under a signature of the right length that is wrong.
            for frame in (attack, bytes(DIGEST_BYTES) + attack):
                if pid == run.process.pid:
                    # Its HTTP server waits for more, and its control port is read only while it asks.
                    send_briefly(port, frame)
                else:
                    assert is_refused(port, frame)
    assert not file.exists()
    assert run.get("/readyz").status_code == 200


def test_the_same_pickle_executes_on_a_transport_that_does_not_sign(tmp_path: Path) -> None:
    """So the attack above would have worked; and the check at start refuses to run on such a Thespian."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.unsigned"],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    file = tmp_path / "executed"
    send_briefly(int(process.stdout.readline()), pickle.dumps(Attack(file)))
    wait_until(file.exists)
    verdict, _ = process.communicate("\n")
    assert verdict.startswith("the control plane answered an unsigned frame with ")


def test_no_cell_inherits_a_descriptor_of_the_launcher(run: Launched) -> None:
    """Neither its sockets nor the lock of its run directory: nothing outlives the launcher in a cell."""
    held = {link for link in _links(run.process.pid) if link.startswith("socket:")}
    lock = {link for link in _links(run.process.pid) if link.endswith("launcher.lock")}
    assert held
    assert lock
    for process in run.processes():
        assert not (held | lock) & set(_links(process.pid)), process


def test_the_signing_key_is_in_no_environment(run: Launched) -> None:
    """A handler's subprocesses inherit the environment: it has nothing that the launcher wasn't given."""
    given = _environment(run.process.pid)
    for process in run.processes():
        assert _environment(process.pid) == given


def test_the_launchers_port_is_free_again_after_its_sigkill(nats_server: NatsServer, tmp_path: Path) -> None:
    """Nobody below it holds the socket, so that a service manager can start it again at once."""
    port = free_port()
    for _ in range(2):
        run = Launched(tmp_path, "support.apps:app", servers=nats_server.url, port=port)
        with run:
            run.wait_until_ready()
            assert accepts(port)
            kill(run.process.pid)
        run.log_path.unlink()


def test_a_killed_cells_port_serves_no_one_else(run: Launched, module_nats_server: NatsServer) -> None:
    """Control messages go on after a restart: the replacement is heard and handles."""
    kill(run.child("recorder/0")["pid"])
    run.wait_for_child("recorder/0", generation=2)
    publish(module_nats_server.url, {"value": 1})
    wait_until(run.handled)


def is_refused(port: int, body: bytes) -> bool:
    """Send a frame, and return whether the answer is a refusal."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"%d>" % len(body) + body)
        answer = b""
        # As Thespian says it; before it stands a signature that only a process of that run can make.
        while b"ACK+DATAERR" not in answer and (chunk := connection.recv(4096)):
            answer += chunk
    return b"ACK+DATAERR" in answer


def send_briefly(port: int, body: bytes) -> None:
    """Send a frame; an HTTP port or a closing one may end the connection."""
    with contextlib.suppress(OSError):
        send_frame(port, body, timeout_seconds=0.3)


def _links(pid: int) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return found


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()
