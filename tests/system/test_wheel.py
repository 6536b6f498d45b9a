"""The wheel: it holds only `understudy/…`, all of it, and works where it is installed afresh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("actors", "config", "examples", "runtime")
pytestmark = pytest.mark.timeout(900)


def run(*arguments: str | Path, directory: Path) -> subprocess.CompletedProcess[str]:
    # Nothing of this environment or of the working tree may stand in for what the wheel lacks.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))
    }
    result = subprocess.run(
        arguments, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{arguments}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as a release is."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT, directory=directory)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with the wheel in it."""
    directory = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", directory, directory=directory)
    pip = directory / "bin" / "pip"
    run(pip, "install", "--quiet", f"{wheel}[embedded,dev]", directory=directory)
    return directory / "bin"


def test_it_holds_understudy_and_its_metadata_only(wheel: Path) -> None:
    """No `actors`, `config` or `tests` at the top level of anybody's site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {"understudy", f"understudy-{version}.dist-info"}


def test_it_holds_every_file_of_the_packages(wheel: Path) -> None:
    """Modules, markers and data: what works from the tree works from the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {f"understudy/{path.name}" for path in (ROOT / "understudy").iterdir() if path.is_file()}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(f"understudy/{path.relative_to(ROOT)}")
    assert wanted - packed == set()


EVERY_MODULE = """
import importlib, pkgutil
import understudy
names = [module.name for module in pkgutil.walk_packages(understudy.__path__, "understudy.")]
for name in ["understudy", *names]:
    if not name.endswith(".__main__"):
        print(name, importlib.import_module(name).__file__)
"""


def test_every_module_can_be_imported_from_it(installed: Path, tmp_path: Path) -> None:
    """As many as are in the tree, each from the wheel."""
    # From an empty directory: the working tree can't stand in for what is missing.
    printed = run(installed / "python", "-c", EVERY_MODULE, directory=tmp_path).stdout
    found = dict(line.split(" ", 1) for line in printed.splitlines())
    assert all(Path(file).is_relative_to(installed.parent) for file in found.values())
    wanted = {"understudy"} | {
        ".".join(("understudy", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        # Importing it runs the command.
        if path.stem != "__main__"
    }
    assert set(found) == wanted


# `make test` runs all tests on these same modules, imported from the tree. What can differ in the wheel is
# a file that is missing, which the tests above find, and code that finds other code or files by where it
# stands: the console script, `python -m`, the child that imports an app, processes that import afresh, data
# read beside a module, the packages' metadata, and what an extra brings. So here run all unit tests, which
# take seconds and import nearly every module, and of the others one file for each of these. A test of what
# the code does when it runs would say the same again, for five minutes more.
OF_THE_WHEEL = (
    "tests/unit",
    # The console script, `python -m`, settings, the embedded server that an extra brings.
    "tests/integration/test_cli_run.py",
    "tests/integration/test_cli_check.py",
    "tests/integration/test_cli_publish.py",
    "tests/integration/test_embedded_server.py",
    "tests/integration/test_readme.py",
    # The extra `reload`, and an app that is imported again.
    "tests/integration/test_cli_reload.py::test_a_save_restarts_the_tree_with_the_new_code_on_the_same_server",
    # A cell on both lanes, of which one reaches into nats-py; dead letters; NATS services.
    "tests/integration/test_cell.py",
    "tests/integration/test_dead_letters.py",
    "tests/integration/test_services.py",
    # The control plane's replaced modules of Thespian, process 1 of a container, a takeover.
    "tests/faults/test_control_plane.py",
    "tests/faults/test_deployed.py",
    "tests/faults/test_late_takeover.py",
)
# What is on disk beside the packages is the repository's business.
NOT_THE_WHEEL_S = "tests/unit/test_packaging.py"


def test_the_tests_of_what_may_differ_pass_against_it(installed: Path, tmp_path: Path) -> None:
    """From a copy of the tests, so that the working tree can't be imported."""
    shutil.copytree(
        ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "system")
    )
    # What the documents say is compared with the code too.
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("setup.cfg", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    where = run(
        installed / "python", "-c", "import understudy; print(understudy.__file__)", directory=tmp_path
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
    run(
        *(installed / "pytest", *OF_THE_WHEEL, "-q", "-n", "4", "--dist", "worksteal"),
        f"--ignore={NOT_THE_WHEEL_S}",
        directory=tmp_path,
    )


def test_the_demo_passes_against_it(installed: Path, tmp_path: Path) -> None:
    """Every count right, from an empty directory."""
    run(installed / "understudy", "demo", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
