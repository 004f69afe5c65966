"""A patient's name is planted in everything that a hospital has, and looked for in every byte that anybody else sees.

Planted: identifiers, free text and column names in tables (CSV, Parquet), consent decisions (FHIR, a table), opt-out
lists, paths of files, and in a hospital whose table is refused, in values, labels and a column's name. Looked for: in
whole messages with their headers and properties, HTTP answers, logs and output of every part, model and audit bundles,
databases and the spools, but for the two files that hold a hospital's own patients there.
"""

import asyncio
import dataclasses
import io
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest
import structlog
from fastapi.routing import iter_route_contexts
from tests.integration.simulation.noise import started

from canary import CANARY, hashes_of, leaks
from cohortium_cli.federation import ConnectorSpec
from cohortium_cli.operator import SERVICES
from cohortium_kit.bus import Outgoing
from cohortium_kit.logging import configure_logging
from cohortium_kit.memory import MemoryBus
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_messages.study_file import parse_study
from cohortium_sim import simulate
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import Simulation
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

PERSONS = 48
SITES = ("north", "south", "east", "west")
RECIPES = {
    "torch.logistic": "recipe: {trainer: torch.logistic}\nfederation: {rounds: 2, min_sites: 3}",
    "lightgbm": (
        "recipe: {trainer: lightgbm, rounds: 3, params: {num_leaves: 4, max_bin: 15, min_data_in_leaf: 5}}\n"
        "federation: {min_sites: 3}"
    ),
}
STUDY = """
apiVersion: cohortium/study/1
governance: trial
name: nothing-leaves
purpose: nobody is named
dataset:
  features:
    - {name: age, type: float, range: [0, 120]}
    - {name: sex, type: category, levels: [F, M]}
  label: {name: ill, type: binary}
  split: {test: 0.2}
"""


def person(site: str, number: int) -> str:
    return f"{CANARY}-{site}-{number:02}"


PEOPLE = hashes_of(person(site, number) for site in SITES for number in (2, 3, 8))
"""Some who take part, and one who opted out where there is a list."""


def rows(site: str) -> list[dict[str, str]]:
    """A hospital's patients; those of `west` do not fit the study, in three ways."""
    dice = random.Random(site)  # noqa: S311 - patients of a test
    found = []
    for number in range(PERSONS):
        age = dice.randint(30, 80)
        found.append(
            {
                "mrn": person(site, number),
                "age": f"{age}",
                "sex": dice.choice("FM"),
                "ill": str(int(age + dice.randint(-20, 20) > 55)),
                f"{CANARY}_notes": f"{CANARY} came at night",
            }
        )
    if site == "west":
        found[5] |= {"age": f"{CANARY} years"}
        found[6] |= {"sex": CANARY}
        found[7] |= {"ill": f"{CANARY}-yes"}
    return found


def write_csv(path: Path, table: list[dict[str, str]]) -> None:
    lines = [",".join(table[0]), *(",".join(row.values()) for row in table)]
    path.write_text("\n".join(lines) + "\n")


def fhir(who: str, word: str) -> str:
    said = {"resourceType": "Consent", "subject": {"reference": f"Patient/{who}"}, "date": "2026-01-01"}
    return json.dumps(said | {"status": "active", "decision": word}) + "\n"


def planted(folder: Path, site: str) -> dict[str, Any]:
    """A hospital's files, and the dataset of its settings."""
    home = folder / f"{CANARY}-{site}"
    home.mkdir()
    table = home / "patients.csv"
    write_csv(table, rows(site))
    source: dict[str, Any] = {"path": str(table), "person_column": "mrn"}
    optout = home / "optout.txt"
    optout.write_text("".join(f"{person(site, number)}\n" for number in range(0, PERSONS, 8)))
    match site:
        case "north":
            consents = home / "consents.ndjson"
            words = ["deny" if number % 6 == 1 else "permit" for number in range(PERSONS)]
            consents.write_text("".join(fhir(person(site, number), word) for number, word in enumerate(words)))
            source |= {"consent": {"kind": "fhir", "path": str(consents)}}
        case "south":
            parquet = home / "patients.parquet"
            duckdb.read_csv(str(table), all_varchar=True).write_parquet(str(parquet))
            table.unlink()
            source |= {"path": str(parquet), "optout_path": str(optout)}
        case "east":
            consents = home / "consents.csv"
            write_csv(
                consents,
                [
                    {"person_id": person(site, number), "decision": "permit", "recorded_at": "2026-01-01"}
                    for number in range(PERSONS)
                ],
            )
            source |= {"consent": {"kind": "table", "path": str(consents)}, "optout_path": str(optout)}
    return source


def plan_of(folder: Path, trainer: str, **more: Any) -> Plan:
    sites = tuple(SiteTable(site, folder / f"{CANARY}-{site}") for site in SITES)
    return check_plan(Plan(study=parse_study(STUDY + RECIPES[trainer]), sites=sites, out=folder / "out", **more))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The hospitals' tables, bound to their patients' consent."""
    found = {site: planted(tmp_path, site) for site in SITES}
    create = simulate.create_connector

    def created(spec: ConnectorSpec) -> Path:
        datasets = {name: found[Path(source["path"]).name.partition("-")[2]] for name, source in spec.datasets.items()}
        return create(dataclasses.replace(spec, datasets=datasets))

    monkeypatch.setattr(simulate, "create_connector", created)
    return found


class Heard:
    """Everything that was listened to, by where."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.answers: list[bytes] = []
        self.log = io.StringIO()

    def everything(self, files: Mapping[str, bytes], output: str) -> dict[str, bytes]:
        return {
            **files,
            "messages": b"\n".join(self.messages),
            "answers": b"\n".join(self.answers),
            "log": self.log.getvalue().encode(),
            "output": output.encode(),
        }


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """Every message as a broker would see it, with its headers and properties; every HTTP answer with its headers."""
    found, published, asked = Heard(), MemoryBus.publish, httpx.AsyncClient.send

    async def publish(self: MemoryBus, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        found.messages += [outgoing.body, repr(dataclasses.replace(outgoing, body=b"")).encode()]
        await published(self, outgoing, timeout_s=timeout_s)

    async def send(self: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = await asked(self, request, **more)
        found.answers += [answer.content, repr(answer.headers).encode()]
        return answer

    monkeypatch.setattr(MemoryBus, "publish", publish)
    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    configure_logging(level="debug", output="json", service="simulation", stream=found.log)
    yield found
    configure_logging(stream=sys.stderr)


async def ask_everything(simulation: Simulation, run_id: str) -> int:
    """Every question that can be asked over HTTP, of every service; how many were answered."""
    site = simulation.sites["north"].site_id
    study = simulation.plan.study.name
    known = {"study_id": study, "log": study, "site_id": site, "site": site, "run_id": run_id}
    answered = 0
    for role in SERVICES:
        client = simulation.world.operator._clients[role]
        app = client._transport.app  # type: ignore[attr-defined]
        for route in iter_route_contexts(app.routes):
            path, methods = getattr(route, "path", None), getattr(route, "methods", None) or ()
            if path is None or "GET" not in methods:
                continue
            for name, value in known.items():
                path = path.replace(f"{{{name}}}", value)
            found = await client.get(path, params={"study": study, "site": site, "index": 0, "from": 1})
            answered += found.status_code == 200
    return answered


def files_under(folder: Path, *, but: frozenset[str]) -> dict[str, bytes]:
    """Every file, but those of a hospital's own patients: whose rows are read, and the tree that proves it later."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not but.intersection(name.parts) and name.name != "connector.yaml":
            found[str(name)] = str(name).encode() + b"\n" + file.read_bytes()
    return found


def search(everything: Mapping[str, bytes]) -> dict[str, list[str]]:
    found = {name: leaks(content, PEOPLE) for name, content in everything.items()}
    return {name: one for name, one in found.items() if one}


@pytest.mark.parametrize("trainer", sorted(RECIPES))
async def test_nothing_that_leaves_a_hospital_names_a_patient(
    trainer: str,
    sources: dict[str, dict[str, Any]],
    heard: Heard,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plan = plan_of(tmp_path, trainer)
    async with started(plan) as simulation:
        run_id = await simulation.submit()
        status = await simulation.watch(run_id, None)
        assert (status.state, status.reason) == ("FINISHED", "")
        await simulation.fetch(run_id, status)
        report = verify_bundle(plan.out / "audit", list(simulation.files.trust.governance_keys))
        assert report.verified, report.text()
        assert await ask_everything(simulation, run_id) > 20
        text = b"".join(heard.messages)
        for word in (b"optout_list", b'"fhir"', b'"table"', b"task_declined", b"consent_snapshot"):
            assert word in text, "every hospital did its part, and one refused"
        files = {
            **files_under(tmp_path / "work", but=frozenset({"patients"})),
            **files_under(plan.out, but=frozenset()),
        }
        assert {"model", "audit"} <= {name.partition("/")[0] for name in files}
        assert any(name.endswith("spool.db") for name in files)
        # What hears nothing finds nothing: the same ears, and the same search, on something that does leak.
        found = search(heard.everything(files, "".join(capfd.readouterr())))
        assert not found, found
        await leak_everywhere(simulation)
        leaking = search(heard.everything({}, "".join(capfd.readouterr())))
    assert set(leaking) == {"messages", "answers", "log", "output"}


async def leak_everywhere(simulation: Simulation) -> None:
    """What must be found: in a header of a message, an answer, a log, and what a process prints."""
    who = person("north", 3)
    bus = simulation.world._make_bus("leak")  # type: ignore[attr-defined]
    await bus.connect()
    message = Outgoing("events", "-.leak", b"{}", "leak-1", "leak", {"hint": who.encode().hex()})
    await bus.publish(message)
    await bus.close()
    client = simulation.world.operator._clients["audit"]
    app = client._transport.app  # type: ignore[attr-defined]

    @app.get("/leak")
    async def leak() -> str:
        return who

    # Not through the guard, which knows no such route: what counts is that the answer is heard.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), headers=client.headers) as asking:
        await asking.get("http://audit/leak")
    structlog.get_logger("leak").info("leaked", name=who)
    sys.stdout.write(f"{who}\n")


class Ear(CuttingProxy):
    """Hears what the hospitals and the services say to the broker, byte for byte."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.said: list[bytearray] = []

    async def _leave(self, source: asyncio.StreamReader, under_way: "asyncio.Queue[tuple[float, bytes]]") -> None:
        said, read = bytearray(), source.read
        self.said.append(said)

        async def heard(most: int = -1) -> bytes:
            piece = await read(most)
            said.extend(piece)
            return piece

        source.read = heard  # type: ignore[method-assign]
        await super()._leave(source, under_way)


@pytest.mark.real
async def test_nor_does_anything_on_the_wire_or_in_the_logs_of_real_processes(
    sources: dict[str, dict[str, Any]],
    tmp_path: Path,
    amqp_url: str,
    postgres_url: str,
) -> None:
    """Every part a process of its own, as in production; between all of them and RabbitMQ somebody listens."""
    address = httpx.URL(amqp_url)
    ear = Ear(address.host, address.port or 5672)
    await ear.start()
    try:
        through = str(address.copy_with(host="127.0.0.1", port=ear.port))
        plan = plan_of(tmp_path, "torch.logistic", amqp_url=through, database_url=postgres_url, processes=True)
        async with started(plan) as simulation:
            run_id = await simulation.submit()
            status = await simulation.watch(run_id, None)
            assert (status.state, status.reason) == ("FINISHED", "")
            await simulation.fetch(run_id, status)
        files = {
            **files_under(tmp_path / "work", but=frozenset({"patients"})),
            **files_under(plan.out, but=frozenset()),
        }
    finally:
        await ear.close()
    logs = {name for name in files if name.startswith("logs/")}
    assert len(logs) == len(SERVICES) + len(SITES)
    assert all(len(files[name]) > 1000 for name in logs)
    wire = b"\n".join(map(bytes, ear.said))
    for word in (b"cohortium.audit.consent_snapshot.v1", b"cohortium-signature", b"optout_list"):
        assert word in wire
    found = search({**files, "wire": wire})
    assert not found, found
