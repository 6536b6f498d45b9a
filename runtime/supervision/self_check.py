"""The proof, at each start, that the control plane is closed: a Thespian that changed is refused."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

from understudy.runtime.supervision.control import LOOPBACK, ControlPlane, ControlPlaneError, refusal

LISTEN_STATE = "0A"
ANSWER_TIMEOUT_SECONDS = 5.0


def check_control_plane(plane: ControlPlane) -> None:
    """Return if every process of the control plane listens on loopback only and refuses an unsigned frame.

    Args:
        plane: as it was just started.

    Raises:
        ControlPlaneError: it doesn't; nothing may run on it.
    """
    for pid in (os.getpid(), plane.admin_pid, plane.logger_pid):
        for host, port in listening_sockets(pid):
            if host != LOOPBACK:
                raise ControlPlaneError(
                    f"the control plane listens on {host}:{port}, beyond loopback; "
                    "understudy needs thespian >=4.0.1,<4.1"
                )
    answer = send_frame(plane.port, pickle.dumps(("understudy", None)))
    if answer != refusal():
        raise ControlPlaneError(
            f"the control plane answered an unsigned frame with {answer!r} instead of refusing it; "
            "understudy needs thespian >=4.0.1,<4.1"
        )


def listening_sockets(pid: int) -> list[tuple[str, int]]:
    """Return host and port of each TCP socket that a process listens on.

    Args:
        pid: a process of ours.
    """
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path(f"/proc/{pid}/net/{table}")
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN_STATE and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((_host(address, family), int(port, 16)))
    return found


def send_frame(port: int, body: bytes, *, timeout_seconds: float = ANSWER_TIMEOUT_SECONDS) -> bytes:
    """Send bytes to a control port as one frame of Thespian's, and return the answer.

    Args:
        port: on loopback.
        body: what a process of ours would verify and unpickle.
        timeout_seconds: how long an answer may take; what came by then is returned.
    """
    with socket.create_connection((LOOPBACK, port), timeout=timeout_seconds) as connection:
        connection.sendall(b"%d>" % len(body) + body)
        answer = b""
        try:
            while chunk := connection.recv(4096):
                answer += chunk
                if answer == refusal():
                    break
        except (TimeoutError, ConnectionResetError):
            pass
    return answer


def _host(address: str, family: socket.AddressFamily) -> str:
    # The kernel prints each 32-bit word of the address in its own byte order.
    words = [int(address[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(address), 8)]
    return socket.inet_ntop(family, b"".join(words))
