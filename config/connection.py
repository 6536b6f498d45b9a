"""How to reach the broker, as plain values that may cross to another process."""

from __future__ import annotations

import msgspec


class ConnectionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The broker's addresses and credentials, already validated.

    Args:
        servers: NATS URLs, tried in turn.
        credentials: path of a `.creds` file.
        user, password, token: credentials by value; never shown.
        tls_ca, tls_cert, tls_key: paths of PEM files; a CA alone verifies the server.
        connect_timeout_seconds: how long one connection attempt may take.
        fast_lane: whether the data path may read and write frames past nats-py's public interface.
    """

    servers: tuple[str, ...]
    credentials: str | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    connect_timeout_seconds: float = 5.0
    fast_lane: bool = True

    def __repr__(self) -> str:
        """Name the servers and nothing secret; user information inside a URL is left out too."""
        return f"ConnectionSpec(servers={[redact_url(server) for server in self.servers]})"


def redact_url(url: str) -> str:
    """Return the URL with user information replaced by `***`.

    Args:
        url: a NATS URL, with or without `user:password@`.
    """
    scheme, separator, rest = url.rpartition("://")
    userinfo, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***' if userinfo else ''}{at}{host}"
