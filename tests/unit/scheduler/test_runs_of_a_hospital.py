"""What people of a hospital see of runs: those that it takes part in, and of single sites in them only their own."""

from datetime import timedelta
from typing import Any

import httpx
from scheduler_stage import STUDY, Stage, authorise, recruit, submit

from cohortium_kit.clock import SystemClock
from cohortium_messages.people import Assignment, Role
from cohortium_messages.runs import TaskRefused
from cohortium_platform.people.passes import Pass, sign_pass
from cohortium_protocol.signing import IdentityKey


def bearer(stage: Stage, *roles: Assignment) -> dict[str, str]:
    """A pass of consent for somebody with these roles."""
    now = SystemClock().now()
    said = Pass(
        federation=stage.files.trust.federation,
        service="scheduler",
        person="p-0001",
        roles=roles,
        issued_at=now,
        ends_at=now + timedelta(minutes=5),
        proved_at=now,
    )
    seed = bytes.fromhex((stage.files.directory / "secrets" / "consent.key").read_text().strip())
    return {"Authorization": f"Bearer {sign_pass(said, IdentityKey.from_seed(seed))}"}


async def get(stage: Stage, path: str, headers: dict[str, str], **params: Any) -> httpx.Response:
    return await stage.http.get(path, headers=headers, params=params)


async def test_a_hospital_that_takes_part_sees_the_run_and_no_other(stage: Stage) -> None:
    run_id, _, _ = await recruit(stage, grants=3)
    stage.study = STUDY | {"name": "lungs"}
    other, _ = await submit(stage)
    members = list(stage.sites)
    approver = bearer(stage, Assignment(role=Role.SITE_APPROVER, site_id=members[0]))
    stranger = bearer(stage, Assignment(role=Role.SITE_ADMIN, site_id=members[3]))
    assert [run["run_id"] for run in (await get(stage, "/runs", approver)).json()["items"]] == [run_id]
    assert (await get(stage, "/runs", stranger)).json()["items"] == [], "a member that did not grant takes no part"
    for path in (f"/runs/{run_id}", f"/runs/{run_id}/lineage"):
        assert (await get(stage, path, approver)).status_code == 200
        refused = await get(stage, path, stranger)
        assert (refused.status_code, refused.json()["title"]) == (403, "out_of_reach")
        assert (await get(stage, path.replace(run_id, other), approver)).status_code == 403
    stopped = await stage.http.post(f"/runs/{run_id}/stop", headers=approver)
    assert stopped.json()["title"] == "role_missing", "seeing is not stopping"
    lead = bearer(stage, Assignment(role=Role.STUDY_LEAD, study_id="lungs"))
    assert [run["run_id"] for run in (await get(stage, "/runs", lead)).json()["items"]] == [other]


async def test_of_single_sites_it_sees_only_its_own(stage: Stage) -> None:
    run_id, _, manifest = await recruit(stage)
    names = {member.site_id: member.name for member in manifest.members}
    window = await authorise(stage)
    mine, theirs = list(stage.sites)[:2]
    for site in (mine, theirs):
        refusal = TaskRefused(
            run_id=window.params.run_id, window_id=window.params.window_id, site_id=site, code="NO_ROWS"
        )
        await stage.site_says(site, refusal)
    headers = bearer(stage, Assignment(role=Role.SITE_ADMIN, site_id=mine))
    whole = await stage.status(run_id)
    seen = (await get(stage, f"/runs/{run_id}", headers)).json()
    assert len(whole["sites"]) == 4
    assert [site["name"] for site in seen["sites"]] == [names[mine]]
    assert {key for key in whole if whole[key] != seen[key]} <= {"sites", "window"}
    both = bearer(
        stage,
        Assignment(role=Role.SITE_ADMIN, site_id=mine),
        Assignment(role=Role.REVIEWER, study_id="heart"),
    )
    assert len((await get(stage, f"/runs/{run_id}", both)).json()["sites"]) == 4, "a reviewer of the study sees all"


async def test_runs_are_told_in_pages_newest_first(stage: Stage) -> None:
    made = []
    for number in range(5):
        stage.study = STUDY | {"name": f"study-{number}"}
        made.append((await submit(stage))[0])
    machine = dict(stage.http.headers)
    told, after = list[str](), dict[str, str]()
    for _ in range(3):
        page = (await get(stage, "/runs", machine, limit=2, **after)).json()
        told += [run["run_id"] for run in page["items"]]
        after = {"after": page["next"]}
    assert page["next"] is None
    assert told == made[::-1]
    gone = await get(stage, "/runs", machine, after="00000000-0000-4000-8000-000000000000")
    assert (gone.status_code, gone.json()["title"]) == (422, "cursor_unknown")
    assert (await get(stage, "/runs", machine, limit=201)).status_code == 422
