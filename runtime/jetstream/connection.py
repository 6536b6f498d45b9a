"""One connection to the broker: fails fast at first, then reconnects for ever with jittered backoff."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import nats
import nats.errors
from nats.aio.client import Client, Server

from understudy.actors.errors import BrokerError, BrokerRefused, BrokerUnreachable, ConfigurationError
from understudy.config.connection import ConnectionSpec, redact_url
from understudy.runtime.jetstream.fast_lane import FastClient, self_check
from understudy.runtime.telemetry.logger import get_logger

MAX_RECONNECT_DELAY_SECONDS = 5.0
# The name by which the rest of the runtime knows it, since only this package imports nats.
Connection: TypeAlias = Client
_DENIED = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)
_log = get_logger("understudy.connection")


async def connect(
    connection: ConnectionSpec,
    *,
    name: str,
    on_state: Callable[[str], None] | None = None,
    on_denied: Callable[[str], None] | None = None,
) -> Client:
    """Connect to the first server that answers, on the fast lane if it works here.

    Args:
        connection: addresses and credentials, and whether the fast lane is wanted.
        name: what the server's monitoring shows for this connection.
        on_state: called in the event loop with `connected` after each reconnect, `disconnected` when the
            connection is lost, `closed` when it ended for good; may not block.
        on_denied: called there with each subject, in lower case, that the server doesn't let us publish to,
            as often as we try; the message is lost. May not block.

    Returns:
        A connection that from now on reconnects for ever.

    Raises:
        BrokerUnreachable: no server answered within the connect timeout.
        BrokerRefused: a server answered and turned us away.
        ConfigurationError: a credentials or TLS file can't be read.
    """
    notify = on_state or (lambda _state: None)
    if connection.fast_lane:
        discarded = False
        fast = FastClient()
        await _connect(fast, connection, name, lambda state: None if discarded else notify(state), on_denied)
        problem = await self_check(fast)
        if not problem:
            return fast
        _log.warning("the fast lane is off: its self-check failed", problem=problem)
        discarded = True
        await close(fast)
    client = Client()
    await _connect(client, connection, name, notify, on_denied)
    return client


async def _connect(
    client: Client,
    connection: ConnectionSpec,
    name: str,
    notify: Callable[[str], None],
    on_denied: Callable[[str], None] | None,
) -> None:
    errors: list[Exception] = []
    connected = False
    attempts = 0

    async def on_error(error: Exception) -> None:
        if connected:
            # Each failed try to reconnect comes here too; that the connection is lost was said once.
            log = _log.warning if client.is_connected else _log.debug
            log("broker error", error=str(error) or type(error).__name__)
            denied = _DENIED.search(str(error))
            if denied is not None and on_denied is not None:
                on_denied(denied[1])
        else:
            errors.append(error)

    async def on_disconnected() -> None:
        if connected and not client.is_closed:
            _log.warning("broker connection lost")
            notify("disconnected")

    async def on_reconnected() -> None:
        nonlocal attempts
        attempts = 0
        _log.info("broker connection restored")
        notify("connected")

    async def on_closed() -> None:
        if connected:
            notify("closed")

    def next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        nonlocal attempts
        ceiling = min(0.05 * 2 ** min(attempts, 10), MAX_RECONNECT_DELAY_SECONDS)
        attempts += 1
        return servers[attempts % len(servers)], ceiling * (0.5 + random.random() / 2)

    _withhold_without_tls(client)
    try:
        await asyncio.wait_for(
            client.connect(
                servers=list(connection.servers),
                name=name,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=on_reconnected,
                closed_cb=on_closed,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                reconnect_to_server_handler=next_server,
                connect_timeout=max(1, round(connection.connect_timeout_seconds)),
                pending_size=8 * 1024 * 1024,
                ping_interval=20,
                **_credentials(connection),
            ),
            timeout=connection.connect_timeout_seconds * max(1, len(connection.servers)),
        )
    except (OSError, nats.errors.Error, TimeoutError) as error:
        raise _explain([*errors, error], connection) from error
    connected = True
    client.options["max_reconnect_attempts"] = -1


def _withhold_without_tls(client: Client) -> None:
    """Have a connection for which TLS was asked say nothing, credentials least of all, without it."""
    connect_command = client._connect_command

    def checked() -> bytes:
        # nats-py goes on in clear text, as of 2.16, where the server, or who is in between, offers no TLS.
        assert client._current_server is not None
        scheme = client._current_server.uri.scheme
        is_wanted = scheme == "tls" or (scheme == "nats" and "tls" in client.options)
        if is_wanted and not client._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return connect_command()

    client._connect_command = checked  # type: ignore[method-assign]


async def confirm(client: Client) -> None:
    """Return when the server has everything that was written.

    Raises:
        BrokerError: it doesn't say so within four seconds, or the connection is gone.
    """
    # nats-py's flush sends its ping ahead of what waits to be written (tried on 2.16), so the first answer
    # says nothing but that this has been written since.
    try:
        await client.flush(timeout=2)
        await client.flush(timeout=2)
    except (nats.errors.Error, TimeoutError) as error:
        raise BrokerError(f"the broker did not confirm what was written: {error}") from error


async def close(client: Client) -> bool:
    """Write out what is pending and close; never waits for a server that is gone.

    nats-py's own `drain` hangs with pull subscriptions, so this flushes and closes.

    Returns:
        Whether the server has everything that was written.
    """
    confirmed = False
    if client.is_connected:
        try:
            await confirm(client)
            confirmed = True
        except BrokerError as error:
            _log.warning("not all may be settled", error=str(error))
    try:
        await client.close()
    except (OSError, TypeError, RuntimeError) as error:
        # nats-py writes what is pending to a socket that may be gone; asyncio of 3.12 then raises TypeError,
        # uvloop RuntimeError.
        _log.warning("broker was gone at the close", error=str(error))
    return confirmed


def _credentials(connection: ConnectionSpec) -> dict[str, Any]:
    problems = [
        f"{key}: {path}: no such file"
        for key, path in (
            ("nats.credentials", connection.credentials),
            ("nats.tls_ca", connection.tls_ca),
            ("nats.tls_cert", connection.tls_cert),
            ("nats.tls_key", connection.tls_key),
        )
        if path is not None and not Path(path).is_file()
    ]
    if problems:
        raise ConfigurationError(problems)
    arguments: dict[str, Any] = {}
    if connection.credentials is not None:
        arguments["user_credentials"] = connection.credentials
    if connection.user is not None:
        arguments["user"] = connection.user
        arguments["password"] = connection.password
    if connection.token is not None:
        arguments["token"] = connection.token
    if connection.tls_ca is not None or connection.tls_cert is not None:
        try:
            context = ssl.create_default_context(cafile=connection.tls_ca)
            if connection.tls_cert is not None:
                context.load_cert_chain(connection.tls_cert, connection.tls_key)
        except ssl.SSLError as error:
            raise ConfigurationError(f"nats.tls: the files can't be used: {error}") from error
        arguments["tls"] = context
    return arguments


def _explain(errors: list[Exception], connection: ConnectionSpec) -> BrokerUnreachable | BrokerRefused:
    servers = ", ".join(redact_url(server) for server in connection.servers)
    for error in errors:
        text = str(error)
        if isinstance(error, nats.errors.AuthorizationError) or "authorization" in text.lower():
            return BrokerRefused(
                f"the broker at {servers} refused the connection: authorization violation; "
                "check nats.user and nats.password, nats.token or nats.credentials"
            )
        if isinstance(error, nats.errors.SecureConnWantedError):
            return BrokerRefused(
                f"the broker at {servers} offers no TLS, which tls:// or nats.tls_ca asks for; "
                "have it offer TLS, or name it with nats:// and leave out nats.tls_ca and nats.tls_cert"
            )
        if isinstance(error, ssl.SSLError) or "tls" in text.lower():
            return BrokerRefused(
                f"the broker at {servers} refused the connection: {text}; check nats.tls_ca, nats.tls_cert"
            )
    cause = next((text for text in map(_cause, errors) if text), "no answer")
    return BrokerUnreachable(f"no broker answers at {servers}: {cause}")


def _cause(error: Exception) -> str:
    # What asyncio and uvloop say of a refused connection differs; the number doesn't.
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return str(error)
