"""The files in deploy/: valid by those who read them, and in accord with the runtime's own settings."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from understudy.config.load import load_settings
from understudy.runtime.admin.probes import build_routes
from understudy.runtime.supervision.run_directory import VARIABLE
from understudy.runtime.system import ROOT_MARGIN_SECONDS, SHUTDOWN_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFEST = DEPLOY / "kubernetes.yaml"
UNIT = DEPLOY / "understudy.service"


def shortest_grace() -> float:
    """How long a run may take from SIGTERM to its end by the default settings."""
    return load_settings().shutdown_timeout_seconds + ROOT_MARGIN_SECONDS + SHUTDOWN_SECONDS


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def manifest() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML missing: pip install -e '.[dev]'")
    document: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return document


def test_kubernetes_takes_the_manifest(manifest: dict[str, Any]) -> None:
    """By the schema of its API, which refuses what it doesn't know."""
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate missing: pip install -e '.[dev]'"
    )
    version = validator.latest_version()
    validator.validate(manifest, version, strict=True)
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(manifest, version, strict=True)


def test_the_manifest_is_in_accord_with_the_runtime(
    manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time to drain, probes that exist, variables that are settings, the volume that they name."""
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > shortest_grace()
    routes = {route.path for route in build_routes(None, "").routes if isinstance(route, Route)}  # type: ignore[arg-type]
    probes = {
        container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert probes == {"/livez", "/readyz"}
    assert probes <= routes
    scraped = manifest["spec"]["template"]["metadata"]["annotations"]
    assert scraped["prometheus.io/path"] in routes
    assert scraped["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.http.port == container["ports"][0]["containerPort"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (volume,) = [one for one in pod["volumes"] if one["name"] == mounts[variables[VARIABLE]]]
    assert volume["emptyDir"]["medium"] == "Memory"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With a command that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze missing: apt install systemd")
    unit = tmp_path / "flights.service"
    command = str(Path(sys.executable).with_name("understudy"))
    unit.write_text(UNIT.read_text().replace("/opt/flights/.venv/bin/understudy", command))
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_unit_is_in_accord_with_the_runtime() -> None:
    """Time to drain, and a run directory that is kept for the next start."""
    unit = configparser.ConfigParser(strict=False)
    # Case counts, and a key may come several times: of Environment only what is asked for here matters.
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) > shortest_grace()
    assert service["Environment"] == f"{VARIABLE}=/run/{service['RuntimeDirectory']}"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    # SIGTERM comes to the launcher alone, and a cell that dies of memory takes nobody with it.
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
