"""A consent service with people, and browsers at its door."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from sqlalchemy import select

from cohortium_consent.app import App
from cohortium_consent.settings import ConsentSettings
from cohortium_kit.tables import outbox
from cohortium_kit.testing.clock import ManualClock
from cohortium_messages.people import Assignment
from cohortium_platform.people.passes import LASTS, Pass, sign_pass
from governance_stage import Stage

PASSWORD = "correct horse battery"


class House:
    """The service, and who stands before it."""

    def __init__(self, app: App, clock: ManualClock, token: str) -> None:
        self.app = app
        self.clock = clock
        self.token = token

    def browser(self, address: str = "10.0.0.1", *, csrf: str = "") -> httpx.AsyncClient:
        """A browser of its own: it keeps cookies, and sends `csrf` with what it sends."""
        transport = httpx.ASGITransport(app=self.app.http, client=(address, 1234))
        headers = {"X-CSRF-Token": csrf} if csrf else {}
        return httpx.AsyncClient(transport=transport, base_url="https://consent.example", headers=headers)

    def machine(self) -> httpx.AsyncClient:
        made = self.browser()
        made.headers["Authorization"] = f"Bearer {self.token}"
        return made

    async def events(self) -> list[tuple[str, dict[str, object]]]:
        """What went on record: the last part of each type's name, and its data."""
        async with self.app.db.reading("events") as tx:
            rows = await tx.rows(select(outbox.c.type, outbox.c.body).order_by(outbox.c.id))
        return [(row.type.split(".")[-2], json.loads(row.body)["data"]) for row in rows]

    async def set_up(self, person: str, token: str) -> None:
        async with self.browser() as browser:
            wanted = {"person": person, "token": token, "password": PASSWORD}
            assert (await browser.post("/people/setup", json=wanted)).status_code == 204

    @asynccontextmanager
    async def signed_in(self, person: str, **more: str) -> AsyncIterator[httpx.AsyncClient]:
        """A browser in which somebody has signed in."""
        async with self.browser() as browser:
            answer = await browser.post("/people/sign-in", json={"person": person, "password": PASSWORD, **more})
            assert answer.status_code == 200, answer.text
            browser.headers["X-CSRF-Token"] = answer.json()["csrf"]
            yield browser

    @asynccontextmanager
    async def officer(self, person: str = "officer-1") -> AsyncIterator[httpx.AsyncClient]:
        """The first officer, signed in."""
        async with self.machine() as machine:
            made = await machine.post("/people/first", json={"person": person, "name": "Olga Officer"})
        assert made.status_code == 201, made.text
        await self.set_up(person, made.json()["token"])
        async with self.signed_in(person) as browser:
            yield browser

    async def person(self, by: httpx.AsyncClient, person: str, *roles: dict[str, str]) -> None:
        """Somebody added by an officer or a site admin, with a password."""
        made = await by.post("/people", json={"person": person, "name": person.title(), "roles": list(roles)})
        assert made.status_code == 201, made.text
        await self.set_up(person, made.json()["token"])


async def open_house(stage: Stage, **settings: object) -> House:
    made = ConsentSettings.model_validate({**stage.settings("consent"), **settings})
    app = await App.build(made, bus=await stage.bus(), database=await stage.database("consent"), clock=stage.clock)
    return House(app, stage.clock, stage.files.operator_token)


def bearer(stage: Stage, service: str, *roles: Assignment) -> dict[str, str]:
    """The header of somebody with a pass for a service, in these roles."""
    now = stage.clock.now()
    said = Pass(
        federation=stage.files.trust.federation,
        service=service,
        person="p-0001",
        roles=roles,
        issued_at=now,
        ends_at=now + LASTS,
        proved_at=now,
    )
    return {"Authorization": f"Bearer {sign_pass(said, stage.service_key('consent'))}"}
