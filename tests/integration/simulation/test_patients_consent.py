"""A whole federation in which half of each hospital's patients said no: their rows are not read, nobody is named."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cohortium_cli.federation import ConnectorSpec
from cohortium_kit.bus import Outgoing
from cohortium_kit.memory import MemoryBus
from cohortium_messages.study_file import parse_study
from cohortium_sim import simulate
from cohortium_sim.plan import Plan, SiteTable, check_plan

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(300)]

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


def site_table(folder: Path, name: str) -> SiteTable:
    """Every second patient says no, and has an age that the study refuses: whoever reads the row cannot go on."""
    rows, decisions = ["mrn,age,ill"], []
    for number in range(PERSONS):
        person, permits = f"ZZCANARY-{name}-{number:02}", number % 2 == 0
        rows.append(f"{person},{30 + number if permits else 999},{number // 2 % 2}")
        who = {"resourceType": "Consent", "subject": {"reference": f"Patient/{person}"}, "date": "2026-01-01"}
        decisions.append(who | {"status": "active", "decision": "permit" if permits else "deny"})
    path = folder / f"{name}.csv"
    path.write_text("\n".join(rows) + "\n")
    path.with_suffix(".ndjson").write_text("".join(json.dumps(one) + "\n" for one in decisions))
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


async def test_who_said_no_is_in_no_sum_and_nobody_is_named(said: list[bytes], tmp_path: Path) -> None:
    sites = tuple(site_table(tmp_path, name) for name in ("north", "south", "east", "west"))
    plan = check_plan(Plan(study=parse_study(STUDY), sites=sites, out=tmp_path / "out"))
    outcome = await simulate.run_plan(plan, live=False)
    assert outcome.result.state == "FINISHED"
    events = [json.loads(body) for body in said if b"cohortium.audit.consent_snapshot.v1" in body]
    snapshots = [one for one in events if "data" in one]  # the log's stream says them again, as entries
    told = [one["data"] for one in snapshots]
    assert len({one["root"] for one in told}) == len(told) >= 8
    assert {(one["persons"], one["permitted"], one["denied"], one["expired"]) for one in told} == {
        ("60-69", "30-39", "30-39", "<11")
    }
    assert b"ZZCANARY" not in b"".join(said)
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and "patients" not in file.parts]
    assert written
    assert not [file for file in written if b"ZZCANARY" in file.read_bytes()]
