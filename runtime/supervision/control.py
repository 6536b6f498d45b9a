"""The control plane: Thespian's TCP transport, on loopback only and with every frame signed.

Stock Thespian listens on every interface and unpickles whatever arrives. Here each process of a run
listens on 127.0.0.1 and reads a frame only after its HMAC-SHA256 under a key made for this run was
verified. Three module-level hooks of Thespian are replaced for that, and `self_check` proves at each
start that they still take effect.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import pickle
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from thespian.actors import ActorAddress, ActorSystem, ActorSystemException
from thespian.system import multiprocCommon
from thespian.system.messages.admin import SystemShutdown, SystemShutdownCompleted
from thespian.system.multiprocCommon import multiprocessCommon
from thespian.system.transport import (
    ExternalInterfaceTransportInit,
    ReceiveEnvelope,
    TCPTransport,
    TransmitIntent,
    TransmitOnly,
)
from thespian.system.transport.IPBase import TCPv4ActorAddress
from thespian.system.transport.streamBuffer import ackDataErrPacket, ackPacket, toSendBuffer
from thespian.system.utilis import thesplog_control

from understudy.actors.errors import UnderstudyError
from understudy.runtime.supervision.process_start import become_subreaper, prepare_process
from understudy.runtime.supervision.processes import children_of

LOOPBACK: Final = "127.0.0.1"
KEY_BYTES: Final = 32
DIGEST: Final = "sha256"
DIGEST_BYTES: Final = 32
PORT_ATTEMPTS: Final = 3
TELL_TIMEOUT_SECONDS: Final = 10.0

# In a module global and not in the environment, which every subprocess of a user's handler inherits.
_key: bytes | None = None
# Called first thing in each process, Thespian's own too, which otherwise have no logging of ours.
_begin_process: Callable[[], None] | None = None


class ControlPlaneError(UnderstudyError):
    """The control plane can't be started or spoken to, or isn't as closed as it must be."""


class SignedPickle:
    """What stands in for the pickle module in Thespian's transport."""

    @staticmethod
    def dumps(value: object) -> bytes:
        """Return the value pickled, behind its signature."""
        body = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return _sign(body) + body

    @staticmethod
    def loads(frame: bytes) -> Any:
        """Return the value, having verified its signature before a byte of it is unpickled.

        Raises:
            ValueError: the frame isn't signed with this run's key.
        """
        signature, body = frame[:DIGEST_BYTES], frame[DIGEST_BYTES:]
        if not hmac.compare_digest(signature, _sign(body)):
            raise ValueError("a control frame is not signed with this run's key")
        return pickle.loads(body)  # noqa: S301 - signed by a process of this run


def _sign(body: bytes) -> bytes:
    if _key is None:
        raise ControlPlaneError("the control plane was not started in this process or above it")
    return hmac.digest(_key, body, DIGEST)


def refusal() -> bytes:
    """Return what a process of ours answers to a frame that it refuses."""
    return bytes(TCPTransport.ackDataErrMsg)


def _loopback(port: int = 0) -> ActorAddress:
    return ActorAddress(TCPv4ActorAddress(LOOPBACK, port, external=False))


class Endpoint(TCPTransport.TCPEndpoint):  # type: ignore[misc]
    """What a parent prepares for a process that it is about to fork, with its own pid noted."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parent_pid = os.getpid()


class LoopbackTransport(TCPTransport.TCPTransport):  # type: ignore[misc]
    """Thespian's TCP transport, bound to 127.0.0.1.

    Constructed once in each process: in the launcher, and first thing in every process that is forked
    for the actor system, which is where that process binds itself to its parent.
    """

    def __init__(self, purpose: Any, *args: Any) -> None:
        if isinstance(purpose, ExternalInterfaceTransportInit):
            purpose = _launcher_endpoint(self.getAdminAddr(args[0]))
        elif isinstance(purpose, TCPTransport.ExternalTransportCopy):
            purpose = _launcher_endpoint(args[0])
        else:
            prepare_process(purpose.parent_pid)
            if _begin_process is not None:
                _begin_process()
        super().__init__(purpose)

    @staticmethod
    def getAdminAddr(capabilities: dict[str, Any]) -> ActorAddress:  # noqa: N802 - Thespian's name
        """Return where the admin listens."""
        return _loopback(capabilities["Admin Port"])

    @staticmethod
    def probeAdmin(address: ActorAddress) -> bool:  # noqa: ARG004, N802 - Thespian's signature
        """Say that no admin runs: Thespian would join a foreign one where it finds the port taken."""
        return False

    def external_transport_clone(self) -> LoopbackTransport:
        """Return a second endpoint of the launcher."""
        return LoopbackTransport(TCPTransport.ExternalTransportCopy(), self._adminAddr)

    def prepEndpoint(  # noqa: N802 - Thespian's name
        self, assigned: ActorAddress, capabilities: dict[str, Any]
    ) -> Endpoint:
        """Prepare a child's endpoint, in the parent just before the fork."""
        number, address, *rest = super().prepEndpoint(assigned, capabilities).args
        return Endpoint(number, address or _loopback(), *rest)

    def abort_run(self, drain: bool = False) -> None:
        """End the process' loop; with `drain` not before the others have what was sent to them."""
        with self._wakeup_lock:
            # The next to fall due would end that wait, and with it the process: its last word would be lost.
            self._pendingWakeups.clear()
        super().abort_run(drain)


def _launcher_endpoint(admin: ActorAddress) -> Any:
    return TCPTransport.TCPEndpoint(None, _loopback(), None, admin, False, False)


class _System(multiprocessCommon):  # type: ignore[misc]
    transportType = LoopbackTransport  # noqa: N815 - Thespian's name

    def __init__(self, port: int) -> None:
        self.capabilities = {
            "Admin Port": port,
            "Thespian ActorSystem Name": "multiprocTCPBase",
            "Thespian ActorSystem Version": 2,
            "Thespian Watch Supported": True,
        }
        # Only warnings of Thespian's own go through its logger process; ours are written by each process.
        super().__init__(self, {"version": 1, "root": {"level": "WARNING"}})


def _only_child_exits(number: int, handler: Any) -> None:
    # Thespian would put Python handlers on every signal: a real SIGSEGV then spins for ever.
    if number == signal.SIGCHLD:
        signal.signal(number, handler)


class ControlPlane:
    """The launcher's end of the control plane.

    Used only in the launcher's main thread: what is forked here dies with the thread that forked it.
    """

    def __init__(self, base: _System, port: int, admin_pid: int, logger_pid: int) -> None:
        self.port = port
        self.admin_pid = admin_pid
        self.logger_pid = logger_pid
        self._base = base
        self._system = ActorSystem(base, transientUnique=True)

    @classmethod
    def start(cls, begin_process: Callable[[], None] | None = None) -> ControlPlane:
        """Fork Thespian's admin and logger, on a fresh port and under a fresh key.

        Call it before the launcher has a thread, an event loop or a connection: all that would be forked.

        Args:
            begin_process: called in each forked process before it logs.

        Raises:
            ControlPlaneError: Thespian doesn't start.
        """
        _harden(begin_process)
        become_subreaper()
        before = children_of(os.getpid())
        problem: Exception | None = None
        for _ in range(PORT_ATTEMPTS):
            port = _free_port()
            try:
                base = _System(port)
            except (ActorSystemException, OSError) as error:
                # Most likely someone took the port between its choice and the admin's bind.
                problem = error
                continue
            (admin_pid,) = children_of(os.getpid()) - before
            (logger_pid,) = children_of(admin_pid)
            return cls(base, port, admin_pid, logger_pid)
        raise ControlPlaneError(f"the actor system does not start: {problem}") from problem

    def create(self, actor_class: str) -> tuple[ActorAddress, int]:
        """Have the admin fork an actor, and return its address and pid.

        Args:
            actor_class: `module.Class`.

        Raises:
            ControlPlaneError: it doesn't start.
        """
        before = children_of(self.admin_pid)
        try:
            address = self._system.createActor(actor_class)
        except (ActorSystemException, ImportError) as error:
            raise ControlPlaneError(f"{actor_class} does not start: {error}") from error
        created = children_of(self.admin_pid) - before
        if len(created) != 1:
            raise ControlPlaneError(f"{actor_class} ended as soon as it was started")
        return address, created.pop()

    async def tell(self, address: ActorAddress, message: object) -> None:
        """Send a message and return when the receiver has it.

        The event loop goes on meanwhile, so that a second signal is heard while a receiver hangs.

        Args:
            address: an actor's.
            message: a small plain value.

        Raises:
            ControlPlaneError: it is dead, or took nothing for ten seconds.
        """
        outcomes: list[bool] = []
        transport = self._base.transport
        transport.scheduleTransmit(
            None,
            TransmitIntent(
                address,
                message,
                onSuccess=lambda *_: outcomes.append(True),
                onError=lambda *_: outcomes.append(False),
            ),
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TELL_TIMEOUT_SECONDS
        while not outcomes and loop.time() < deadline:
            transport.run(TransmitOnly, timedelta(milliseconds=2))
            await asyncio.sleep(0 if outcomes else 0.002)
        if outcomes != [True]:
            raise ControlPlaneError(f"{type(message).__name__} does not reach {address}")

    async def shutdown(self) -> None:
        """Ask the admin to end, once no actor is left.

        Raises:
            ControlPlaneError: it doesn't hear.
        """
        await self.tell(self._base.adminAddr, SystemShutdown())
        # The admin lives until its answer was taken.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TELL_TIMEOUT_SECONDS
        while loop.time() < deadline:
            answer = self._base.transport.run(None, timedelta(milliseconds=2))
            if isinstance(answer, ReceiveEnvelope) and isinstance(answer.message, SystemShutdownCompleted):
                return
            await asyncio.sleep(0.002)


def _harden(begin_process: Callable[[], None] | None) -> None:
    global _key, _begin_process  # noqa: PLW0603 - what every process below inherits by its fork
    _key = os.urandom(KEY_BYTES)
    _begin_process = begin_process
    TCPTransport.serializer = SignedPickle
    TCPTransport.ackMsg = toSendBuffer(ackPacket, SignedPickle.dumps)
    TCPTransport.ackDataErrMsg = toSendBuffer(ackDataErrPacket, SignedPickle.dumps)
    multiprocCommon.set_signal_handler = _only_child_exits
    # Thespian's internal log is a file in the temporary folder that all runs and users share.
    thesplog_control(logging.CRITICAL + 1, False, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
