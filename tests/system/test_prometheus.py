"""Dashboard and alert rules in deploy/, by those who read them: Prometheus, promtool, Grafana's model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.launched import Launched, publish
from support.nats import NatsServer
from support.prometheus import Prometheus, find
from support.tree import wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus-rules.yaml"
CONFIG = DEPLOY / "prometheus.yml"
DASHBOARD = DEPLOY / "grafana-dashboard.json"
OPERATIONS = ROOT / "docs" / "operations.md"
RULE_TESTS = Path(__file__).with_name("prometheus-rules.test.yaml")

# A selector of ours as it stands in an expression, without the range that may follow.
SELECTOR = re.compile(r"\bunderstudy_\w+(?:\{[^}]*\})?")
NAME = re.compile(r"\bunderstudy_\w+")
DISCONNECTED = "understudy_connected"


def tool(name: str) -> str:
    """Return the path of one of Debian's package `prometheus`, or skip and name it."""
    path = find(name)
    if path is None:
        pytest.skip(f"{name} missing: apt install prometheus")
    return path


def promtool(*arguments: str | Path, cwd: Path | None = None, text: str = "") -> None:
    """Run promtool, which must find nothing."""
    command = [tool("promtool"), *arguments]
    ran = subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def read_yaml(path: Path) -> Any:
    """Read one document."""
    yaml = pytest.importorskip("yaml", reason="PyYAML missing: pip install -e '.[dev]'")
    return yaml.safe_load(path.read_text())


def write_yaml(path: Path, document: Any) -> None:
    """Write one document; what JSON is, YAML is."""
    path.write_text(json.dumps(document))


def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    (group,) = read_yaml(RULES)["groups"]
    alerts: list[dict[str, Any]] = group["rules"]
    return alerts


def dashboard() -> dict[str, Any]:
    """Return the dashboard's model."""
    model: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return model


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, but the rows that they stand in."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Return what the dashboard's panels ask, by title and number, as Grafana would ask it of one app."""
    values = {"$app": "watched", "$actor": ".*", "$__rate_interval": "30s"}
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in values.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, expression
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def test_promtool_takes_configuration_and_rules() -> None:
    """The rules are checked with the configuration that names them, and by themselves."""
    promtool("check", "config", CONFIG)
    promtool("check", "rules", RULES)


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """On made-up series; of the annotations, the summaries are compared."""
    document = read_yaml(RULES)
    for rule in document["groups"][0]["rules"]:
        rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    write_yaml(tmp_path / RULES.name, document)
    shutil.copy(RULE_TESTS, tmp_path)
    promtool("test", "rules", RULE_TESTS.name, cwd=tmp_path)


def test_no_alert_is_left_out_of_that() -> None:
    """Each has a moment at which it fires and one at which it doesn't."""
    fires: dict[bool, set[str]] = {True: set(), False: set()}
    for case in read_yaml(RULE_TESTS)["tests"]:
        for moment in case["alert_rule_test"]:
            fires[bool(moment["exp_alerts"])].add(moment["alertname"])
    alerts = {rule["alert"] for rule in rules()}
    assert fires == {True: alerts, False: alerts}


def test_each_alert_says_what_to_do() -> None:
    """Its runbook is a section of docs/operations.md; no other section of that kind is left."""
    sections = re.findall(r"^### (Understudy\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_grafana_takes_the_dashboard() -> None:
    """By Grafana's own model of it, which drops what it doesn't know: nothing is dropped."""
    sdk = "grafana_foundation_sdk"
    reason = f"{sdk} missing: pip install -e '.[dev]'"
    model = pytest.importorskip(f"{sdk}.models.dashboard", reason=reason)
    pytest.importorskip(f"{sdk}.cog.plugins", reason=reason).register_default_plugins()
    encoder = pytest.importorskip(f"{sdk}.cog.encoder", reason=reason).JSONEncoder(sort_keys=True)

    def taken(document: dict[str, Any]) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(encoder.encode(model.Dashboard.from_json(document)))
        return read

    document = dashboard()
    assert dropped(document, taken(document)) == []
    document["panels"][1]["fieldConfig"]["defaults"]["unitt"] = "s"
    assert dropped(document, taken(document)) == ["/panels/1/fieldConfig/defaults/unitt"]


def dropped(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return where in a document something is missing or is another in the other."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(key, value, theirs.get(key, dropped)) for key, value in ours.items()]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(index, *pair) for index, pair in enumerate(zip(ours, theirs, strict=True))]
    else:
        return [] if ours == theirs else [path]
    return [one for key, mine, other in pairs for one in dropped(mine, other, f"{path}/{key}")]


def test_the_dashboard_can_be_read_at_night() -> None:
    """On top what matters first; datasource, app and actor to choose; no two panels in one place."""
    document = dashboard()
    assert [variable["name"] for variable in document["templating"]["list"]] == ["datasource", "app", "actor"]
    top = [panel["title"] for panel in panels() if panel["gridPos"]["y"] == 1]
    assert top == [
        "Nodes",
        "Who is behind",
        "Breakers that aren't closed",
        "What restarted in the last hour, and why",
    ]
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in document["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@pytest.fixture
def program() -> str:
    """Prometheus itself."""
    return tool("prometheus")


@pytest.fixture
def watched(program: str, nats_server: NatsServer, tmp_path: Path) -> Iterator[Launched]:
    """A node of support.watched, in which all of it has gone wrong that can without an end of the node."""
    with Launched(tmp_path / "node", "support.watched:app", servers=nats_server.url) as run:
        wait_until(lambda: len(run.log("cell up")) == 3, 120, "three cells up")
        yield run


@pytest.mark.timeout(600)
def test_prometheus_evaluates_everything(
    program: str, watched: Launched, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Each query and rule without an error, on metrics and labels that a node has; each shows something."""
    promtool("check", "metrics", text=watched.get("/metrics").text)
    config = read_yaml(CONFIG)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [watched.url.removeprefix("http://")]
    write_yaml(tmp_path / CONFIG.name, config)
    shutil.copy(RULES, tmp_path)
    with Prometheus(program, tmp_path / CONFIG.name, tmp_path) as prometheus:
        wait_until(lambda: prometheus.query("understudy_build_info"), 120, "scraped")
        deeds = ("reject", "retry", "die", *[""] * 40)
        publish(
            nats_server.url,
            *({"customer": f"c{number}", "deed": deed} for number, deed in enumerate(deeds)),
            subject="watched.ordered",
        )
        watched.wait_for_child("booker/0", generation=2)
        os.kill(watched.child("ops")["pid"], signal.SIGKILL)
        shown = expressions()
        later = {title: shown.pop(title) for title, query in list(shown.items()) if DISCONNECTED in query}
        wait_until_shown(prometheus, shown)
        asked = " ".join([*shown.values(), *later.values(), *(rule["expr"] for rule in rules())])
        for selector in sorted(set(SELECTOR.findall(asked))):
            assert prometheus.query(selector), f"nothing has {selector}"
        scraped = {name for name in prometheus.get("label/__name__/values") if name.startswith("understudy_")}
        on_dashboard = " ".join([*shown.values(), *later.values()])
        assert {bare(name) for name in scraped} == {bare(name) for name in NAME.findall(on_dashboard)}
        for variable in dashboard()["templating"]["list"][1:]:
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            (selector,) = SELECTOR.findall(metric.replace("$app", "watched"))
            assert all(series["metric"][label] for series in prometheus.query(selector))
        promtool("check", "metrics", text=watched.get("/metrics").text)
        nats_server.kill()
        wait_until_shown(prometheus, later)
        wait_until(lambda: "UnderstudyDisconnected" in alerting(prometheus), 120, "an alert")
        (group,) = prometheus.get("rules")["groups"]
        assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in rules()]
        assert {(rule["health"], rule.get("lastError", "")) for rule in group["rules"]} == {("ok", "")}


def bare(name: str) -> str:
    """Return a metric's name without what a histogram's series end in."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def wait_until_shown(prometheus: Prometheus, queries: dict[str, str]) -> None:
    """Return when each query has shown something."""
    left = dict(queries)

    def all_shown() -> bool:
        for title in [title for title, query in left.items() if prometheus.query(query)]:
            del left[title]
        return not left

    try:
        wait_until(all_shown, 120)
    except AssertionError as error:
        raise AssertionError(f"shows nothing: {left}") from error


def alerting(prometheus: Prometheus) -> set[str]:
    """Return the alerts that fire or would soon."""
    return {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}
