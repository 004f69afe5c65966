"""What an operator can ask: the grants, and what the policy would say, also at another time."""

from datetime import timedelta

import pytest

from cohortium_consent.app import App
from cohortium_messages.governance import GrantGiven
from cohortium_messages.problems import SENTENCES
from governance_stage import STUDY, Stage, hear


@pytest.mark.usefixtures("members")
async def test_grants_are_listed_with_their_state_of_now(stage: Stage, consent: App) -> None:
    first, second = stage.hospitals[:2]
    for site, days in ((first, 1), (second, 30)):
        message = GrantGiven(grant=stage.grant(site, days=days))
        await hear(consent, "consent", stage.from_site(site, "consent", message))
    await stage.clock.advance(timedelta(days=2).total_seconds())
    await hear(consent, "consent", stage.from_site(second, "consent", stage.withdrawal(second)))
    async with stage.client(consent) as client:
        listed = (await client.get("/grants", params={"study": STUDY})).json()["items"]
    assert {(one["site_name"], one["state"]) for one in listed} == {
        (first.name, "expired"),
        (second.name, "withdrawn"),
    }
    ended = next(one for one in listed if one["state"] == "withdrawn")
    assert ended["sentence"] == SENTENCES["GRANT_WITHDRAWN"]


@pytest.mark.usefixtures("members")
async def test_the_dry_run_answers_for_every_member_and_for_a_future_moment(stage: Stage, consent: App) -> None:
    site = stage.hospitals[0]
    message = GrantGiven(grant=stage.grant(site, days=1))
    await hear(consent, "consent", stage.from_site(site, "consent", message))
    later = (stage.clock.now() + timedelta(days=2)).isoformat()
    async with stage.client(consent) as client:
        now = (await client.get("/authorise", params={"study": STUDY, "round": 1})).json()["items"]
        params = {"study": STUDY, "site": site.site_id, "round": 1, "at": later}
        then = (await client.get("/authorise", params=params)).json()["items"]
    assert {one["site_id"]: one["deny_code"] for one in now} == {
        one.site_id: None if one == site else "GRANT_NOT_FOUND" for one in stage.hospitals
    }
    assert [one["sentence"] for one in then] == [SENTENCES["GRANT_EXPIRED"]]


async def test_a_study_without_a_manifest_is_named_as_such(stage: Stage, consent: App) -> None:
    async with stage.client(consent) as client:
        answer = await client.get("/authorise", params={"study": STUDY})
        refused = await client.get("/authorise", params={"study": "Not A Study"})
    assert answer.status_code == 404
    assert "manifest" in answer.json()["detail"]
    assert refused.status_code == 422


async def test_without_the_operators_token_nothing_is_shown(stage: Stage, consent: App) -> None:
    async with stage.client(consent, token="wrong") as client:
        assert (await client.get("/grants", params={"study": STUDY})).status_code == 401


@pytest.mark.usefixtures("members")
async def test_grants_and_answers_are_told_in_pages(stage: Stage, consent: App) -> None:
    for site in stage.hospitals:
        await hear(consent, "consent", stage.from_site(site, "consent", GrantGiven(grant=stage.grant(site))))
        await stage.clock.advance(1)

    async def told(path: str, **params: str) -> list[str]:
        found: list[str] = []
        async with stage.client(consent) as client:
            for _ in stage.hospitals:
                page = (await client.get(path, params={"study": STUDY, "limit": "1", **params})).json()
                found += [one["site_id"] for one in page["items"]]
                if page["next"] is None:
                    return found
                params["after"] = page["next"]
        raise AssertionError(f"{path} has no end: {found}")

    assert await told("/grants") == [site.site_id for site in stage.hospitals], "the oldest first"
    assert await told("/authorise") == sorted(site.site_id for site in stage.hospitals)
    async with stage.client(consent) as client:
        for path, limit in (("/grants", 0), ("/authorise", 201), ("/budgets", 201), ("/withdrawals", 201)):
            assert (await client.get(path, params={"study": STUDY, "limit": limit})).status_code == 422
        gone = await client.get("/grants", params={"study": STUDY, "after": "00" * 32})
        assert (gone.status_code, gone.json()["title"]) == (422, "cursor_unknown")
