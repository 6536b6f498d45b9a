"""The command line: one module per command."""

from understudy.runtime.cli.entry import main

__all__ = ["main"]
