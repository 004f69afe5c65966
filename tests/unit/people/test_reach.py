"""Routes that keep to their caller's reach by themselves: what is beyond it is neither shown nor changed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from cohortium_consent.app import App
from cohortium_enrolment.app import App as Enrolment
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_messages.governance import GrantGiven, ManifestPublished, SiteRegistered
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.people import Assignment, Role
from cohortium_messages.status import RunSummary
from cohortium_platform.people.guard import Reach, guard_of
from cohortium_protocol.consent.signing import record_digest
from cohortium_scheduler import api as scheduler_api
from consent_stage import Plane
from governance_stage import DIGEST, STUDY, Stage, hear
from people_stage import House, bearer

OTHER = StudyId("another-study")
LEAD = Assignment(role=Role.STUDY_LEAD, study_id=STUDY)
RUNS = ("8f14e45f-ceea-467f-9c5b-0d8a5c3b7a11", "8f14e45f-ceea-467f-9c5b-0d8a5c3b7a12")


async def introduce(stage: Stage, consent: App) -> None:
    for site in stage.hospitals:
        message = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
        await hear(consent, "consent", stage.from_service("enrolment", "consent", message))
    published = ManifestPublished(manifest=stage.manifest())
    await hear(consent, "consent", stage.from_service("enrolment", "consent", published, study=STUDY))
    for site in stage.hospitals[:2]:
        await hear(consent, "consent", stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site))))


async def test_a_hospitals_people_see_and_bring_documents_and_grants_of_their_own(stage: Stage, house: House) -> None:
    here, there = stage.hospitals[0], stage.hospitals[1]
    await introduce(stage, house.app)
    plane = Plane(
        now=stage.clock.now(),
        study=STUDY,
        study_digest=DIGEST,
        officers=tuple(stage.files.officers),
        site_keys={site.site_id: site.key for site in stage.hospitals},
    )
    mine, theirs = plane.file(here.site_id), plane.file(there.site_id)
    terms = {
        name: next(record_digest(one.document).hex() for one in file.records if one.document.kind == "terms")
        for name, file in (("mine", mine), ("theirs", theirs))
    }
    async with house.officer() as officer:
        await house.person(officer, "admin-1", {"role": "site_admin", "site_id": here.site_id})
        await house.person(officer, "lead-1", {"role": "study_lead", "study_id": OTHER})
        for file in (mine, theirs):
            assert (await officer.post("/documents", json=file.model_dump(mode="json"))).status_code == 200
    async with house.signed_in("admin-1") as admin:
        assert (await admin.get(f"/documents/{terms['mine']}")).status_code == 200
        beyond = await admin.get(f"/documents/{terms['theirs']}")
        assert (beyond.status_code, beyond.json()["title"]) == (403, "out_of_reach")
        assert (await admin.post("/documents", json=theirs.model_dump(mode="json"))).status_code == 403
        grants = (await admin.get("/grants", params={"study": STUDY})).json()["items"]
        assert [one["site_id"] for one in grants] == [here.site_id]
    async with house.signed_in("lead-1") as lead:
        assert (await lead.get(f"/documents/{terms['mine']}")).status_code == 403
        assert (await lead.get("/grants", params={"study": STUDY})).json()["items"] == []


async def test_a_site_admin_sees_the_own_hospital_at_enrolment(stage: Stage) -> None:
    settings = EnrolmentSettings.model_validate(stage.settings("enrolment"))
    db = await stage.database("enrolment")
    app = await Enrolment.build(settings, bus=await stage.bus(), database=db, clock=stage.clock)
    async with stage.client(app) as machine:
        ids = [(await machine.post("/sites", json={"name": name})).json()["site_id"] for name in ("North", "South")]
        admin = bearer(stage, "enrolment", Assignment(role=Role.SITE_ADMIN, site_id=ids[1]))
        listed = (await machine.get("/sites", headers=admin)).json()["items"]
        assert [one["name"] for one in listed] == ["South"]
        assert (await machine.post(f"/sites/{ids[0]}/revoke", headers=admin)).status_code == 403
        assert (await machine.post("/sites", json={"name": "West"}, headers=admin)).status_code == 403
        assert (await machine.post(f"/sites/{ids[1]}/revoke", headers=admin)).json()["state"] == "revoked"
        assert (await machine.get("/sites", headers=bearer(stage, "consent"))).status_code == 401, "another's pass"
    await db.close()


class TwoRuns:
    """A scheduler with a run of either study."""

    def __init__(self, now: datetime) -> None:
        self.stopped: list[str] = []
        self._runs = [
            RunSummary(
                run_id=RunId(run),
                study_id=study,
                study_digest=DIGEST,
                state="TRAINING",
                reason="",
                sentence=None,
                round=1,
                rounds=2,
                created_at=now,
                ended_at=None,
            )
            for run, study in zip(RUNS, (STUDY, OTHER), strict=True)
        ]

    async def list(self, reach: Reach, after: RunId | None, limit: int) -> Sequence[RunSummary]:
        return [run for run in self._runs if reach.covers(study=run.study_id)][:limit]

    async def taking_part(self, run_id: RunId, sites: frozenset[SiteId]) -> frozenset[SiteId]:
        return frozenset()

    async def status(self, run_id: RunId) -> RunSummary | None:
        return next((run for run in self._runs if run.run_id == run_id), None)

    async def stop(self, run_id: RunId) -> RunSummary | None:
        self.stopped.append(run_id)
        return await self.status(run_id)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked of the service, beyond the caller's reach")


async def test_a_study_lead_sees_and_stops_runs_of_the_own_study(stage: Stage) -> None:
    runs = TwoRuns(stage.clock.now())
    settings = EnrolmentSettings.model_validate(stage.settings("enrolment"))
    guard = guard_of(settings, "scheduler", stage.files.trust, stage.clock)
    app = scheduler_api.create(runs, guard=guard)  # type: ignore[arg-type]
    headers = bearer(stage, "scheduler", LEAD)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s", headers=headers) as lead:
        assert [one["run_id"] for one in (await lead.get("/runs")).json()["items"]] == [RUNS[0]]
        assert (await lead.get(f"/runs/{RUNS[1]}")).status_code == 403
        assert (await lead.post(f"/runs/{RUNS[1]}/stop")).status_code == 403
        assert (await lead.post(f"/runs/{RUNS[0]}/stop")).status_code == 200
        assert (await lead.post("/studies", content="x")).status_code == 403
    assert runs.stopped == [RUNS[0]]
