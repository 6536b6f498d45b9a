"""The `understudy` command: its subcommands, and what its exit status says."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.exceptions
import typer.main

from understudy.actors.errors import (
    BrokerError,
    CodecError,
    ConfigurationError,
    DeclarationError,
    UnderstudyError,
)
from understudy.runtime.cli.actor import actor
from understudy.runtime.cli.ask import ask
from understudy.runtime.cli.check import check
from understudy.runtime.cli.command import Command
from understudy.runtime.cli.dead_letters import dead_letters
from understudy.runtime.cli.demo import demo
from understudy.runtime.cli.drain import drain
from understudy.runtime.cli.publish import publish
from understudy.runtime.cli.run import run
from understudy.runtime.cli.sagas import sagas
from understudy.runtime.cli.tree import tree

CLEAN = 0
DIFFERENT = 1
USAGE = 2
BROKER = 3
INTERNAL = 70
INTERRUPTED = 130
# What a shell says of a tool that SIGPIPE ended: not all was written, which `pipefail` lets a script see.
PIPE_CLOSED = 141

NOT_LINUX = (
    "understudy runs on Linux; here, run it in a container: "
    'docker run --rm -it -v "$PWD":/app -w /app python:3.13 '
    "sh -c 'pip install \"understudy[embedded]\" && understudy run flights:app --embedded'"
)

# \b keeps the lines of its paragraph as they are.
_EPILOG = """
Settings come from flags, UNDERSTUDY_* variables (UNDERSTUDY_HTTP__PORT is http.port), NATS_URL, a NATS
context and understudy.toml in the working directory; the first of them that names a setting counts. If
none names a server, it is the one that --embedded runs in this directory, or nats://127.0.0.1:4222.

\b
Exit codes:
    0  clean
    1  a check found a difference, or something asked for isn't there
       or couldn't be done
    2  usage or configuration
    3  the broker can't be reached or refuses, or nobody answers
   70  the tree gave up, or an error of our own
   75  not everything was drained, or done in time
  130  interrupted, or killed by a second signal
  141  who read the output wanted no more of it
"""

_app = typer.Typer(
    name="understudy",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# A short help of its own where the first sentence of the docstring is too long for 80 columns.
_app.command(cls=Command, short_help="Run an app's actors under supervision.")(run)
_app.command(cls=Command, short_help="Show what an app declares, and how the server differs from it.")(check)
_app.command(cls=Command)(publish)
_app.command(cls=Command)(ask)
_app.command(cls=Command, short_help="Show the supervisors and cells of every node.")(tree)
_app.add_typer(actor, name="actor")
_app.command(cls=Command, short_help="Have a node drain and end, and wait until it has.")(drain)
_app.command(cls=Command, short_help="Work through a month of real flights, whatever goes wrong.")(demo)
_app.add_typer(dead_letters)
_app.add_typer(sagas)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"understudy {metadata.version('understudy')}")
        raise typer.Exit


@_app.callback(epilog=_EPILOG)
def _understudy(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Supervised actors on NATS JetStream: when one falls, its understudy goes on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 clean; 1 a check found a difference; 2 usage or configuration; 3 the broker can't be reached or refuses;
    70 the tree escalated, or an error of our own; 75 not everything was drained; 130 interrupted; 141 stdout
    is a pipe that was closed.

    Args:
        arguments: what follows the command's name; `sys.argv` if None.
    """
    _open_standard_streams()
    if sys.platform != "linux":
        return _fail(NOT_LINUX, USAGE)
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        status = typer.main.get_command(_app).main(given, prog_name="understudy", standalone_mode=False)
    except typer.exceptions.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "understudy"
        return _fail(f"{error.format_message()}\n  {command} --help says more", USAGE)
    except UnderstudyError as error:
        return _fail(str(error), _status(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except SystemExit as end:
        # Typer ends the process with 1 where nobody reads stdout any more, like `head` that has enough.
        if isinstance(end.__context__, BrokenPipeError):
            return PIPE_CLOSED
        raise
    except Exception:  # noqa: BLE001 - Python's own status for this, 1, means "a difference was found" here
        # An entry, once logging is configured.
        sys.excepthook(*sys.exc_info())
        return INTERNAL
    return status if isinstance(status, int) else CLEAN


def _open_standard_streams() -> None:
    """Put /dev/null where whoever started us left nothing: else the next file opened is taken for stderr."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _status(error: UnderstudyError) -> int:
    match error:
        case ConfigurationError() | DeclarationError() | CodecError():
            return USAGE
        case BrokerError():
            return BROKER
        case _:
            return DIFFERENT


def _fail(text: str, status: int) -> int:
    print(f"understudy: {text}", file=sys.stderr)  # noqa: T201 - the last word of a command is no log entry
    return status
