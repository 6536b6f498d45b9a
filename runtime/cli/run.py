"""`understudy run`: start an app's tree and keep it up until it is told to stop."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from understudy.actors.errors import ConfigurationError
from understudy.config.connection import redact_url
from understudy.runtime.cli.garbage import collect_as_usual
from understudy.runtime.cli.options import (
    ConfigFile,
    HttpPort,
    LogFormat,
    LogLevel,
    Servers,
    Target,
    log_as,
    remedies,
    settings_from,
)
from understudy.runtime.telemetry.node import node_name

if TYPE_CHECKING:
    from understudy.config.settings import Settings
    from understudy.runtime.broker.embedded import EmbeddedServer


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
    one kills. Logs go to stderr; /livez, /readyz, /healthz, /metrics and /api/tree answer
    on the HTTP port.
    """
    if embedded and servers:
        raise ConfigurationError("--embedded starts a server of its own; leave out --servers")
    # Loaded when the command runs: --help needs none of it.
    from understudy.runtime.broker.embedded import EmbeddedServer
    from understudy.runtime.cli.reload import Reloader
    from understudy.runtime.supervision.control import ControlPlaneError
    from understudy.runtime.system import CLEAN, ESCALATED, System
    from understudy.runtime.target import inspect_target
    from understudy.runtime.telemetry.tracing import load_export

    flags: dict[str, object] = {
        "nats.servers": servers,
        "http.port": http_port,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = settings_from(config, flags, find_server=not embedded)
    load_export(os.environ)
    reloader = Reloader(target, config, flags, settings) if reload else None
    # Until the system hears signals itself, the first one ends the command just as cleanly. SIGINT too is
    # set, since a shell without job control has its background commands ignore it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    server = None
    try:
        app = inspect_target(target)
        log_as(settings, app=app.name, node=node_name())
        if embedded:
            server = EmbeddedServer.start(settings.directory, sync_interval=settings.embedded.sync_interval)
            _explain_server(server, settings)
            settings = settings.with_servers(server.url)
        # The imports are done, and forks are to come.
        collect_as_usual()
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
    import structlog

    log = structlog.get_logger(__name__)
    if not settings.nats_is_default:
        log.info(
            "servers not used: --embedded goes before them",
            servers=", ".join(map(redact_url, settings.nats.servers)),
        )
    if server.joined:
        log.info(
            "uses the nats-server that another run in this directory started; it ends with that run",
            url=server.url,
        )
