"""Patients' consent before any row is read: who is in, what is told of it, and what stops the work."""

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from connector_strict import StrictPlay, TreesWorld, begun
from connector_world import STUDY, World

from cohortium_connector.commands import LocalSite
from cohortium_connector.patients import band
from cohortium_connector.training.jobs import ComputeStatistics, DataSource
from cohortium_messages.events import ConsentSnapshot, TaskDeclined
from cohortium_messages.runs import TaskRefused
from cohortium_messages.secure_sum import Ready, SessionLeft, WindowParams
from cohortium_messages.study import Study
from cohortium_protocol.cohorts import check_proof

TOLERANT = {"approvals": "listed", "min_persons": 11}


def everybody(count: int) -> list[str]:
    return [f"ZZCANARY-{number:03}" for number in range(count)]


PERSONS = everybody(40)


class Hospital:
    """A table with a patient a row, and a file with what patients decided."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.table, self.consents = world.folder / "rows.csv", world.folder / "consents.csv"
        self.table.write_text("mrn,age\n" + "".join(f"{person},50\n" for person in PERSONS))
        self.decided(PERSONS)

    def grown(self, count: int) -> None:
        """The table has more patients than `PERSONS`."""
        self.table.write_text("mrn,age\n" + "".join(f"{person},50\n" for person in everybody(count)))

    def decided(self, permit: Iterable[str], deny: Iterable[str] = ()) -> None:
        lines = [f"{person},permit,2026-01-01" for person in permit]
        lines += [f"{person},deny,2026-01-01" for person in deny]
        self.consents.write_text("\n".join(["person_id,decision,recorded_at", *lines]) + "\n")

    def settings(self, **policy: Any) -> dict[str, Any]:
        source = {
            "path": str(self.table),
            "person_column": "mrn",
            "consent": {"kind": "table", "path": str(self.consents)},
        }
        approved = {"approved_studies": [self._world.study.digest().hex()]}
        return {"datasets": {"*": source}, "policy": {**TOLERANT, **approved, **policy}}


async def window(world: World) -> WindowParams:
    params = world.params()
    await world.open(params)
    return params


async def joined(world: World) -> None:
    await world.enrol()
    await world.offer()


def read(world: World) -> list[list[str]]:
    """The persons whose rows each statistics job was given."""
    jobs = [job for runner in world.runners for job in runner.jobs if isinstance(job, ComputeStatistics)]
    return [persons_of(job.source) for job in jobs]


def persons_of(source: DataSource) -> list[str]:
    """Whose rows may be read of it."""
    found: list[str] = json.loads(Path(str(source.permitted_path)).read_bytes())
    return found


async def test_only_patients_who_permit_it_are_read_and_bands_are_told(world: World) -> None:
    hospital = Hospital(world)
    hospital.decided(PERSONS[:27], deny=PERSONS[27:30])
    async with world.running(**hospital.settings()):
        await joined(world)
        params = await window(world)
        event = await world.expect(ConsentSnapshot)
        await world.expect(Ready)
    assert read(world) == [PERSONS[:27]]
    assert (event.persons, event.permitted, event.denied, event.no_record) == ("40-49", "20-29", "<11", "<11")
    assert (event.expired, event.unknown, event.opted_out) == ("<11", "<11", "<11")  # also where it is nobody
    assert (event.window_id, event.source, event.approved_root) == (params.window_id, "table", event.root)


async def test_nothing_that_leaves_or_is_logged_names_a_patient(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    hospital = Hospital(world)
    hospital.decided(PERSONS[:30], deny=PERSONS[30:])
    async with world.running(**hospital.settings()):
        await joined(world)
        await window(world)
        await world.expect(Ready)
        await world.forget_products()
        hospital.consents.write_text("person_id,word\nZZCANARY-000,permit\n")
        await window(world)
        assert (await world.expect(TaskRefused)).code == "CONSENT_SOURCE_UNREADABLE"
    told = b"".join(sent.outgoing.body for sent in world.sent)
    assert told
    assert b"ZZCANARY" not in told
    assert "ZZCANARY" not in "".join(capfd.readouterr())
    for file in (world.folder / "spool" / "patients").rglob("*.*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_patient_who_withdraws_is_in_no_later_work(world: World) -> None:
    hospital = Hospital(world)
    async with world.running(**hospital.settings()):
        await joined(world)
        await window(world)
        first = await world.expect(ConsentSnapshot)
        hospital.decided(PERSONS[1:], deny=PERSONS[:1])
        await world.forget_products()
        await window(world)
        second = await world.expect(ConsentSnapshot)
    assert read(world) == [PERSONS, PERSONS[1:]]
    assert second.root != first.root == second.approved_root
    assert second.permitted == "30-39"


async def test_a_cohort_that_is_not_the_approved_one_pauses_the_site(world: World) -> None:
    hospital = Hospital(world)
    async with world.running(**hospital.settings()):
        await joined(world)
        await window(world)
        await world.expect(ConsentSnapshot)
        hospital.decided(PERSONS[:31])  # 40 were approved: more than a fifth is gone
        await world.forget_products()
        await window(world)
        assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"
        assert (await world.expect(TaskDeclined)).code == "COHORT_CHANGED"
        await world.none_of(ConsentSnapshot)
        hospital.decided(PERSONS[:32])
        await window(world)
        assert (await world.expect(ConsentSnapshot)).permitted == "30-39"
    assert [len(persons) for persons in read(world)] == [40, 32]


@pytest.mark.parametrize(
    ("agreed", "own", "persons", "pauses"),
    [
        (None, None, 36, False),  # a tenth less: within the usual fifth
        (0.05, None, 36, True),
        (0.05, None, 38, False),
        (0.05, None, 44, True),  # more patients, too, are others than were approved
        (0.05, 0.2, 36, True),  # what the hospital approved is not widened by its own settings
        (None, 0.05, 36, True),  # but may be narrowed
        (0.5, None, 25, False),
    ],
)
async def test_the_study_says_how_much_the_approved_cohort_may_change(
    world: World, agreed: float | None, own: float | None, persons: int, pauses: bool
) -> None:
    if agreed is not None:
        changed = {**STUDY["dataset"], "cohort_tolerance": agreed}
        world.study = Study.model_validate({**STUDY, "dataset": changed})
    hospital = Hospital(world)
    hospital.grown(44)
    hospital.decided(PERSONS)
    async with world.running(**hospital.settings(cohort_tolerance=own)):
        await joined(world)
        await window(world)
        await world.expect(ConsentSnapshot)
        hospital.decided(everybody(persons))
        await world.forget_products()
        await window(world)
        if pauses:
            assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"
            await world.none_of(ConsentSnapshot)
        else:
            await world.expect(ConsentSnapshot)


async def test_another_question_to_the_table_is_another_cohort(world: World) -> None:
    hospital = Hospital(world)
    async with world.running(**hospital.settings()):
        await joined(world)
        await window(world)
        await world.expect(ConsentSnapshot)
        await world.forget_products()
    changed = hospital.settings()
    changed["datasets"]["*"]["consent"]["purpose"] = "HRESCH"
    async with world.running(**changed):
        await window(world)
        assert (await world.expect(TaskRefused)).code == "COHORT_CHANGED"


async def test_few_patients_are_not_used(world: World) -> None:
    hospital = Hospital(world)
    hospital.decided(PERSONS[:10])
    async with world.running(**hospital.settings()):
        await joined(world)
        await window(world)
        assert (await world.expect(TaskRefused)).code == "BELOW_MIN_PERSONS"
        await world.none_of(ConsentSnapshot)
    assert read(world) == []


async def test_the_hospital_proves_to_its_auditor_who_was_in(world: World) -> None:
    hospital = Hospital(world)
    hospital.decided(PERSONS[:30])
    async with world.running(**hospital.settings()):
        await joined(world)
        await window(world)
        event = await world.expect(ConsentSnapshot)
        await world.settled()
    async with LocalSite.open(world.settings(**hospital.settings()), world.clock) as site:
        there, away = await site.prove(world.study.name, PERSONS[3]), await site.prove(world.study.name, PERSONS[35])
    assert [proof.present for proof in (*there, *away)] == [True, False]
    for proof in (*there, *away):
        check_proof(proof, event.root)


async def test_a_strict_session_reads_the_patients_that_it_was_prepared_with(tmp_path: Path) -> None:
    world = TreesWorld(tmp_path)
    hospital = Hospital(world)
    hospital.decided(PERSONS[:30])
    await world.declare()
    await world.start(**hospital.settings())
    await world.join()
    play = await begun(world)
    hospital.decided(PERSONS[:29])  # with the next piece of work, not in the middle of this one
    await play.steps(2)
    await world.crash()
    assert persons_of(world.play.jobs[0].source) == PERSONS[:30]


async def test_a_session_that_was_prepared_without_asking_anybody_is_left(tmp_path: Path) -> None:
    """The table got its person_column between the preparation and the session: without a list, all would be read."""
    world = TreesWorld(tmp_path)
    hospital = Hospital(world)
    await world.declare()
    await world.start()
    await world.join()
    play = StrictPlay(world, world.training_params(world.model(0)[0]), world.manifest())
    await world.open(play.params)
    await world.give_model(0)
    await world.reaches(play.window_id, "READY_SENT")
    await world.crash()
    await world.start(**hospital.settings())
    await play.fix_roster()
    assert (await world.expect(SessionLeft)).code == "DATA_CHANGED"
    await world.crash()
    assert world.play.jobs == []


@pytest.mark.parametrize(
    ("count", "told"), [(0, "<11"), (10, "<11"), (11, "10-19"), (19, "10-19"), (20, "20-29"), (1234, "1230-1239")]
)
def test_bands(count: int, told: str) -> None:
    assert band(count) == told
