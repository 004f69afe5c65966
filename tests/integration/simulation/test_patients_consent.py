"""A whole federation in which half of each hospital's patients said no: their rows are not read, nobody is named. And
one in which a patient says no in the middle of a run."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.simulation.noise import in_round, started
from typer.testing import CliRunner

from cohortium_cli.app import app as command_line
from cohortium_cli.federation import ConnectorSpec
from cohortium_connector.commands import LocalSite
from cohortium_connector.consent_commands import LocalConsent
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.bus import Outgoing
from cohortium_kit.memory import MemoryBus
from cohortium_messages.consent import ConsentFile, PersonCard, Record
from cohortium_messages.study_file import parse_study
from cohortium_protocol.consent.files import sign_documents
from cohortium_protocol.signing import IdentityKey
from cohortium_sim import simulate
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import Simulation
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

PERSONS = 60
STUDY = """
apiVersion: cohortium/study/1
governance: trial
name: who-consents
purpose: half of the patients said no
dataset:
  features: [{name: age, type: float, range: [0, 120]}]
  label: {name: ill, type: binary}
  split: {test: 0.2}
recipe: {trainer: torch.logistic}
federation: {rounds: 2, min_sites: 3}
"""


def decided(person: str, word: str, date: str = "2026-01-01") -> str:
    """A line of a hospital's consent source."""
    who = {"resourceType": "Consent", "subject": {"reference": f"Patient/{person}"}, "date": date}
    return json.dumps(who | {"status": "active", "decision": word}) + "\n"


def person(site: str, number: int) -> str:
    return f"ZZCANARY-{site}-{number:02}"


def site_table(folder: Path, name: str) -> SiteTable:
    """Every second patient says no, and has an age that the study refuses: whoever reads the row cannot go on."""
    rows, decisions = ["mrn,age,ill"], []
    for number in range(PERSONS):
        permits = number % 2 == 0
        rows.append(f"{person(name, number)},{30 + number if permits else 999},{number // 2 % 2}")
        decisions.append(decided(person(name, number), "permit" if permits else "deny"))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(rows) + "\n")
    path.with_suffix(".ndjson").write_text("".join(decisions))
    return SiteTable(name, path)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that anybody hands to the broker; the hospitals' tables are bound to their patients' consent."""
    published, create, bodies = MemoryBus.publish, simulate.create_connector, list[bytes]()

    def bound(source: Mapping[str, Any]) -> dict[str, Any]:
        consent = {"kind": "fhir", "path": str(Path(source["path"]).with_suffix(".ndjson"))}
        return {**source, "person_column": "mrn", "consent": consent}

    def created(spec: ConnectorSpec) -> Path:
        datasets = {name: bound(source) for name, source in spec.datasets.items()}
        return create(dataclasses.replace(spec, datasets=datasets))

    async def publish(self: MemoryBus, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        bodies.append(outgoing.body)
        await published(self, outgoing, timeout_s=timeout_s)

    monkeypatch.setattr(simulate, "create_connector", created)
    monkeypatch.setattr(MemoryBus, "publish", publish)
    return bodies


def snapshots(said: list[bytes]) -> list[dict[str, Any]]:
    """What hospitals said of the cohorts that they took."""
    events = [json.loads(body) for body in said if b"cohortium.audit.consent_snapshot.v1" in body]
    return [one["data"] for one in events if "data" in one]  # the log's stream says them again, as entries


async def test_who_said_no_is_in_no_sum_and_nobody_is_named(said: list[bytes], tmp_path: Path) -> None:
    sites = tuple(site_table(tmp_path, name) for name in ("north", "south", "east"))
    plan = check_plan(Plan(study=parse_study(STUDY), sites=sites, out=tmp_path / "out"))
    outcome = await simulate.run_plan(plan, live=False)
    assert outcome.result.state == "FINISHED"
    told = snapshots(said)
    assert len({one["root"] for one in told}) == len(told) >= 6
    assert {(one["persons"], one["permitted"], one["denied"], one["expired"]) for one in told} == {
        ("60-69", "30-39", "30-39", "<11")
    }
    assert b"ZZCANARY" not in b"".join(said)
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and "patients" not in file.parts]
    assert written
    assert not [file for file in written if b"ZZCANARY" in file.read_bytes()]


def config_of(simulation: Simulation, name: str) -> Path:
    return simulation.files.directory / "sites" / simulation.sites[name].site_id / "connector.yaml"


async def said_to_the_study(simulation: Simulation, name: str, who: str) -> int:
    """The hospital says that somebody is to be excluded; one person signs. Returns the first round that used them."""
    settings, study = ConnectorSettings.load(config_of(simulation, name)), simulation.plan.study.name
    now, key = simulation.clock.now(), IdentityKey.generate()
    async with LocalSite.open(settings) as site:
        document = await site.exclusion(study, who, "stop_future")
    async with LocalConsent.open(settings) as consent:
        card = PersonCard(
            person="ada",
            name="Ada Admin",
            role="site_admin",
            site_id=consent.site_id,
            key=key.public,
            not_before=now - timedelta(days=1),
            not_after=now + timedelta(days=1),
        )
        file = ConsentFile(people=(consent.vouch(card),), records=(Record(document=document),))
        await consent.add(sign_documents(file, "submit", "Ada Admin", now, key))
    assert document.from_round is not None
    return document.from_round


async def case_is(simulation: Simulation, *states: str) -> dict[str, Any]:
    for _ in range(6000):
        for case in await simulation.world.operator.withdrawals():
            if case["state"] in states:
                return case
        await asyncio.sleep(0.05)
    raise AssertionError(f"no withdrawal came to {states}")


async def command(*words: object) -> dict[str, Any]:
    """What a command says in JSON. It has a loop of its own."""
    done = await asyncio.to_thread(CliRunner().invoke, command_line, [str(word) for word in (*words, "--json")])
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


async def test_who_says_no_during_a_run_is_in_no_later_cohort_and_the_hospital_proves_it(
    said: list[bytes], tmp_path: Path
) -> None:
    """The run goes on: which round somebody left in would tell the others about them. The case lists what learnt from
    them, with the models that are made from it later."""
    sites = tuple(site_table(tmp_path, name) for name in ("north", "south", "east"))
    study = parse_study(STUDY.replace("rounds: 2", "rounds: 3"))
    plan = check_plan(Plan(study=study, sites=sites, out=tmp_path / "out"))
    leaves, stays = person("north", 0), person("north", 2)
    async with started(plan) as simulation:
        operator = simulation.world.operator
        run_id = await simulation.submit()
        await in_round(operator, run_id, 1)
        with (tmp_path / "north.ndjson").open("a") as source:
            source.write(decided(leaves, "deny", "2026-02-01"))
        assert await said_to_the_study(simulation, "north", leaves) == 0
        case = await case_is(simulation, "EFFECTIVE")
        assert (case["type"], case["from_round"], case["site_id"]) == (
            "patient_set", 0, simulation.sites["north"].site_id
        )  # fmt: skip
        status = await operator.run(run_id)
        for _ in range(6000):
            if status.state in simulate.FINAL:
                break
            await asyncio.sleep(0.05)
            status = await operator.run(run_id)
        assert (status.state, status.reason) == ("FINISHED", "")
        assert [set(one.cohort) for one in status.rounds_done] == [{"north", "south", "east"}] * 3, "nobody was stopped"

        told = [one for one in snapshots(said) if one["site_id"] == simulation.sites["north"].site_id]
        assert {(one["persons"], one["permitted"]) for one in told} <= {("60-69", "30-39"), ("60-69", "20-29")}
        assert told[0]["permitted"] == "30-39"
        assert told[-1]["permitted"] == "20-29"
        proof, roots = tmp_path / "proof.json", [word for one in told for word in ("--root", one["root"])]
        for who, present in ((leaves, False), (stays, True)):
            words = ("--config", config_of(simulation, "north"), "--out", proof, "--person", who)
            facts = await command("consent", "prove", study.name, *words)
            assert facts["cohorts"] == len(told)
            assert (facts["present"] == len(told)) == present
            facts = await command("consent", "check-proof", proof, *roots)
            assert facts["wrong"] == 0
            word = "was" if present else "was not"
            assert facts["verdicts"][-1].startswith(f"{who} {word} in cohort")

        for _ in range(600):
            case = await case_is(simulation, "EFFECTIVE")
            if len(case["models"]) == 4:
                break
            await asyncio.sleep(0.05)
        assert [one["model"]["version"] for one in case["models"]] == list(range(4)), "also those made later"
        await simulation.fetch(run_id, status)
        report = verify_bundle(plan.out / "audit", list(simulation.files.trust.governance_keys))
        assert report.verified, report.text()
    assert b"ZZCANARY" not in b"".join(said)
