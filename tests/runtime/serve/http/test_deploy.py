"""The files in deploy/ and the image: read as they will be, and compared with the program that they start."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from flowblending.runtime.serve.http.cli import parser
from flowblending.runtime.serve.http.keys import VARIABLE
from flowblending.runtime.serve.http.messages import Made
from flowblending.runtime.serve.http.metrics import Metrics

ROOT = Path(__file__).parents[4]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "fb-serve.json").read_text())
PROMETHEUS = {"instance", "job"}
"""Labels that a scrape adds."""
SELECTOR = re.compile(r"\b((?:flowblending|process)_\w+)(?:\{([^}]*)\})?")


def samples() -> dict[str, set[str]]:
    """The labels of every sample that a service has, once everything has happened once."""
    metrics = Metrics()
    metrics.state({}, {"worker 1": 0})
    metrics.waited(1)
    metrics.made("wan", Made(id="x", seconds={"vae": 1.0}, calls={"large": 1}, full={"large": 2}, texts=(1, 1)))
    metrics.failed("disk_full")
    metrics.crashed()
    metrics.replicas({"running": 1})
    metrics.requested("GET", "/health", 200, 0.1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


SAMPLES = samples()


def faults(query: str) -> list[str]:
    """What a query names that no service has."""
    found, labels = [], {"le"}
    for name, matchers in SELECTOR.findall(query):
        if name not in SAMPLES:
            found.append(name)
            continue
        labels |= SAMPLES[name] | PROMETHEUS
        found += [each for each in re.findall(r"(\w+)\s*[=!]~?", matchers) if each not in SAMPLES[name] | PROMETHEUS]
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query):
        found += [each.strip() for each in group.split(",") if each.strip() not in labels]
    return found


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_the_dashboard_asks_for_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        query = target["expr"]
        assert SELECTOR.search(query)
        assert faults(query) == []
        told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        groups = re.findall(r"\bby \(([^)]*)\)", query)
        grouped = {each.strip() for group in groups for each in group.split(",")}
        assert told <= (grouped or set().union(*(SAMPLES[name] for name, _ in SELECTOR.findall(query))))


def test_the_dashboard_shows_every_figure() -> None:
    queries = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for name, _ in SELECTOR.findall(queries)}
    there = {re.sub(r"_(bucket|count|sum)$", "", name) for name in SAMPLES if name.startswith("flowblending_")}
    assert {name for name in there if not name.endswith("_created")} <= asked


def test_a_query_of_something_else_is_found() -> None:
    assert faults("rate(flowblending_videos[5m])") == ["flowblending_videos"]
    assert faults('sum by (modle) (flowblending_videos_total{kind="x"})') == ["kind", "modle"]
    (variable,) = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert faults(variable["query"]) == []


def test_the_figures_in_the_document_are_there() -> None:
    text = (ROOT / "docs" / "serve.md").read_text()
    told = set(re.findall(r"`(flowblending_\w+)", text))
    there = {name for name in SAMPLES if name.startswith("flowblending_") and not name.endswith("_created")}
    assert told
    assert told == {re.sub(r"_(bucket|count|sum)$", "", name) for name in there}


def dockerfile(instruction: str, stage: str) -> list[str]:
    """The words of an instruction in a stage of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text()
    (block,) = re.findall(rf"^FROM \S+ AS {stage}$(.*?)(?=^FROM|\Z)", text, re.DOTALL | re.MULTILINE)
    found: list[str] = json.loads(re.findall(rf"^{instruction} (\[.*\])$", block, re.MULTILINE)[0])
    return found


def test_the_container_starts_the_program_as_it_takes_it() -> None:
    serve = COMPOSE["services"]["serve"]
    program, *words = dockerfile("ENTRYPOINT", serve["build"]["target"])
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    command = re.sub(r"\$\{MODELS[^}]*\}", "wan ltx", serve["command"])
    told = parser().parse_args([*words, *shlex.split(command)])
    assert [str(each) for each in told.bundles] == ["wan", "ltx"]
    assert str(told.data) in {volume.partition(":")[2] for volume in serve["volumes"]}
    assert serve["ports"][0].endswith(f":{told.port}")
    assert VARIABLE in serve["environment"]
    assert float(serve["stop_grace_period"].rstrip("s")) > told.drain
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (default,) = re.findall(r":-([\w,-]+)\}", serve["build"]["args"]["EXTRAS"])
    assert set(default.split(",")) <= extras.keys()
    assert {"serve", "video"} <= set(default.split(","))
    assert dockerfile("ENTRYPOINT", "run") == ["fb-run"]
    assert (ROOT / "Dockerfile").read_text().rindex("AS run") > (ROOT / "Dockerfile").read_text().rindex("AS serve")


def test_what_the_services_name_is_there() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("${") or source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume
        for secret in service.get("secrets", ()):
            assert secret in COMPOSE["secrets"]
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = scrape["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert services[name]["ports"][0].endswith(f":{port}")
    file = Path(scrape["authorization"]["credentials_file"])
    assert file.parent == Path("/run/secrets")
    assert file.name in services["prometheus"]["secrets"]
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert sources[0]["url"] == "http://prometheus:9090"
