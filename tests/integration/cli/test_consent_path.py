"""A governed study on real parts, by the command line alone: agree, approve by two, run, stop by one.

The federation's part is signed by the commands that people use; the hospitals' documents come signed from the test.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_operator_path import (
    HOSPITALS,
    STUDY,
    Machine,
    finished,
    join_hospitals,
    machine,
    make_federation,
    sign_in,
)

from cohortium_messages.consent import ConsentFile, Document
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.study_file import parse_study
from cohortium_platform.identity import read_key
from cohortium_protocol.signing import IdentityKey
from consent_stage import Person, Plane

__all__ = ["machine"]
GOVERNED = STUDY.replace("governance: trial\n", "").replace("operator-path", "governed")


@pytest.fixture
def governed(machine: Machine) -> Machine:
    (machine.folder / "study.yaml").write_text(GOVERNED, encoding="utf-8")
    return machine


def write(machine: Machine, name: str, file: ConsentFile) -> str:
    (machine.folder / name).write_text(file.model_dump_json(), encoding="utf-8")
    return name


def read(machine: Machine, name: str) -> ConsentFile:
    return ConsentFile.model_validate_json((machine.folder / name).read_text())


def key_file(machine: Machine, person: Person) -> str:
    name = f"{person.name.split()[0].lower()}.key"
    path = machine.folder / name
    path.write_text(person.key.to_seed().hex() + "\n")
    path.chmod(0o600)
    return name


def plane_of(machine: Machine) -> Plane:
    """Everybody's keys, but the hospitals': those never leave their machines."""
    keys = [read_key(machine.folder / "fed" / "governance" / f"officer-{number}.key") for number in (1, 2)]
    study = parse_study(GOVERNED, file="study.yaml")
    sites = [
        SiteId(json.loads((machine.folder / f"{name}.invitation.json").read_text())["site_id"]) for name in HOSPITALS
    ]
    nobody = IdentityKey.generate()
    return Plane(
        now=datetime.now(UTC),
        study=StudyId(study.name),
        study_digest=study.digest(),
        officers=tuple(keys),
        site_keys=dict.fromkeys(sites, nobody),
    )


def fields(document: Document) -> str:
    """A document as a person writes it: YAML."""
    return yaml.safe_dump(document.model_dump(mode="json", exclude_none=True))


def federation_agrees(machine: Machine, plane: Plane) -> None:
    """Officers vouch for the study's lead; the lead writes the version, both officers approve it."""
    lead = plane.card(plane.lead)
    words = ("--person", lead.person, "--name", lead.name, "--role", "study_lead", "--out", "lead.json")
    machine.run("consent", "card", *words, "--public-key", lead.key.hex())
    for number in (1, 2):
        machine.run("consent", "vouch", "lead.json", "--key", f"fed/governance/officer-{number}.key")
    machine.run("consent", "add", "lead.json")
    (machine.folder / "version.yaml").write_text(fields(plane.version()), encoding="utf-8")
    machine.run("consent", "new", "version.yaml", "--out", "version.json")
    words = ("consent", "sign", "version.json", "--deed")
    machine.run(*words, "submit", "--name", lead.name, "--key", key_file(machine, plane.lead))
    for number in (1, 2):
        machine.run(*words, "approve", "--name", f"Officer {number}", "--key", f"fed/governance/officer-{number}.key")
    machine.run("consent", "add", "version.json")


def hospital_agrees(machine: Machine, plane: Plane, hospital: str, site: SiteId, config: str) -> None:
    people = [plane.admin(site), *plane.approvers(site)]
    bare = tuple(plane.card(one).model_copy(update={"signatures": ()}) for one in people)
    cards = write(machine, f"{hospital}-people.json", ConsentFile(people=bare))
    machine.run("consent", "vouch", cards, "--config", config)
    signed = plane.signed(site, plane.parts(site))
    mine = tuple(signed[name] for name in ("agreement", "ethics", "terms", "basis"))
    file = ConsentFile(people=read(machine, cards).people, records=mine)
    machine.run("consent", "add", write(machine, f"{hospital}.json", file), "--config", config)


def standing_of(machine: Machine, *where: str) -> dict[str, str]:
    return {item["kind"]: item["standing"] for item in machine.facts("consent", "list", *where)}


def permitted(machine: Machine, config: str) -> Any:
    """What the hospital's own copies say; the exit code says it, too."""
    done = machine.attempt("consent", "check", "governed", "--config", config, "--json")
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["permitted"] else 1)
    return said


@pytest.mark.real
@pytest.mark.long
@pytest.mark.timeout(900)
def test_agree_approve_run_and_stop_with_the_command_line_alone(governed: Machine) -> None:
    machine = governed
    make_federation(machine)
    configs = join_hospitals(machine)
    run_id = machine.facts("study", "submit", "study.yaml")["run_id"]
    sign_in(machine)
    plane = plane_of(machine)
    sites = list(plane.site_keys)
    machine.until(lambda: machine.facts("site", "offers", "--config", configs[0]), "the offer")
    refused = machine.attempt("site", "approve", "governed", "--config", configs[0], "--approver", "Dr. Ada")
    assert refused.returncode == 1
    assert "needs an approval that two people of this hospital signed" in refused.stderr
    federation_agrees(machine, plane)
    for hospital, site, config in zip(HOSPITALS, sites, configs, strict=True):
        hospital_agrees(machine, plane, hospital, site, config)
        machine.until(lambda config=config: "study_version" in standing_of(machine, "--config", config), "the version")
        machine.run("site", "approve", "governed", "--config", config, "--approver", "unused")
        assert permitted(machine, config)["reasons"] == []

    status = machine.until(lambda: finished(machine, run_id), "the end of the run", timeout_s=240)
    assert sorted(status["rounds_done"][-1]["cohort"]) == sorted(HOSPITALS)

    # One person of one hospital ends its data-use terms: nothing more is done there, and everybody sees it.
    terms = next(one for one in machine.facts("consent", "list", "--config", configs[0]) if one["kind"] == "terms")
    machine.run("consent", "get", terms["digest"][:16], "--config", configs[0], "--out", "terms.json")
    bea = plane.approvers(sites[0])[0]
    machine.run(
        "consent", "sign", "terms.json", "--deed", "terminate", "--name", bea.name, "--key", key_file(machine, bea)
    )
    machine.run("consent", "add", "terms.json", "--config", configs[0])
    assert [one["code"] for one in permitted(machine, configs[0])["reasons"]] == ["TERMS_TERMINATED"]
    theirs = lambda: [  # noqa: E731
        one
        for one in machine.facts("consent", "list")
        if one["digest"] == terms["digest"] and one["standing"] == "terminated"
    ]
    machine.until(theirs, "the operator's copy")
    second = machine.facts("study", "submit", "study.yaml")["run_id"]

    def denied() -> bool:
        return "TERMS_TERMINATED" in json.dumps(machine.facts("run-status", second))

    machine.until(denied, "the refusal of a second run")
    assert not Path(machine.folder / "model.zip").exists()
