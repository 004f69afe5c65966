"""The cohort of a study that is no trial: frozen when the hospital approves, said with each piece of work, and counted
in rows where the table names no patients."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from cohortium_hospital import __main__ as program
from connector_world import STUDY, World
from structlog.testing import capture_logs
from typer.testing import CliRunner

from canary import leaks
from cohortium_cli.app import app as command_line
from cohortium_cli.consent_proofs import PROOFS
from cohortium_connector.approving import CohortNotTaken
from cohortium_connector.commands import LocalSite, NoSuchOffer, RowsNotPersons
from cohortium_connector.consent_commands import LocalConsent
from cohortium_connector.training.jobs import ComputeStatistics
from cohortium_messages.consent import ConsentFile, DocumentsShared
from cohortium_messages.events import ConsentSnapshot
from cohortium_messages.governance import GrantedCohort, GrantGiven
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import Ready
from cohortium_messages.study import Study
from cohortium_protocol.documents import grant_digest
from consent_stage import Plane


def rows(world: World, count: int) -> None:
    """So many patients with one row each are in the table."""
    lines = "".join(f"ZZCANARY-{number:03},{40 + number},{number % 2}\n" for number in range(count))
    world.table.write_text("mrn,age,disease\n" + lines)


def source(world: World, *, named: bool) -> dict[str, Any]:
    return {"path": str(world.table), **({"person_column": "mrn"} if named else {})}


def papers(world: World, **terms: Any) -> ConsentFile:
    """All that the study needs, with everybody's signatures."""
    plane = Plane(
        now=world.clock.now(),
        study=StudyId("heart"),
        study_digest=world.study.digest(),
        officers=tuple(world.officers),
        site_keys={world.site_id: world.app.desk.identity.key},
    )
    records = plane.signed(world.site_id, plane.parts(world.site_id, terms=terms))
    return ConsentFile(people=plane.cards(), records=tuple(records.values()))


@contextlib.asynccontextmanager
async def hospital(
    folder: Path,
    *,
    count: int = 40,
    listed: bool = True,
    signed: bool = True,
    named: bool = False,
    grant_days: float = 365.0,
    governance: str = "required",
    **terms: Any,
) -> AsyncIterator[World]:
    """A hospital with so many patients, whose people have signed all that the study needs."""
    world = World(folder)
    world.study = Study.model_validate({**STUDY, "governance": governance})
    rows(world, count)
    policy = {
        "approvals": "listed" if listed else "manual",
        "approved_studies": [world.study.digest().hex()],
        "grant_days": grant_days,
    }
    await world.declare()
    async with world.running(datasets={"*": source(world, named=named)}, policy=policy):
        await world.enrol()
        await world.offer()
        if signed:
            await world.say("consent", DocumentsShared(file=papers(world, **terms)))
        await world.settled()
        yield world


async def approved(world: World) -> GrantedCohort:
    grant = (await world.expect(GrantGiven)).grant
    assert grant.cohort is not None
    return grant.cohort


async def window(world: World) -> None:
    await world.open(world.params())


def read(world: World) -> int:
    """How many jobs read rows for the study."""
    return sum(isinstance(job, ComputeStatistics) for runner in world.runners for job in runner.jobs)


@pytest.mark.parametrize(("named", "unit"), [(True, "person"), (False, "row")])
async def test_the_grant_says_for_which_cohort_it_is_and_each_piece_of_work_too(
    tmp_path: Path, *, named: bool, unit: str
) -> None:
    with capture_logs() as lines:
        async with hospital(tmp_path, named=named) as world:
            granted = await world.expect(GrantGiven)
            cohort = granted.grant.cohort
            assert cohort is not None
            assert (cohort.unit, cohort.source, cohort.band) == (unit, "none", "40-49")
            await window(world)
            event = await world.expect(ConsentSnapshot)
            await world.expect(Ready)
    assert (event.unit, event.source, event.persons, event.permitted) == (unit, "none", "40-49", "40-49")
    assert event.denied == ("<11" if named else None), "of rows nobody was asked"
    assert event.grant_digest == grant_digest(granted.grant)
    assert (event.query_digest, event.approved_root) == (cohort.query_digest, cohort.root)
    assert event.root != cohort.root, "taken anew, with a salt of its own"
    assert "cohort_frozen" in {line["event"] for line in lines}, "the log is heard"
    told = [part for sent in world.sent for part in (sent.outgoing.body, repr(sent.outgoing.headers).encode())]
    assert not leaks(b"\n".join([*told, repr(lines).encode()]))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("count", [31, 49])
async def test_a_change_between_approval_and_first_use_pauses_the_site(
    tmp_path: Path, count: int, *, named: bool
) -> None:
    async with hospital(tmp_path, named=named) as world:
        cohort = await approved(world)
        rows(world, count)
        await window(world)
        assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"
        await world.none_of(ConsentSnapshot)
        rows(world, 33)  # a sixth less than was approved: the usual fifth is allowed
        await window(world)
        event = await world.expect(ConsentSnapshot)
    assert (event.approved_root, event.permitted) == (cohort.root, "30-39")
    assert read(world) == 1


@pytest.mark.parametrize("terms", ["required", "opt_out_only"])
async def test_without_person_column_nothing_is_granted_where_patients_must_be_asked(
    tmp_path: Path, terms: str
) -> None:
    with capture_logs() as lines:
        async with hospital(tmp_path, listed=False, patient_consent=terms) as world:
            async with LocalSite.open(world.app.desk.settings, world.clock) as site:
                with pytest.raises(CohortNotTaken, match=r"PERSON_COLUMN_MISSING.*set the dataset's person_column"):
                    await site.approve("heart", ("Dr. Ada",))
            await window(world)
            assert (await world.expect(TaskRefused)).code == "GRANT_NOT_FOUND"
    assert read(world) == 0
    assert any(line["event"] == "patients_cannot_be_asked" for line in lines)


@pytest.mark.parametrize(("terms", "listed"), [("required", False), ("required", True), ("opt_out_only", False)])
async def test_with_persons_but_nothing_that_says_what_they_decided_nothing_is_granted(
    tmp_path: Path, terms: str, *, listed: bool
) -> None:
    """A list of who opted out is no consent."""
    async with hospital(tmp_path, listed=False, named=True, patient_consent=terms) as world:
        (tmp_path / "optout.txt").write_text("ZZCANARY-001\n")
    optout = {"optout_path": str(tmp_path / "optout.txt")} if listed else {}
    async with world.running(datasets={"*": {**source(world, named=True), **optout}}):
        async with LocalSite.open(world.app.desk.settings, world.clock) as site:
            with pytest.raises(CohortNotTaken, match="CONSENT_SOURCE_MISSING"):
                await site.approve("heart", ("Dr. Ada",))
        await world.none_of(GrantGiven)
    assert read(world) == 0


@pytest.mark.parametrize(("terms", "band"), [("required", "20-29"), ("not_required", "40-49")])
async def test_terms_that_ask_for_consent_count_more_than_settings_that_do_not(
    tmp_path: Path, terms: str, band: str
) -> None:
    """Of 40 patients 25 have decided; the others are left out where the terms say so."""
    async with hospital(tmp_path, listed=False, named=True, patient_consent=terms) as world:
        decided = "".join(f"ZZCANARY-{number:03},permit\n" for number in range(25))
        (tmp_path / "decided.csv").write_text("person_id,decision\n" + decided)
    consent = {"kind": "table", "path": str(tmp_path / "decided.csv"), "required": False}
    async with world.running(datasets={"*": {**source(world, named=True), "consent": consent}}):
        async with LocalSite.open(world.app.desk.settings, world.clock) as site:
            await site.approve("heart", ("Dr. Ada",))
        cohort = await approved(world)
    assert (cohort.source, cohort.band) == ("table", band)


async def test_what_was_approved_with_patients_is_not_done_without_them(tmp_path: Path) -> None:
    """After the approval the settings lose their person_column."""
    async with hospital(tmp_path, named=True) as world:
        await approved(world)
    async with world.running(datasets={"*": source(world, named=False)}):
        await window(world)
        assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"
    assert read(world) == 0


def config_of(world: World) -> Path:
    """The connector's settings as a file."""
    values = {
        "amqp_url": "amqp://localhost:1/",
        "broker_check": "trial",
        "spool_dir": str(world.folder / "spool"),
        "governance_keys": [key.public.hex() for key in world.officers],
        "governance_threshold": 2,
        "datasets": {"*": source(world, named=True)},
    }
    config = world.folder / "connector.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    config.chmod(0o600)
    return config


async def test_a_person_sees_the_cohort_before_and_with_the_approval(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two commands, each with a training process of its own: the hospital's program, and the platform's."""
    async with hospital(tmp_path, listed=False, named=True) as world:
        config = config_of(world)
        capfd.readouterr()
        assert await asyncio.to_thread(program.main, ["cohort", "heart", "-c", str(config)]) == 0
        seen = capfd.readouterr().out
        folder = world.folder / "spool" / "patients" / "heart"
        assert not folder.exists(), "a look keeps nothing"
        words = ["site", "approve", "heart", "--config", str(config), "--approver", "Dr. Ada"]
        approved_now = await asyncio.to_thread(CliRunner().invoke, command_line, words)
        assert approved_now.exit_code == 0, approved_now.output
        again = await asyncio.to_thread(CliRunner().invoke, command_line, [*words, "--json"])
        assert json.loads(again.stdout)["granted"] == "already"
        cohort = await approved(world)
        for said in (seen, approved_now.output):
            assert "40-49 (persons)" in said
            assert cohort.query_digest.hex() in said.replace("\n", "")
        assert cohort.root.hex() in approved_now.output.replace("\n", "")
        async with LocalSite.open(world.app.desk.settings, world.clock) as site:
            with pytest.raises(NoSuchOffer, match="no patients were used"):  # approved, and not used yet
                await site.prove("heart", "ZZCANARY-003")
            with pytest.raises(NoSuchOffer, match="nothing to exclude"):
                await site.exclusion("heart", "ZZCANARY-003", "stop_future")
        rows(world, 31)
        await window(world)
        assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"


@pytest.mark.parametrize("trial", [False, True])
async def test_after_a_change_a_person_approves_the_cohort_of_now(tmp_path: Path, *, trial: bool) -> None:
    governance = "trial" if trial else "required"
    async with (
        hospital(tmp_path, listed=False, named=True, signed=not trial, governance=governance) as world,
        LocalSite.open(world.app.desk.settings, world.clock) as site,
    ):
        assert await site.approve("heart", ("Dr. Ada",)) is not None
        if trial:  # frozen with the first use
            await window(world)
            await world.expect(ConsentSnapshot)
            await world.forget_products()
        assert await site.approve("heart", ("Dr. Ada",)) is None, "nothing has changed"
        rows(world, 20)
        await window(world)
        assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"
        second = await site.approve("heart", ("Dr. Ada",))
        assert second is not None
        await window(world)
        event = await world.expect(ConsentSnapshot)
        assert await site.approve("heart", ("Dr. Ada",)) is None, "the new one is not changed"
    assert (event.grant_digest, event.permitted) == (grant_digest(second), "20-29")
    assert (second.cohort is None) == trial


async def test_an_approval_that_is_not_written_leaves_no_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any) -> None:
        raise OSError("the disk is full")

    async with hospital(tmp_path, listed=False, named=True) as world:
        monkeypatch.setattr("cohortium_connector.patients.Patients.freeze", full)
        async with LocalSite.open(world.app.desk.settings, world.clock) as site:
            with pytest.raises(OSError, match="disk"):
                await site.approve("heart", ("Dr. Ada",))
        assert not list((world.folder / "spool" / "patients").rglob("*.tags"))


async def test_each_cohort_that_is_proven_is_on_record(tmp_path: Path) -> None:
    async with hospital(tmp_path, named=True) as world:
        await approved(world)
        await window(world)
        root = (await world.expect(ConsentSnapshot)).root
        async with LocalSite.open(world.app.desk.settings, world.clock) as site:
            proofs = tmp_path / "proofs.json"
            proofs.write_bytes(PROOFS.dump_json(await site.prove("heart", "ZZCANARY-003")))
    checked = CliRunner().invoke(command_line, ["consent", "check-proof", str(proofs), "--root", root.hex()])
    assert (checked.exit_code, "ZZCANARY-003 was in cohort" in checked.output) == (0, True), checked.output


async def test_of_rows_nobody_says_that_a_person_was_not_there(tmp_path: Path) -> None:
    async with hospital(tmp_path) as world:
        await approved(world)
        await window(world)
        await world.expect(ConsentSnapshot)
        await world.expect(Ready)
        async with LocalSite.open(world.app.desk.settings, world.clock) as site:
            with pytest.raises(RowsNotPersons, match="every cohort of heart counts rows"):
                await site.prove("heart", "ZZCANARY-003")
            left = await site.exclusion("heart", "ZZCANARY-003", "stop_future")
            assert left.from_round == 0, "it may have been used"
        await world.forget_products()
    settings = world.settings(datasets={"*": source(world, named=True)})
    async with world.running(datasets={"*": source(world, named=True)}), LocalSite.open(settings, world.clock) as site:
        # from now on the table names its patients
        assert await site.approve("heart", ("Dr. Ada",)) is not None
        await window(world)
        root = (await world.expect(ConsentSnapshot)).root
        (proof,) = await site.prove("heart", "ZZCANARY-003")
        assert (proof.present, proof.root) == (True, root)
        assert await site.row_cohorts("heart") == 1


async def test_an_approval_that_fails_over_the_table_is_made_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_connector.approving.AGAIN_S", 0.2)
    with capture_logs() as lines:
        async with hospital(tmp_path, count=5) as world:
            await world.none_of(GrantGiven)
            rows(world, 20)
            assert (await approved(world)).band == "20-29"
    assert "BELOW_MIN_PERSONS" in [line.get("code") for line in lines]


async def test_what_is_listed_is_granted_when_the_hospital_s_own_hand_adds_the_last_signature(tmp_path: Path) -> None:
    async with hospital(tmp_path, signed=False) as world:
        await world.none_of(GrantGiven)
        async with LocalConsent.open(world.app.desk.settings, world.clock) as site:
            await site.add(papers(world))
        assert (await approved(world)).unit == "row"


async def test_what_is_listed_is_granted_anew_for_a_run_after_the_grant_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_connector.approving.AGAIN_S", 1e9)
    async with hospital(tmp_path, grant_days=0.5) as world:
        first = (await world.expect(GrantGiven)).grant
        world.clock.ahead_s = 0.6 * 86400
        world.run_id = RunId(str(uuid4()))
        await world.offer()
        second = (await world.expect(GrantGiven)).grant
    assert (second.basis, second.not_before > first.not_after) == (first.basis, True)
