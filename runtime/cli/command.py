"""A command whose help calls an argument by its name alone."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand


class Command(TyperCommand):
    """Typer's command, with `TARGET` in its help where typer has `{TARGET}` and `TARGET <str>`."""

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
