"""Local accounts: set up once, signed in, stepped up, signed out; and what does not let anybody in."""

from datetime import timedelta

import httpx
import pytest

from cohortium_consent.sign_in import IDLE_S, LASTS_S, MOST_PER_PAIR, MOST_TOLD, WINDOW_S
from cohortium_platform.people.guard import COOKIE, FRESH
from cohortium_platform.people.passes import read_pass
from cohortium_platform.people.passwords import TOTP_STEP_S, totp_code
from governance_stage import STUDY, Stage
from people_stage import PASSWORD, House, open_house


def secret_of(address: str) -> bytes:
    from base64 import b32decode
    from urllib.parse import parse_qs, urlsplit

    return b32decode(parse_qs(urlsplit(address).query)["secret"][0])


async def test_the_first_officer_is_made_once_and_the_token_is_good_once(house: House) -> None:
    async with house.machine() as machine, house.browser() as browser:
        made = (await machine.post("/people/first", json={"person": "officer-1", "name": "Olga"})).json()
        again = await machine.post("/people/first", json={"person": "officer-2", "name": "Otto"})
        assert (again.status_code, again.json()["title"]) == (409, "officers_exist")
        nobody = await browser.post("/people/first", json={"person": "officer-2", "name": "Otto"})
        assert nobody.status_code == 401
        wanted = {"person": "officer-1", "token": made["token"], "password": PASSWORD}
        weak = await browser.post("/people/setup", json=wanted | {"password": "too short"})
        assert (weak.status_code, weak.json()["title"]) == (422, "password_refused")
        for wrong in ({"token": "x" * 43}, {"person": "officer-2"}):
            assert (await browser.post("/people/setup", json=wanted | wrong)).status_code == 401
        before = await browser.post("/people/sign-in", json={"person": "officer-1", "password": PASSWORD})
        assert before.status_code == 401, "there is no default password"
        assert (await browser.post("/people/setup", json=wanted)).status_code == 204
        assert (await browser.post("/people/setup", json=wanted)).status_code == 401
    events = await house.events()
    assert ("auth_role_changed", 1) in [(name, len(data.get("roles", ()))) for name, data in events]  # type: ignore[arg-type]
    assert [data["person"] for name, data in events if name == "auth_failed"].count(None) == 1, "officer-2 is nobody"
    assert all("Olga" not in str(data) and PASSWORD not in str(data) for _, data in events)


async def test_a_set_up_token_ends(house: House) -> None:
    async with house.machine() as machine, house.browser() as browser:
        made = (await machine.post("/people/first", json={"person": "officer-1", "name": "Olga"})).json()
        await house.clock.advance(timedelta(hours=73).total_seconds())
        wanted = {"person": "officer-1", "token": made["token"], "password": PASSWORD}
        assert (await browser.post("/people/setup", json=wanted)).status_code == 401


async def test_a_session_lives_in_a_cookie_that_no_script_and_no_other_site_gets(house: House) -> None:
    async with house.officer() as _, house.browser() as browser:
        answer = await browser.post("/people/sign-in", json={"person": "officer-1", "password": PASSWORD})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        for part in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
            assert part in cookie
        assert "domain" not in cookie.lower()
        assert answer.headers["cache-control"] == "no-store"
        me = (await browser.get("/people/me")).json()
        assert (me["person"], [role["role"] for role in me["roles"]], me["mfa"]) == ("officer-1", ["officer"], False)
        # A change needs the token that only our own page can read.
        refused = await browser.post("/people/sign-out")
        assert (refused.status_code, refused.json()["title"]) == (403, "csrf_token_missing")
        browser.headers["X-CSRF-Token"] = me["csrf"]
        cross = await browser.post("/people/sign-out", headers={"Sec-Fetch-Site": "cross-site"})
        assert (cross.status_code, cross.json()["title"]) == (403, "cross_site")
        kept = browser.cookies[COOKIE]
        assert (await browser.post("/people/sign-out")).status_code == 204
        browser.cookies.set(COOKIE, kept, domain="consent.example")
        assert (await browser.get("/people/me")).status_code == 401, "signed out is signed out, whoever kept the cookie"


async def test_a_session_ends_by_itself(house: House) -> None:
    async with house.officer() as browser:
        await house.clock.advance(IDLE_S - 1)
        assert (await browser.get("/people/me")).status_code == 200
        for _ in range(int(LASTS_S // (IDLE_S - 60)) - 1):
            await house.clock.advance(IDLE_S - 60)
            assert (await browser.get("/people/me")).status_code == 200, "who works stays signed in"
        await house.clock.advance(IDLE_S - 60)
        assert (await browser.get("/people/me")).status_code == 401, "but not beyond the day"
    async with house.signed_in("officer-1") as browser:
        await house.clock.advance(IDLE_S + 1)
        assert (await browser.get("/people/me")).status_code == 401


async def test_guessing_is_bounded_and_looks_alike_whether_or_not_the_person_exists(house: House) -> None:
    async with house.officer() as _, house.browser("10.9.9.9") as browser:
        said = set()
        for person in ("officer-1", "nobody-1"):
            for _ in range(MOST_PER_PAIR):
                wrong = await browser.post("/people/sign-in", json={"person": person, "password": "wrong password"})
                said.add((wrong.status_code, wrong.text))
            locked = await browser.post("/people/sign-in", json={"person": person, "password": PASSWORD})
            assert (locked.status_code, locked.json()["title"]) == (429, "too_many_attempts")
            assert locked.headers["retry-after"] == "900"
        assert len(said) == 1
        async with house.signed_in("officer-1"):
            pass  # from another address the person is not locked out
        await house.clock.advance(WINDOW_S + 1)
        answer = await browser.post("/people/sign-in", json={"person": "officer-1", "password": PASSWORD})
        assert answer.status_code == 200
    failed = [data for name, data in await house.events() if name == "auth_failed"]
    assert [one["person"] for one in failed].count("officer-1") == MOST_PER_PAIR
    assert "nobody-1" not in str(failed), "what is typed as a name may be a password"


async def test_an_authenticator_is_asked_for_once_it_is_set_up(house: House) -> None:
    async with house.officer() as browser:
        secret = secret_of((await browser.post("/people/totp")).json()["address"])

        def code() -> str:
            return totp_code(secret, int(house.clock.now().timestamp()) // TOTP_STEP_S)

        wrong = "000000" if code() != "000000" else "000001"
        assert (await browser.post("/people/totp/confirm", json={"code": wrong})).status_code == 401
        confirmed = await browser.post("/people/totp/confirm", json={"code": code()})
        assert (confirmed.status_code, confirmed.json()["mfa"]) == (200, True)
        assert (await browser.post("/people/totp")).status_code == 409, "a stolen session cannot replace it"
    wanted = {"person": "officer-1", "password": PASSWORD}
    async with house.browser() as browser:
        without = await browser.post("/people/sign-in", json=wanted)
        assert (without.status_code, without.json()["title"]) == (401, "code_needed")
        used = await browser.post("/people/sign-in", json=wanted | {"code": code()})
        assert used.status_code == 401, "that code was used already"
        await house.clock.advance(TOTP_STEP_S)
        assert (await browser.post("/people/sign-in", json=wanted | {"code": code()})).json()["mfa"] is True


async def test_where_a_second_factor_is_asked_for_a_password_alone_reaches_nothing_else(stage: Stage) -> None:
    house = await open_house(stage, require_mfa=True)
    try:
        async with house.officer() as browser:
            refused = await browser.get("/people")
            assert (refused.status_code, refused.json()["title"]) == (403, "second_factor_needed")
            secret = secret_of((await browser.post("/people/totp")).json()["address"])
            code = totp_code(secret, int(house.clock.now().timestamp()) // TOTP_STEP_S)
            await browser.post("/people/totp/confirm", json={"code": code})
            assert (await browser.get("/people")).status_code == 200
    finally:
        await house.app.db.close()


async def test_what_counts_is_done_only_by_who_showed_it_is_them_just_now(house: House) -> None:
    async with house.officer() as browser:
        await house.clock.advance((FRESH + timedelta(seconds=1)).total_seconds())
        wanted = {"person": "lead-1", "name": "Lea", "roles": [{"role": "study_lead", "study_id": STUDY}]}
        stale = await browser.post("/people", json=wanted)
        assert (stale.status_code, stale.json()["title"]) == (403, "step_up_needed")
        assert (await browser.get("/people")).status_code == 200
        assert (await browser.post("/people/step-up", json={"password": "wrong password"})).status_code == 401
        assert (await browser.post("/people/step-up", json={"password": PASSWORD})).status_code == 200
        assert (await browser.post("/people", json=wanted)).status_code == 201
    assert [name for name, _ in await house.events()].count("auth_stepup") == 1


async def test_a_pass_says_who_asks_at_another_service(stage: Stage, house: House) -> None:
    async with house.officer() as browser:
        given = (await browser.post("/people/pass", json={"service": "scheduler"})).json()
        said = read_pass(given["token"], stage.files.trust, "scheduler", house.clock.now())
        assert (said.person, [one.role for one in said.roles]) == ("officer-1", ["officer"])
        assert (await browser.post("/people/pass", json={"service": "consent"})).status_code == 422
        async with house.browser() as other:
            bearer = {"Authorization": f"Bearer {given['token']}"}
            assert (await other.get("/people/me", headers=bearer)).status_code == 401


@pytest.mark.parametrize("cookie", ["", "x", "\xe9"])
async def test_a_cookie_of_nobodys_session_is_nobody(house: House, cookie: str) -> None:
    async with house.browser() as browser:
        answer: httpx.Response = await browser.get(
            "/people/me", headers={"Cookie": f"{COOKIE}={cookie}".encode("latin-1")}
        )
    assert answer.status_code == 401


async def test_failures_without_end_are_few_events_that_stand_for_all_of_them(house: House) -> None:
    """Somebody with many addresses and invented names; and the same again, a quarter of an hour later."""
    rest = 5
    tries = 4 * MOST_TOLD + rest
    for _ in range(tries):
        await house.app.people.failed(None, "local", "SIGN_IN_REFUSED")
    counts = [data.get("count") for _, data in await house.events()]
    assert counts == [None] * MOST_TOLD + [MOST_TOLD, 2 * MOST_TOLD], f"{tries} in all"
    await house.app.people.failed("officer-1", "local", "SIGN_IN_REFUSED")
    await house.app.people.failed(None, "oidc", "STATE_UNKNOWN")
    assert len(await house.events()) == len(counts) + 2, "each has its own"
    await house.clock.advance(WINDOW_S + 1)
    await house.app.people.failed(None, "local", "SIGN_IN_REFUSED")
    later = [data.get("count") for _, data in (await house.events())[len(counts) + 2 :]]
    assert later == [rest, None]
    told = [1 if count is None else count for count in (*counts, *later[:1])]
    assert sum(told) == tries
