"""The wheel: it holds only `understudy/…`, and suite and demo pass against it, installed afresh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    for folder in ("actors", "config", "examples", "runtime"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(f"understudy/{path.relative_to(ROOT)}")
    assert wanted - packed == set()


# What is on disk beside the packages, and the commands that stand there, are the repository's business.
NOT_THE_WHEEL_S = (
    "tests/unit/test_packaging.py",
    "tests/faults/test_fault_table.py",
    "tests/faults/test_random_faults.py",
    "tests/faults/test_rolling_deploy.py",
)


def test_the_suite_passes_against_it(installed: Path, tmp_path: Path) -> None:
    """From a copy of the tests, so that the working tree can't be imported."""
    shutil.copytree(
        ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "system")
    )
    for name in ("setup.cfg", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    where = run(
        installed / "python", "-c", "import understudy; print(understudy.__file__)", directory=tmp_path
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
    run(
        *(installed / "pytest", "tests/unit", "tests/integration", "tests/faults", "-q", "-n", "4"),
        *(f"--ignore={path}" for path in NOT_THE_WHEEL_S),
        directory=tmp_path,
    )


def test_the_demo_passes_against_it(installed: Path, tmp_path: Path) -> None:
    """Every count right, from an empty directory."""
    run(installed / "understudy", "demo", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
