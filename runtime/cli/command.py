"""A command whose help calls an argument by its name alone, and a group that shows its help unasked."""

from __future__ import annotations

from typing import Any

import typer
import typer.exceptions
from typer.core import TyperArgument, TyperCommand


def command_group(name: str, text: str) -> typer.Typer:
    """Return a group of commands, which without one of them prints its help.

    Args:
        name: the group's.
        text: what it is for, and an example.
    """
    group = typer.Typer(name=name, rich_markup_mode=None, help=text)

    @group.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return group


class Command(TyperCommand):
    """Typer's command, with `TARGET` in its help where typer has `{TARGET}` and `TARGET <str>`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was given; an error names this command and the value, which typer forgets."""
        try:
            return super().parse_args(ctx, args)
        except typer.exceptions.TyperException as error:
            error.ctx = getattr(error, "ctx", None) or ctx  # type: ignore[attr-defined]
            error.message = _named(error)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what the usage line is made of."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write what the arguments are, then the options."""
        arguments, options = [], []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, TyperArgument):
                arguments.append((parameter.display_name_raw, record[1]))
            elif record is not None:
                options.append(record)
        for title, records in (("Arguments", arguments), ("Options", options)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _named(error: typer.exceptions.TyperException) -> str:
    """Return what is wrong with a value as settings say it: with the value, and without words of Python."""
    # Loaded when something is wrong: --help needs none of it.
    from pydantic import ValidationError

    from understudy.config.load import in_words

    if not isinstance(error.__cause__, ValidationError):
        return error.message
    detail = error.__cause__.errors()[0]
    return f"{detail['input']!r} {in_words(detail)}"
