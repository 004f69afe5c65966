"""People on PostgreSQL, from two instances of the service: guesses made side by side count, too."""

import asyncio
from pathlib import Path

import pytest

from cohortium_consent.app import App
from cohortium_consent.settings import ConsentSettings
from cohortium_consent.sign_in import MOST_PER_PAIR
from cohortium_kit.db import Database
from cohortium_platform.people import passwords
from cohortium_platform.people.guard import COOKIE
from governance_stage import real_stage
from people_stage import House

pytestmark = pytest.mark.real


async def test_side_by_side_guesses_at_two_instances_are_bounded(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords.hashed, "__kwdefaults__", {"ops": 1, "memory": 8192})
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "consent") as (stage, bus):
        settings = ConsentSettings.model_validate(stage.settings("consent"))
        houses = []
        for _ in range(2):
            db = Database(settings.database_url, schema=settings.db_schema, clock=stage.clock)
            app = await App.build(settings, bus=bus, database=db, clock=stage.clock)
            houses.append(House(app, stage.clock, stage.files.operator_token))
        async with houses[0].officer() as _:
            wanted = {"person": "officer-1", "password": "wrong password"}
            browsers = [house.browser("10.9.9.9") for house in houses]
            answers = await asyncio.gather(
                *[browser.post("/people/sign-in", json=wanted) for browser in browsers for _ in range(6)]
            )
            statuses = [answer.status_code for answer in answers]
            # Some may be sent away because too many met; what must not be is a sixth guess.
            assert statuses.count(401) <= MOST_PER_PAIR
            assert set(statuses) <= {401, 429, 503}
        async with houses[1].signed_in("officer-1") as browser, houses[0].browser() as other:
            other.headers["Cookie"] = f"{COOKIE}={browser.cookies[COOKIE]}"
            assert (await other.get("/people/me")).json()["person"] == "officer-1", "any instance knows the session"
        for browser in browsers:
            await browser.aclose()
        for house in houses:
            await house.app.db.close()
