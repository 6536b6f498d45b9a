"""The processes that a demonstration needs: a nats-server, the service, the runtime itself.

Each is a real process on loopback, on a free port, in a directory made for this demonstration, and dies
with it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from understudy.actors.errors import UnderstudyError
from understudy.config.connection import ConnectionSpec
from understudy.runtime.broker.embedded import EmbeddedServer
from understudy.runtime.lifeline import die_with_us

TARGET = "understudy.examples.flights.app:app"
LEDGER = "notices.sqlite3"
LOG = "understudy.log"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 40.0
MAX_LINE_CHARACTERS = 400
# Between its last answer and its end, when it ends by itself.
END_TIMEOUT_SECONDS = 10.0


class DemoFailed(UnderstudyError):
    """Something didn't do what the demonstration promises; the text says what."""


def call(method: str, url: str, body: object = None) -> tuple[int, Any]:
    """Make one HTTP request with JSON both ways; blocks, five seconds at most."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        connection.request(method, parts.path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def start_process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a Python module as a process that dies with this thread.

    It has a session of its own, so that Ctrl-C reaches only us and we stop it in order.
    """
    return subprocess.Popen(
        (sys.executable, "-m", *arguments),
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=die_with_us(),  # noqa: PLW1509 - no other thread exists yet
        **options,
    )


def stop_process(process: subprocess.Popen[str], timeout_seconds: float) -> int | None:
    """Send SIGTERM and wait for the end.

    Returns:
        The exit code; None if the process had to be killed.
    """
    process.terminate()
    try:
        return process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell as the runtime's tree shows it."""

    name: str
    pid: int
    generation: int
    restarts: int
    state: str
    reason: str
    held: int
    counters: Mapping[str, int]

    @property
    def actor(self) -> str:
        """The name of its actor."""
        return self.name.rpartition("/")[0]

    @property
    def is_running(self) -> bool:
        """Whether it takes deliveries, or would if its breaker let it."""
        return self.state in {"up", "paused"}


class Stage:
    """Where a demonstration takes place.

    Attributes:
        directory: holds the broker's store, the log and the service's ledger.
        nats_url, service_url, http_url: where the three processes listen.
        service, runtime: the processes of the service and of `understudy run`.
        keep: whether the directory is left behind.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nats_url: str,
        service_url: str,
        service: subprocess.Popen[str],
        runtime: subprocess.Popen[str],
    ) -> None:
        self.directory = directory
        self.nats_url = nats_url
        self.service_url = service_url
        self.http_url = ""
        self.service = service
        self.runtime = runtime
        self.keep = False

    @property
    def connection(self) -> ConnectionSpec:
        """How to reach the broker."""
        return ConnectionSpec(servers=(self.nats_url,))

    @property
    def log(self) -> Path:
        """What the runtime has logged, as JSON lines."""
        return self.directory / LOG

    @property
    def ledger(self) -> Path:
        """The service's own account."""
        return self.directory / LEDGER

    def check_service(self) -> None:
        """Raise if the service has ended though nobody stopped it."""
        if ended := _end_of(self.service):
            raise DemoFailed(f"the service {ended}, though nobody stopped it")

    def check_runtime(self, *, wait_seconds: float = 0.0) -> None:
        """Raise if the runtime has ended though nobody stopped it.

        Args:
            wait_seconds: give it so long to end.
        """
        if ended := _end_of(self.runtime, wait_seconds):
            raise DemoFailed(
                f"the runtime {ended}, though nobody stopped it; its errors:\n{_errors_in(self.log)}"
            )

    def cells(self) -> dict[str, Cell]:
        """Read the runtime's tree; blocks.

        Raises:
            DemoFailed: the runtime doesn't answer.
        """
        try:
            _, tree = call("GET", f"{self.http_url}/api/tree")
        except (OSError, http.client.HTTPException, ValueError) as error:
            # It answers no more when it begins to stop.
            self.check_runtime(wait_seconds=END_TIMEOUT_SECONDS)
            raise DemoFailed(f"the runtime's {self.http_url} doesn't answer: {error!r}") from error
        return {cell.name: cell for cell in _cells_below(tree)}

    def tell_service(self, path: str, body: object) -> None:
        """Tell the service how to behave; blocks.

        Raises:
            DemoFailed: it doesn't answer, or not as it should.
        """
        try:
            status, answer = call("POST", f"{self.service_url}{path}", body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DemoFailed(f"the service at {self.service_url} doesn't answer: {error!r}") from error
        if status != HTTPStatus.OK:
            raise DemoFailed(f"the service answered {status} to POST {path}: {answer}")

    def wait_until_ready(self) -> None:
        """Block until every actor is up; from then on the runtime's HTTP address is known.

        Raises:
            DemoFailed: the runtime ended, or wasn't ready in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            self.check_runtime()
            if url := _announced_url(self.log):
                self.http_url = url
                status, _ = call("GET", f"{url}/readyz")
                if status == HTTPStatus.OK:
                    return
            time.sleep(0.02)
        raise DemoFailed(f"the runtime wasn't ready within {START_TIMEOUT_SECONDS:g} s; see {self.log}")


@contextlib.contextmanager
def open_stage(say: Callable[[str], None], *, keep: bool) -> Iterator[Stage]:
    """Start everything; at the end stop what still runs and remove the directory.

    Only the main thread may do this, before it starts another: processes die with the thread that made them.

    Args:
        say: told what has been started.
        keep: leave the directory where it is. It is also left after a failure.
    """
    directory = Path(tempfile.mkdtemp(prefix="understudy-demo-"))
    # On tmpfs where there is one: cell files are written all the time, and need not survive the machine.
    shared_memory = Path("/dev/shm")  # noqa: S108
    base = shared_memory if os.access(shared_memory, os.W_OK) else directory
    run_directory = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=base))
    try:
        with contextlib.ExitStack() as stack:
            stage = _start(directory, run_directory, stack, say)
            try:
                yield stage
            except DemoFailed:
                keep = True
                raise
            keep = keep or stage.keep
    finally:
        shutil.rmtree(run_directory, ignore_errors=True)
        if keep:
            say(f"what it left is in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _start(
    directory: Path, run_directory: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> Stage:
    server = EmbeddedServer.start(directory / "nats", join=False)
    stack.callback(server.stop)
    say(f"nats-server is up: {server.url}")

    ledger = str(directory / LEDGER)
    service = start_process("understudy.examples.flights.service", "0", ledger, stdout=subprocess.PIPE)
    stack.callback(stop_process, service, STOP_TIMEOUT_SECONDS)
    assert service.stdout is not None
    service_url = service.stdout.readline().strip()
    if not service_url:
        raise DemoFailed(f"the service ended at its start with status {service.wait()}")
    say(f"the service is up: {service_url}")

    with (directory / LOG).open("w", encoding="utf-8") as log:
        runtime = start_process(
            *("understudy.runtime", "run", TARGET, "--log-format", "json"),
            *("--servers", server.url, "--http-port", "0"),
            stdout=log,
            stderr=log,
            cwd=directory,
            env=_environment(directory, run_directory, service_url),
        )
    stack.callback(stop_process, runtime, STOP_TIMEOUT_SECONDS)
    return Stage(
        directory,
        nats_url=server.url,
        service_url=service_url,
        service=service,
        runtime=runtime,
    )


def _cells_below(node: Mapping[str, Any]) -> Iterator[Cell]:
    for child in node["children"]:
        if child["kind"] == "supervisor":
            yield from _cells_below(child)
            continue
        supervision, status = child["supervision"], child["status"]
        is_up = supervision["state"] == "up" and status is not None
        yield Cell(
            name=child["name"],
            pid=supervision["pid"] or 0,
            generation=supervision["generation"],
            restarts=supervision["restarts"],
            state=status["state"] if is_up else supervision["state"],
            reason=status["reason"] if is_up else supervision["last_reason"],
            held=status["held"] if is_up else 0,
            counters=status["counters"] if status is not None else {},
        )


def _announced_url(log: Path) -> str | None:
    """Read from the runtime's log where it serves HTTP: it says so when every actor is up."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("event") == "ready":
                return str(entry["http"])
    return None


def _end_of(process: subprocess.Popen[str], wait_seconds: float = 0.0) -> str:
    """Return how a process has ended; nothing if it hasn't within so long."""
    try:
        status = process.wait(wait_seconds)
    except subprocess.TimeoutExpired:
        return ""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


def _errors_in(log: Path) -> str:
    """Return the last errors that the runtime has logged, and what came from others, such as a traceback."""
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            level = json.loads(line)["level"]
        except (ValueError, TypeError, KeyError):
            level = None
        if level in {None, "error", "critical"}:
            found.append(line[:MAX_LINE_CHARACTERS])
    return "\n".join(found[-10:]) or "(none)"


def _environment(directory: Path, run_directory: Path, service_url: str) -> dict[str, str]:
    """Our own environment without what would configure the runtime otherwise."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name == "UNDERSTUDY_NATS_SERVER" or not name.startswith(("UNDERSTUDY_", "NATS_"))
    }
    return inherited | {
        "XDG_CONFIG_HOME": str(directory),
        "UNDERSTUDY_RUN_DIRECTORY": str(run_directory),
        "FLIGHTS_SERVICE_URL": service_url,
    }
