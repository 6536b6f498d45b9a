"""The options that several commands take, and the settings and broker that follow from them."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from understudy.actors.errors import BrokerUnreachable, ConfigurationError

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec
    from understudy.config.settings import Settings

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="Where the App is: module:attribute.", show_default=False)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings file, instead of ./understudy.toml.", show_default=False
    ),
]
Servers = Annotated[
    list[str] | None,
    typer.Option(
        "--servers", metavar="URL", help="NATS URL; may be given several times.", show_default=False
    ),
]
# The settings hold the defaults; that they are said right here, a test makes sure of.
HttpPort = Annotated[
    int | None,
    typer.Option(
        metavar="PORT", help="Port for probes, by default 8400; 0 takes any free one.", show_default=False
    ),
]
LogLevel = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="debug, info (the default), warning or error.", show_default=False),
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="auto (the default: console on a terminal, else json), console or json.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AppName = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="The app's name.", show_default=False)
]
NodeName = Annotated[
    str | None,
    typer.Option("--node", metavar="ID", help="One node: its run id, host or host:pid.", show_default=False),
]


def settings_from(
    config_file: Path | None,
    flags: dict[str, object],
    *,
    quiet: bool = False,
    quiet_level: str = "warning",
    find_server: bool = True,
) -> Settings:
    """Return the settings, logging configured by them.

    Args:
        config_file: the option `--config`.
        flags: what the command line gave, by dotted key.
        quiet: log little, for a command that prints its result.
        quiet_level: the lowest level that is logged then, unless another than `info` is set.
        find_server: where nobody named servers, take the embedded one that runs in the settings' directory.

    Raises:
        ConfigurationError: see `load_settings`.
    """
    # Loaded when a command runs: --help needs none of it.
    from understudy.config.load import load_settings
    from understudy.runtime.broker.embedded import running_url

    settings = load_settings(config_file=config_file, flags=flags)
    level = quiet_level if quiet and settings.log.level == "info" else settings.log.level
    log_as(settings, level=level)
    if find_server and settings.nats_is_default:
        url = running_url(settings.directory)
        if url is not None:
            return settings.with_servers(url)
    return settings


def log_as(settings: Settings, *, level: str | None = None, **names: str) -> None:
    """Have this process log by its settings.

    Args:
        settings: its.
        level: instead of theirs.
        names: what every entry names.
    """
    from understudy.runtime.telemetry.logs import configure_logging, resolve_format

    configure_logging(
        level=level or settings.log.level,
        format=resolve_format(settings.log.format),
        context=names,
        rules=settings.log.rules(),
    )


@contextlib.contextmanager
def remedies(settings: Settings) -> Iterator[None]:
    """Say what to do where no broker answers at an address that nobody named.

    Args:
        settings: those that the block connects with.

    Raises:
        BrokerUnreachable: what the block raised, with what to do.
    """
    try:
        yield
    except BrokerUnreachable as error:
        if not settings.nats_is_default:
            raise
        raise BrokerUnreachable(
            f"{error}\n"
            "  name yours: --servers nats://host:4222, NATS_URL, or nats.servers in understudy.toml;\n"
            "  or start one along with an app: understudy run TARGET --embedded"
        ) from error


def check_timeout(seconds: float | None) -> None:
    """Raises ConfigurationError if what --timeout gives is no time to wait; None is none given."""
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ConfigurationError(f"--timeout is {seconds:g}; give a number of seconds above 0")


@contextlib.contextmanager
def connection_from(config: Path | None, servers: list[str] | None) -> Iterator[ConnectionSpec]:
    """Yield how to connect, for a command that prints its result."""
    settings = settings_from(config, {"nats.servers": servers}, quiet=True)
    with remedies(settings):
        yield settings.connection()


def ago(option: str, text: str | None) -> int | None:
    """Return the moment that was so long ago, in nanoseconds since 1970; None if nothing is given.

    Args:
        option: its name, for the error.
        text: such as `15m`.

    Raises:
        ConfigurationError: the text is no time.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if found is None:
        raise ConfigurationError(
            f"{option} is {text!r}; give a number and one of s, m, h, d, w, like 15m or 3d"
        )
    seconds = float(found[1]) * _SECONDS[found[2]]
    return max(0, time.time_ns() - round(seconds * 1_000_000_000))


def agreed(question: str) -> bool:
    """Ask on stderr, and return whether the answer is yes."""
    typer.echo(f"{question} [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
