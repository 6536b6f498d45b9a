"""A nats-server of our own: on loopback, on a free port, gone when its launcher is gone."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from understudy.actors.errors import ConfigurationError
from understudy.runtime.broker.binary import find_nats_server
from understudy.runtime.lifeline import die_with_us

START_TIMEOUT_SECONDS = 20.0
# nats-server's own default.
SYNC_INTERVAL = "2m"
_POLL_SECONDS = 0.01


class EmbeddedServer:
    """A running nats-server with JetStream, its store under a directory of ours.

    Started by `start`, never by the constructor. The server has a session of its own, so that Ctrl-C in the
    launcher's terminal doesn't reach it, and dies with the thread that started it (PDEATHSIG): hence only the
    main thread may start one.

    Attributes:
        url: where it listens, `nats://127.0.0.1:<port>`.
        directory: the directory that holds its store, log, configuration and `nats.url`.
        joined: whether it is another run's server, which `stop` leaves alone.
    """

    def __init__(self, url: str, directory: Path, process: subprocess.Popen[bytes] | None) -> None:
        self.url = url
        self.directory = directory
        self._process = process

    @property
    def joined(self) -> bool:
        """Whether another run started the server."""
        return self._process is None

    @property
    def pid(self) -> int | None:
        """The server's process id; None if another run started it."""
        return None if self._process is None else self._process.pid

    @classmethod
    def start(
        cls, directory: Path, *, join: bool = True, port: int = 0, sync_interval: str = SYNC_INTERVAL
    ) -> EmbeddedServer:
        """Start a server, or join the one that runs in the directory; blocks until it accepts.

        Args:
            directory: made if it doesn't exist.
            join: whether a server that already runs in this directory is used; if not, that is an error.
            port: the port to listen on; 0 takes any free one.
            sync_interval: how often it syncs its store to disk: `always`, or a duration such as `2m`.

        Raises:
            ConfigurationError: no usable nats-server, a directory that can't be written, or a server that
                doesn't come up; the text has the end of its log.
            RuntimeError: called in another thread than the main one.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "start the embedded server from the main thread: it dies with the thread that started it"
            )
        binary = find_nats_server()
        directory = _prepare(directory)
        with _locked(directory):
            url = running_url(directory)
            if url is None:
                return _launch(binary, directory, port, sync_interval)
            if not join:
                raise ConfigurationError(
                    f"{directory}: a nats-server runs there already ({url}); use another directory"
                )
            return cls(url, directory, None)

    def is_alive(self) -> bool:
        """Return whether the server runs; a joined one is asked, an own one's process is looked at."""
        if self._process is None:
            return running_url(self.directory) == self.url
        return self._process.poll() is None

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Stop the server if it is ours, kill it after the timeout; may be called twice.

        Args:
            timeout_seconds: how long it may take to close its store.
        """
        if self._process is None:
            return
        # The URL goes first, so that nobody joins a server that is about to go.
        with _locked(self.directory):
            if _read_url(self.directory) == self.url:
                (self.directory / "nats.url").unlink(missing_ok=True)
        self._process.terminate()
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it and wait for the end; `nats.url` stays, as after a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def running_url(directory: Path) -> str | None:
    """Return the URL of the server that runs in the directory, or None.

    The URL alone proves nothing: its port may be another server's by now, so the server's name is compared.
    """
    url = _read_url(directory)
    if url is None:
        return None
    info = _greeting(url)
    return url if info is not None and info.get("server_name") == _server_name(directory) else None


def _read_url(directory: Path) -> str | None:
    try:
        return (directory / "nats.url").read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _server_name(directory: Path) -> str:
    digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()
    return f"understudy-{digest[:12]}"


def _prepare(directory: Path) -> Path:
    try:
        directory = directory.expanduser().resolve()
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"{directory}: the embedded nats-server can't write there ({error.strerror}); "
            "name another with `directory` (UNDERSTUDY_DIRECTORY)"
        ) from error
    return directory


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that of two that start at once one starts and the other joins."""
    with (directory / "nats.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _launch(binary: Path, directory: Path, port: int, sync_interval: str) -> EmbeddedServer:
    for stale in directory.glob("*.ports"):
        stale.unlink(missing_ok=True)
    configuration = directory / "nats-server.conf"
    # nats-server's strings know fewer escapes than JSON's: no \u.
    quoted = json.dumps(str(directory), ensure_ascii=False)
    configuration.write_text(
        f"listen: 127.0.0.1:{port or -1}\n"
        f"server_name: {_server_name(directory)}\n"
        f"ports_file_dir: {quoted}\n"
        f"jetstream {{ store_dir: {quoted}, sync_interval: {sync_interval} }}\n",
        encoding="utf-8",
    )
    with (directory / "nats-server.log").open("wb") as log:
        try:
            process = subprocess.Popen(
                [binary, "-c", configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_us(),  # noqa: PLW1509 - only the main thread gets here, before any other exists
            )
        except OSError as error:
            raise ConfigurationError(f"{binary} can't be started: {error.strerror}") from error
    try:
        url = _wait_until_up(process, directory)
        (directory / "nats.url").write_text(f"{url}\n", encoding="utf-8")
    except BaseException:
        # Also Ctrl-C: what isn't up has nobody to stop it.
        process.kill()
        process.wait()
        raise
    return EmbeddedServer(url, directory, process)


def _wait_until_up(process: subprocess.Popen[bytes], directory: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ConfigurationError(
                f"the embedded nats-server ended at its start with status {process.returncode}; "
                f"{directory / 'nats-server.log'} ends with:\n{_log_end(directory)}"
            )
        url = _announced_url(directory, process.pid)
        info = None if url is None else _greeting(url)
        if url is not None and info is not None:
            if not info.get("jetstream"):
                raise ConfigurationError(
                    f"the embedded nats-server came up without JetStream; is its store damaged? "
                    f"{directory / 'nats-server.log'} ends with:\n{_log_end(directory)}"
                )
            return url
        time.sleep(_POLL_SECONDS)
    raise ConfigurationError(
        f"the embedded nats-server didn't accept within {START_TIMEOUT_SECONDS:g} s; "
        f"{directory / 'nats-server.log'} ends with:\n{_log_end(directory)}"
    )


def _announced_url(directory: Path, pid: int) -> str | None:
    """Return the URL that the server left in its ports file; None until the file is complete."""
    for path in directory.glob(f"*_{pid}.ports"):
        try:
            urls = json.loads(path.read_text(encoding="utf-8"))["nats"]
        except (OSError, ValueError, KeyError):
            return None
        return str(urls[0]) if urls else None
    return None


def _greeting(url: str) -> dict[str, Any] | None:
    """Return the INFO that a NATS server sends to whoever connects; None if nothing of the kind answers."""
    host, _, port = url.rpartition("//")[2].rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=1.0) as connection,
            connection.makefile("rb") as lines,
        ):
            verb, _, body = lines.readline(65_536).partition(b" ")
        info = json.loads(body)
    except (OSError, ValueError):
        return None
    return info if verb == b"INFO" and isinstance(info, dict) else None


def _log_end(directory: Path, lines: int = 5) -> str:
    text = (directory / "nats-server.log").read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
