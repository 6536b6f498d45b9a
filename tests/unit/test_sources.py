"""Which files `run --reload` watches, and what it takes for a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.actors.errors import ConfigurationError
from understudy.runtime.cli import sources
from understudy.runtime.cli.sources import Sources


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project in the working directory."""
    project = tmp_path / "project"
    (project / "package").mkdir(parents=True)
    (project / "flights.py").touch()
    (project / "package" / "__init__.py").touch()
    monkeypatch.chdir(project)


def watched(target: str = "flights:app") -> Sources:
    return Sources.of(target, Path("understudy.toml"), without=Path("state"))


def test_what_is_written_renamed_added_and_deleted_is_a_change_once() -> None:
    """Whatever the editor did in between."""
    found = watched()
    assert found.changes() == []
    Path("flights.py").write_text("x = 1")
    Path("new").touch()
    Path("new").rename("package/__init__.py")
    Path("package/more.py").touch()
    assert found.changes() == ["flights.py", "package/__init__.py", "package/more.py"]
    Path("package/more.py").unlink()
    assert found.changes() == ["package/more.py"]
    assert found.changes() == []


def test_a_file_that_is_as_it_was_is_none() -> None:
    """A write that was taken back before anyone looked at it."""
    found = watched()
    Path("extra.py").touch()
    Path("extra.py").unlink()
    assert found.changes() == []


def test_the_settings_file_counts_and_no_other_of_its_kind() -> None:
    """Where it is, and where it is to come."""
    found = watched()
    Path("understudy.toml").touch()
    Path("other.toml").touch()
    assert found.changes() == ["understudy.toml"]


@pytest.mark.parametrize(
    "name", [".git", ".understudy", "__pycache__", "node_modules", "site-packages", "venv", "state"]
)
def test_what_no_one_edits_is_left_out(name: str) -> None:
    """An environment is known by its pyvenv.cfg, the runtime's directory by the settings."""
    found = watched()
    (Path(name) / "below").mkdir(parents=True)
    (Path(name) / "below" / "module.py").touch()
    if name == "venv":
        (Path(name) / "pyvenv.cfg").touch()
    assert found.changes() == []
    assert found.directories() == [Path.cwd(), Path.cwd() / "package"]


def test_a_package_that_is_elsewhere_is_watched_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As one that is installed for editing, but not one that is installed for good; it isn't imported."""
    for place in ("src", "site-packages"):
        package = tmp_path / place / f"app_in_{place[:4]}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("1 / 0")
        monkeypatch.syspath_prepend(tmp_path / place)
    found = watched("app_in_src.main:app")
    assert tmp_path / "src" / "app_in_src" in found.directories()
    (tmp_path / "src" / "app_in_src" / "main.py").touch()
    assert found.changes() == ["../src/app_in_src/main.py"]
    assert watched("app_in_site:app").directories() == watched("nowhere:app").directories()


def test_too_much_to_watch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in / it would never come to an end."""
    monkeypatch.setattr(sources, "MAX_DIRECTORIES", 1)
    with pytest.raises(ConfigurationError) as refused:
        watched()
    assert str(refused.value) == (
        f"--reload: there are more than 1 directories below {Path.cwd()}; start it in your project's own "
        "directory"
    )
