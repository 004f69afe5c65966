"""Dashboard, alert rules and scrape configuration name only what the services really export."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import promql_parser as promql
import pytest
import yaml

from cohortium_kit import db as kit_db
from cohortium_kit.metrics import Metrics
from cohortium_messages.registry import MESSAGE_TYPES
from cohortium_messages.runs import RunState, WindowEnd
from cohortium_messages.topology import SERVICE_NAMES, platform_topology
from cohortium_sim.bench import bench_study
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
SCRAPES = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
JOBS = {scrape["job_name"] for scrape in SCRAPES["scrape_configs"]}
BY_PROMETHEUS = {"job", "instance"}
VALUES = {
    "job": JOBS,
    "queue": {queue.name for queue in platform_topology().queues},
    "outcome": {"handled", "repeated", "parked", "forgotten", "postponed", "failed", "held", *get_args(WindowEnd)},
    "type": set(MESSAGE_TYPES),
    "state": {*get_args(RunState), "active", "granted"},
    "exchange": {exchange.name for exchange in platform_topology().exchanges},
}

Exported = dict[str, set[str]]
"""By the name of a sample, as Prometheus stores it: its labels."""


def queries() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def samples_of(metrics: Metrics) -> Exported:
    found: Exported = {}
    for name, instrument in metrics._instruments.items():
        labels = set(instrument._labelnames)
        match instrument._type:
            case "counter":
                found[f"{name}_total"] = labels
            case "histogram":
                found |= {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": labels, f"{name}_count": labels}
            case _:
                found[name] = labels
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):
            found |= {sample.name: set() for sample in family.samples}
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What five running services register; `up` is Prometheus' own, and what a RabbitMQ exports is asked of one in
    tests/integration/broker."""
    made: list[Metrics] = []

    class Noted(Metrics):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kit_db, "Metrics", Noted)
        asyncio.run(ask_services(tmp_path_factory.mktemp("exported")))
    found = {name: labels for metrics in made for name, labels in samples_of(metrics).items()}
    roles = {sample.labels["service"] for one in made for sample in next(iter(one.build.collect())).samples}
    assert roles == set(SERVICE_NAMES)
    of_the_broker = {name: set[str]() for _, query in queries() for name in re.findall(r"\brabbitmq_\w+", query)}
    return {**found, **of_the_broker, "up": set()}


async def ask_services(folder: Path) -> None:
    """Start the services as they run in production, with a port, and ask each for its measures."""
    (folder / "work").mkdir()
    table = folder / "table.csv"
    table.write_text("unused,label\n0,0\n", encoding="ascii")
    sites = tuple(SiteTable(name, table) for name in ("a", "b", "c"))
    simulation = Simulation(Plan(study=bench_study(10, 1, 3), sites=sites, out=folder / "out"), folder / "work")
    for config in simulation.files.configs.values():
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        config.write_text(yaml.safe_dump({**settings, "http_port": 0}), encoding="utf-8")
    try:
        await simulation.world.start_services()
        for role in SERVICE_NAMES:
            client = simulation.world.operator._clients[role]
            for _ in range(100):  # the page is there when the service runs
                if (answer := await client.get("/metrics")).status_code == 200:
                    break
                await asyncio.sleep(0.1)
            assert answer.status_code == 200
    finally:
        await simulation.clear()


def selectors(node: Any) -> Iterator[Any]:
    """Every selector of series in an expression."""
    match node:
        case promql.VectorSelector():
            yield node
        case promql.MatrixSelector():
            yield node.vector_selector
        case promql.Call():
            for argument in node.args:
                yield from selectors(argument)
        case promql.BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from selectors(node.expr)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise AssertionError(f"{type(node).__name__}: tell this test how to look into it")


def grouped_by(node: Any) -> Iterator[str]:
    """Every label that an aggregation keeps."""
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        yield from node.modifier.labels
    for child in ("expr", "lhs", "rhs"):
        if (inner := getattr(node, child, None)) is not None:
            yield from grouped_by(inner)
    for argument in getattr(node, "args", ()):
        yield from grouped_by(argument)


@pytest.mark.parametrize(("place", "query"), list(queries()), ids=lambda value: str(value)[:40])
def test_a_query_names_what_is_exported(place: str, query: str, exported: Exported) -> None:
    parsed = promql.parse(query)
    found = list(selectors(parsed))
    assert found
    known: set[str] = set(BY_PROMETHEUS)
    for selector in found:
        assert selector.name in exported, f"{place}: no service exports {selector.name}"
        known |= exported[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in exported[selector.name] | BY_PROMETHEUS, (
                f"{place}: {selector.name} has no {matcher.name}"
            )
            if matcher.name in VALUES:
                wanted = matcher.value if "Re" in str(matcher.op) else re.escape(matcher.value)
                parts = [wanted] if "." in wanted or "(" in wanted else wanted.split("|")
                for part in parts:
                    assert any(re.fullmatch(part, one) for one in VALUES[matcher.name]), f"{place}: {part} never occurs"
    assert set(grouped_by(parsed)) <= known, f"{place}: grouped by a label that is not there"


def test_nothing_that_is_exported_bears_a_label_that_grows_with_use(exported: Exported) -> None:
    assert {label for labels in exported.values() for label in labels}.isdisjoint({"site", "study", "run", "window"})


def test_every_measure_is_on_the_dashboard(exported: Exported) -> None:
    shown = {selector.name for _, query in queries() for selector in selectors(promql.parse(query))}
    hidden = {
        name
        for name in exported
        if name.startswith("cohortium_") and not name.endswith(("_sum", "_count")) and name not in shown
    }
    assert hidden == set()


def test_every_alert_has_its_entry_in_the_runbook() -> None:
    text = (ROOT / "deploy" / "runbooks" / "alerts.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"deploy/runbooks/alerts.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


def test_alert_texts_use_labels_that_the_query_leaves() -> None:
    for rule in RULES:
        left = set(grouped_by(promql.parse(rule["expr"]))) | BY_PROMETHEUS
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= left, rule["alert"]


def test_prometheus_scrapes_every_service_of_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    overlay = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert {f"cohortium-{role}" for role in SERVICE_NAMES} < JOBS
    for scrape in SCRAPES["scrape_configs"]:
        for target in scrape["static_configs"][0]["targets"]:
            assert target.partition(":")[0] in compose["services"]
    for config in overlay["configs"].values():
        assert (ROOT / "deploy" / config["file"]).is_file(), "paths count from the first compose file's folder"
    mounted = {entry["source"] for service in overlay["services"].values() for entry in service["configs"]}
    assert mounted == set(overlay["configs"])
    assert set(overlay["services"]["prometheus"]["networks"]) <= set(compose["networks"])
    for service in overlay["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert mine.isdisjoint(cells), panel["title"]
        cells |= mine
