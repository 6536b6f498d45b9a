"""`understudy ask`: ask an actor from a shell, and print its answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from understudy.actors.context import ASK_TIMEOUT_SECONDS
from understudy.actors.errors import (
    AskRejected,
    AskTimeout,
    BrokerError,
    ConfigurationError,
    DecodeError,
    PublishError,
)
from understudy.runtime.cli.options import ConfigFile, Servers, check_timeout, remedies, settings_from
from understudy.runtime.cli.publish import JSON_HEADERS, check_subject, json_problem
from understudy.runtime.telemetry.publishing import tracing_command

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec
    from understudy.runtime.jetstream.takers import Taker

NO_ANSWER = 75
NOBODY = 3


def ask(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Where to, like orders.quote.", show_default=False)
    ],
    body: Annotated[
        str | None, typer.Option("--json", metavar="TEXT", help="The request.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="FILE", help="A file with the request; - is stdin.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", help="How long to wait, by default 5.", show_default=False
        ),
    ] = ASK_TIMEOUT_SECONDS,
    idempotency_key: Annotated[
        str,
        typer.Option(metavar="KEY", help="By which an idempotent actor knows a repeat.", show_default=False),
    ] = "",
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Ask an actor, and print its answer: JSON in, JSON out.

    Example: understudy ask orders.quote --json '{"item": "apple"}' --timeout 2

    The request is stored like any event, and answered by the handler that declares reply=. Exits 1 if that
    has rejected it or failed, 75 if no answer came in time, 3 if nobody takes such requests; stderr says why.
    """
    if (body is None) == (file is None):
        raise ConfigurationError("give either --json TEXT or --file FILE (- for stdin)")
    check_subject(subject)
    check_timeout(timeout)
    request = body.encode() if body is not None else _read(str(file))
    problem = json_problem(request)
    if problem:
        raise DecodeError(f"{'--json' if body is not None else f'--file {file}'} {problem}")
    settings = settings_from(config, {"nats.servers": servers}, quiet=True)
    with remedies(settings), tracing_command("understudy-ask"):
        connection = settings.connection()
        try:
            answer = asyncio.run(_ask(connection, subject, request, timeout, idempotency_key))
        except PublishError as error:
            # Of the broker, as when nobody takes it.
            raise BrokerError(str(error)) from error
        except AskRejected as error:
            # The handler's own words, which may not say whose they are.
            raise AskRejected(f"{subject}: rejected: {error}", subject=subject) from error
        except AskTimeout as error:
            status, why = asyncio.run(_explain(connection, subject))
            typer.echo(f"understudy: {error}{why}", err=True)
            return status
    sys.stdout.buffer.write(answer + b"\n")
    sys.stdout.buffer.flush()
    return 0


async def _ask(
    connection: ConnectionSpec, subject: str, request: bytes, seconds: float, idempotency_key: str
) -> bytes:
    from understudy.runtime.jetstream.publisher import Publisher

    async with Publisher.connect(connection, source="understudy-ask") as publisher:
        return await publisher.ask_raw(
            subject, request, JSON_HEADERS, timeout_seconds=seconds, idempotency_key=idempotency_key
        )


async def _explain(connection: ConnectionSpec, subject: str) -> tuple[int, str]:
    """Return the exit status of no answer, and what is known of its reason."""
    from understudy.runtime.jetstream import connection as connections
    from understudy.runtime.jetstream.api import NoJetStream
    from understudy.runtime.jetstream.takers import takers_of

    try:
        client = await connections.connect(connection, name="understudy-ask")
        try:
            streams, takers = await takers_of(client, subject)
        finally:
            await connections.close(client)
    except NoJetStream as error:
        return NOBODY, f"\n  {error}"
    except BrokerError:
        # Who may only publish and subscribe isn't told.
        return NO_ANSWER, ""
    return reason_of(streams, takers)


def reason_of(streams: list[str], takers: list[Taker]) -> tuple[int, str]:
    """Return the exit status of no answer, and a line that says what it may be due to.

    Args:
        streams: those that take the subject.
        takers: their consumers that do.
    """
    if not takers:
        who = f"no consumer of the stream {', '.join(streams)}" if streams else "no stream"
        return NOBODY, f"\n  {who} takes this subject; correct it, or start the app"
    if not any(taker.pending for taker in takers):
        names = ", ".join(taker.name for taker in takers)
        return NO_ANSWER, (
            f"\n  it was taken (nothing waits for {names}): its handler may not declare reply=; "
            "see what its log says"
        )
    # The request is most likely one of those that wait.
    named = "; ".join(f"{taker.name}, where {_waiting(taker.pending)}" for taker in takers)
    if not any(taker.is_pulled for taker in takers):
        return NO_ANSWER, f"\n  nobody pulls from {named}: is the app up, and not paused? understudy tree"
    return NO_ANSWER, (
        f"\n  it is for {named}: give it more --timeout, or see whether its handler declares reply= and "
        "what its log says"
    )


def _waiting(count: int) -> str:
    if not count:
        return "none waits"
    return "1 waits or is being handled" if count == 1 else f"{count:,} wait or are being handled"


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--file {name}: {error.strerror}") from error
