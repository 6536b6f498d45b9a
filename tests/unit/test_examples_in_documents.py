"""The Python in README and docs/ runs as it stands, and what of it is an app can be run."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import understudy
from understudy.runtime.app import App
from understudy.runtime.cli import entry

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# Of the benchmarks and the programs in tests/.
OPTIONS_OF_OTHERS = {"--scenario", "--seed", "--once"}


def blocks_of(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


PAGES = {str(page.relative_to(ROOT)): page for page in DOCUMENTS if blocks_of(page)}


def run(page: str, monkeypatch: pytest.MonkeyPatch) -> list[ModuleType]:
    """Run a page's blocks, each as a module; one without imports goes on from those before it."""
    modules: list[ModuleType] = []
    for number, block in enumerate(blocks_of(PAGES[page])):
        name = f"{page}, example {number + 1}"
        code = compile(block.replace("…", "..."), name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        is_whole = block.startswith(("import ", "from "))
        if not is_whole and "class " not in block:
            # A few lines of something, with names of the reader's own.
            continue
        module = ModuleType(f"example_{number}")
        if not is_whole:
            vars(module).update({name: getattr(understudy, name) for name in understudy.__all__})
            for earlier in modules:
                vars(module).update(
                    {name: value for name, value in vars(earlier).items() if not name.startswith("__")}
                )
        # Where annotations are looked up.
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(code, vars(module))
        modules.append(module)
    return modules


@pytest.mark.parametrize("page", PAGES)
def test_each_example_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app is checked as a run does before it connects; a test that is shown is run."""
    for module in run(page, monkeypatch):
        for name, value in list(vars(module).items()):
            if isinstance(value, App):
                assert value.spec().root.children, f"{page}: {name} has nothing to run"
            elif name.startswith("test_"):
                value()


@pytest.mark.parametrize(
    "page", ["README.md", "docs/ask.md", "docs/sagas.md", "docs/state.md", "docs/timers.md"]
)
def test_these_show_a_whole_app(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apps = [value for module in run(page, monkeypatch) for value in vars(module).values()]
    assert any(isinstance(value, App) for value in apps)


def options_of(command: Any) -> Iterator[str]:
    """A command's and its subcommands' options."""
    for parameter in command.params:
        yield from parameter.opts
    for subcommand in getattr(command, "commands", {}).values():
        yield from options_of(subcommand)


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_the_options_that_are_named_exist(page: Path) -> None:
    """A setting need not have one."""
    named = set(re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8")))
    assert named - OPTIONS_OF_OTHERS <= set(options_of(typer.main.get_command(entry._app)))


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_lines_are_no_longer_than_the_editor_is_wide(page: Path) -> None:
    """But for tables, which can't be wrapped, and drawings."""
    widest = 120 if page.name == "README.md" else 110
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    too_long = [f"{page.name}:{number}" for number, line in lines if len(line) > widest and line[:1] != "|"]
    assert too_long == []
