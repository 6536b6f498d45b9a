"""The command line: one module per command."""

from understudy.runtime.cli.program import main

__all__ = ["main"]
