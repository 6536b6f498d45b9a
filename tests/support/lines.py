"""Files that other processes append lines to while a test reads them."""

from __future__ import annotations

from pathlib import Path


def complete_lines(text: str) -> list[str]:
    """The lines of what was read, without a last one that isn't all there.

    A line that crosses a page of the file is seen in two pieces, however it was written.
    """
    return text[: text.rfind("\n") + 1].splitlines()


def read_lines(path: Path) -> list[str]:
    """A file's complete lines; none if there is no file yet."""
    return complete_lines(path.read_text()) if path.exists() else []
