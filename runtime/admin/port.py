"""The port that the launcher's HTTP server listens on."""

from __future__ import annotations

import errno
import socket

from understudy.actors.errors import ConfigurationError

_HOST_REMEDY = (
    "name one that is in http.host (UNDERSTUDY_HTTP__HOST): 127.0.0.1 answers this machine only, "
    "0.0.0.0 on all of its addresses"
)


def check_port(host: str, port: int) -> None:
    """Raise if the port can't be had, and leave it free.

    Called before anything is started: a socket that is bound by then would be inherited by all of it.

    Args:
        host: name or address to listen on.
        port: port to listen on.

    Raises:
        ConfigurationError: the port is taken, or the address isn't this machine's.
    """
    bind(host, port).close()


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: name or address to listen on.
        port: port to listen on; 0 takes any free one.

    Raises:
        ConfigurationError: the port is taken, or the address isn't this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        # Python encodes a name itself, and raises UnicodeError for one that can't be one.
        raise _foreign(host, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Bound isn't enough: with SO_REUSEADDR two may be bound, but only one can listen.
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _foreign(host, error) from error
        raise ConfigurationError(
            f"http.port: {host}:{port} can't be used ({error.strerror}); "
            "end what listens there, choose another port (--http-port), or let any free one be taken "
            "(--http-port 0)"
        ) from error
    return listener


def _foreign(host: str, error: OSError | UnicodeError) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) else error
    return ConfigurationError(f"http.host: {host!r} is no address of this machine ({reason}); {_HOST_REMEDY}")
