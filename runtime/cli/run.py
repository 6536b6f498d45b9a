"""`understudy run`: start an app's tree and keep it up until it is told to stop."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from understudy.actors.errors import ConfigurationError
from understudy.config.connection import redact_url
from understudy.runtime.broker.embedded import EmbeddedServer
from understudy.runtime.cli.options import (
    ConfigFile,
    HttpPort,
    LogFormat,
    LogLevel,
    Servers,
    Target,
    remedies,
    settings_from,
)

if TYPE_CHECKING:
    from understudy.config.settings import Settings

_log = structlog.get_logger(__name__)


def run(
    target: Target,
    config: ConfigFile = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a nats-server along with it, its store in .understudy/.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start the tree anew when a Python file or a setting is saved.")
    ] = False,
    servers: Servers = None,
    http_port: HttpPort = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Run an app's actors under supervision until SIGTERM or Ctrl-C.

    Example: understudy run flights:app --embedded

    The first signal drains: what is being handled finishes, what is held goes back to the stream. A second
    one kills. Logs go to stderr; /livez and /readyz answer on the HTTP port.
    """
    if embedded and servers:
        raise ConfigurationError("--embedded starts a server of its own; leave out --servers")
    # Loaded when the command runs: --help needs none of it.
    from understudy.runtime.cli.reload import Reloader
    from understudy.runtime.supervision.control import ControlPlaneError
    from understudy.runtime.system import CLEAN, ESCALATED, System
    from understudy.runtime.target import inspect_target

    flags: dict[str, object] = {
        "nats.servers": servers,
        "http.port": http_port,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = settings_from(config, flags, find_server=not embedded)
    reloader = Reloader(target, config, flags, settings) if reload else None
    # Until the system hears signals itself, the first one ends the command just as cleanly. SIGINT too is
    # set, since a shell without job control has its background commands ignore it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    server = None
    try:
        app = inspect_target(target)
        if embedded:
            server = EmbeddedServer.start(settings.directory, sync_interval=settings.embedded.sync_interval)
            _explain_server(server, settings)
            settings = settings.with_servers(server.url)
        if reloader is not None:
            return reloader.run(server)
        with remedies(settings):
            return System(target=target, app=app, settings=settings, embedded=server).run()
    except ControlPlaneError as error:
        typer.echo(f"understudy: {error}", err=True)
        return ESCALATED
    except KeyboardInterrupt:
        return CLEAN
    finally:
        # The event loop left SIGTERM to its default, which would leave the server to be killed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if server is not None:
            server.stop()


def _explain_server(server: EmbeddedServer, settings: Settings) -> None:
    if not settings.nats_is_default:
        _log.info(
            "servers not used: --embedded goes before them",
            servers=", ".join(map(redact_url, settings.nats.servers)),
        )
    if server.joined:
        _log.info(
            "uses the nats-server that another run in this directory started; it ends with that run",
            url=server.url,
        )
