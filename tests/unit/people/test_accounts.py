"""Who adds whom and gives which role: within reach, never oneself, never two roles that exclude each other."""

from governance_stage import STUDY, Stage
from people_stage import PASSWORD, House


async def test_officers_add_people_and_site_admins_those_of_their_hospital(stage: Stage, house: House) -> None:
    here, there = stage.hospitals[0].site_id, stage.hospitals[1].site_id
    admin_here, approver_there = {"role": "site_admin", "site_id": here}, {"role": "site_approver", "site_id": there}
    async with house.officer() as officer:
        await house.person(officer, "admin-1", admin_here)
        await house.person(officer, "both-1", {"role": "site_approver", "site_id": here}, {"role": "officer"})
        await house.person(officer, "there-1", approver_there)
        twice = await officer.post("/people", json={"person": "admin-1", "name": "Ada", "roles": []})
        assert (twice.status_code, twice.json()["title"]) == (409, "person_exists")
        own = await officer.put("/people/officer-1/roles", json={"roles": []})
        assert (own.status_code, own.json()["title"]) == (403, "own_account")
        both = await officer.put("/people/both-1/roles", json={"roles": [{"role": "operator"}, {"role": "officer"}]})
        assert (both.status_code, both.json()["title"]) == (409, "roles_exclude")
        first, second = (await officer.get("/people", params={"limit": 2})).json(), None
        assert [one["person"] for one in first["items"]] == ["admin-1", "both-1"]
        second = (await officer.get("/people", params={"limit": 2, "after": first["next"]})).json()
        assert ([one["person"] for one in second["items"]], second["next"]) == (["officer-1", "there-1"], None)
    async with house.signed_in("admin-1") as admin:
        await house.person(admin, "approver-1", {"role": "site_approver", "site_id": here})
        for roles in ([], [approver_there], [{"role": "officer"}], [{"role": "study_lead", "study_id": STUDY}]):
            answer = await admin.post("/people", json={"person": "x-1", "name": "X", "roles": roles})
            assert answer.status_code in {403, 422}, roles
        listed = {one["person"]: one["roles"] for one in (await admin.get("/people")).json()["items"]}
        assert listed.keys() == {"admin-1", "both-1", "approver-1"}
        assert [one["role"] for one in listed["both-1"]] == ["site_approver"], "roles elsewhere are not shown"
        # Who resets an account can take it over: all of its roles must be the hospital's.
        for person in ("both-1", "there-1", "officer-1"):
            assert (await admin.post(f"/people/{person}/reset")).status_code == 403, person
            assert (await admin.delete(f"/people/{person}")).status_code == 403, person
        assert (await admin.put("/people/there-1/roles", json={"roles": []})).status_code == 403
        assert (await admin.put("/people/both-1/roles", json={"roles": []})).json()["roles"] == [
            {"role": "officer", "site_id": None, "study_id": None}
        ], "it takes what is the hospital's, and leaves the rest"
    by = [data["by"] for name, data in await house.events() if name == "auth_role_changed"]
    assert by == [None, "officer-1", "officer-1", "officer-1", "admin-1", "admin-1"]


async def test_an_ended_account_is_erased_and_its_id_is_not_given_again(house: House) -> None:
    async with house.officer() as officer:
        await house.person(officer, "auditor-1", {"role": "auditor"})
        async with house.signed_in("auditor-1") as auditor:
            assert (await auditor.get("/people")).status_code == 200
            assert (await auditor.post("/people", json={"person": "x-1", "name": "X"})).status_code == 403
            reset = await officer.post("/people/auditor-1/reset")
            assert (await auditor.get("/people")).status_code == 401, "the sessions of a reset account are over"
            await house.set_up("auditor-1", reset.json()["token"])
        async with house.signed_in("auditor-1") as auditor:
            assert (await officer.delete("/people/auditor-1")).status_code == 204
            assert (await auditor.get("/people")).status_code == 401
        wanted = {"person": "auditor-1", "password": PASSWORD}
        assert (await officer.post("/people/sign-in", json=wanted)).status_code == 401
        page = (await officer.get("/people")).json()["items"]
        assert page[0] == {"person": "auditor-1", "name": "", "ended": True, "waits_for_setup": False, "roles": []}
        again = await officer.post("/people", json={"person": "auditor-1", "name": "Another"})
        assert again.status_code == 409


async def test_a_role_that_is_taken_is_gone_from_the_session_at_once(stage: Stage, house: House) -> None:
    here = stage.hospitals[0].site_id
    async with house.officer() as officer:
        await house.person(officer, "admin-1", {"role": "site_admin", "site_id": here})
        async with house.signed_in("admin-1") as admin:
            assert (await admin.get("/documents", params={"site": here})).status_code == 200
            other = await admin.get("/documents", params={"site": stage.hospitals[1].site_id})
            assert (other.status_code, other.json()["title"]) == (403, "out_of_reach")
            assert (await admin.get("/documents")).status_code == 403
            await officer.put("/people/admin-1/roles", json={"roles": []})
            assert (await admin.get("/documents", params={"site": here})).status_code == 403
