"""Signing in at an identity provider, and every answer of it that lets nobody in."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization

from cohortium_consent.oidc import REQUEST_S
from cohortium_consent.people_store import request_table
from cohortium_consent.settings import ConsentSettings
from cohortium_kit.errors import ConfigurationError
from cohortium_platform.people.guard import COOKIE, FRESH
from governance_stage import Stage
from identity_provider import CLIENT, SECRET, IdentityProvider, make_key, running
from people_stage import House, open_house

Bend = Callable[[dict[str, Any]], dict[str, Any]]


@asynccontextmanager
async def hospital(stage: Stage, folder: Path, **settings: object) -> AsyncIterator[tuple[House, IdentityProvider]]:
    """A service that knows a hospital's provider, and an auditor who is `sub-42` there."""
    secret = folder / "client.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    async with running(stage.clock) as provider:
        known = {"name": "north", "issuer": provider.issuer, "client_id": CLIENT, "client_secret_file": str(secret)}
        house = await open_house(stage, public_url="https://consent.example", oidc=[known], **settings)
        try:
            async with house.officer() as officer:
                at = {"provider": "north", "subject": "sub-42"}
                wanted = {"person": "auditor-1", "name": "Audra", "roles": [{"role": "auditor"}], "identity": at}
                made = await officer.post("/people", json=wanted)
                assert (made.status_code, made.json()["token"]) == (201, None)
                taken = await officer.post("/people", json=wanted | {"person": "auditor-2"})
                assert taken.status_code == 409
            yield house, provider
        finally:
            await house.app.db.close()


async def go(browser: httpx.AsyncClient, **query: str) -> str:
    """To the provider and back: the address that the provider sends the browser to."""
    start = await browser.get("/people/oidc/north/start", params=query)
    assert start.status_code == 303, start.text
    async with httpx.AsyncClient(verify=False) as outside:  # noqa: S501 - no TLS there; it only costs time
        back = await outside.get(start.headers["location"])
    return str(back.headers["location"])


async def sign_in(browser: httpx.AsyncClient, **query: str) -> httpx.Response:
    return await browser.get(await go(browser, **query))


def nobody(answer: httpx.Response) -> bool:
    return answer.status_code == 401 and COOKIE not in answer.headers.get("set-cookie", "").replace(f"{COOKIE}-", "")


async def test_a_person_of_a_provider_signs_in_and_steps_up_there(stage: Stage, tmp_path: Path) -> None:
    async with hospital(stage, tmp_path, require_mfa=False) as (house, provider), house.browser() as browser:
        answer = await sign_in(browser)
        assert answer.status_code == 200, answer.text
        cookies = answer.headers.get_list("set-cookie")
        assert any(one.startswith(f"{COOKIE}=") and "SameSite=strict" in one for one in cookies)
        me = (await browser.get("/people/me")).json()
        assert (me["person"], me["method"], me["mfa"]) == ("auditor-1", "oidc", True)
        assert "prompt" not in provider.asked[-1]
        password = await browser.post(
            "/people/step-up", json={"password": "of no use here"}, headers={"X-CSRF-Token": me["csrf"]}
        )
        assert (password.status_code, password.json()["title"]) == (409, "not_local")

        await stage.clock.advance(FRESH.total_seconds() + 1)
        long_ago = int(stage.clock.now().timestamp()) - 3600
        provider.bend = lambda claims: claims | {"auth_time": long_ago}
        assert nobody(await sign_in(browser, step_up="true")), "the provider let a remembered session through"
        provider.bend = lambda claims: claims
        before = me["proved_at"]
        assert (await sign_in(browser, step_up="true")).status_code == 200
        assert (provider.asked[-1]["prompt"], provider.asked[-1]["max_age"]) == ("login", "0")
        assert (await browser.get("/people/me")).json()["proved_at"] > before

        provider.subject = "sub-43"
        assert nobody(await sign_in(browser, step_up="true")), "another person's proof"
        names = [name for name, _ in await house.events()]
        assert (names.count("auth_stepup"), "auth_failed" in names) == (1, True)


def unsigned(claims: dict[str, Any]) -> str:
    parts = ({"alg": "none", "kid": "one"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in parts) + "."


def with_public_key(provider: IdentityProvider) -> Callable[[dict[str, Any]], str]:
    """HS256 under the provider's public key, which everybody has."""
    public = provider.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    def sign(claims: dict[str, Any]) -> str:
        import hashlib
        import hmac

        head, body, _ = unsigned(claims).split(".")
        head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').decode().rstrip("=")
        mac = hmac.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()
        return f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"

    return sign


async def test_an_id_token_that_is_not_for_us_now_and_this_request_lets_nobody_in(stage: Stage, tmp_path: Path) -> None:
    async with hospital(stage, tmp_path) as (house, provider), house.browser() as browser:
        now = int(stage.clock.now().timestamp())
        bends: dict[str, dict[str, Any]] = {
            "wrong nonce": {"nonce": "another"},
            "other audience": {"aud": "another-client"},
            "several audiences": {"aud": [CLIENT, "another-client"], "azp": "another-client"},
            "other issuer": {"iss": "https://another.example"},
            "expired": {"exp": now - 120},
            "of the future": {"iat": now + 3600},
            "not yet": {"nbf": now + 3600},
            "no number": {"exp": "soon"},
            "nobody we know": {"sub": "sub-99"},
        }
        for what, changed in bends.items():
            provider.bend = lambda claims, changed=changed: claims | changed  # type: ignore[misc]
            assert nobody(await sign_in(browser)), what
        for missing in ("nonce", "aud", "iss", "sub", "exp", "iat"):
            provider.bend = lambda claims, missing=missing: {k: v for k, v in claims.items() if k != missing}  # type: ignore[misc]
            assert nobody(await sign_in(browser)), f"no {missing}"
        provider.bend = lambda claims: claims
        stranger = make_key()
        signs: dict[str, Callable[[dict[str, Any]], str]] = {
            "alg none": unsigned,
            "a public key as a secret": with_public_key(provider),
            "another key by the same name": lambda claims: jwt.encode(
                claims, stranger, "RS256", headers={"kid": "one"}
            ),
            "a key nobody publishes": lambda claims: jwt.encode(claims, stranger, "RS256", headers={"kid": "two"}),
            "no token": lambda _: "x",
            "a very long one": lambda _: "x" * 40_000,
        }
        for what, sign in signs.items():
            provider.sign = sign
            assert nobody(await sign_in(browser)), what
        provider.sign = provider.signed
        assert (await sign_in(browser)).status_code == 200, "and the honest answer still does"
        failed = {str(data["reason"]) for name, data in await house.events() if name == "auth_failed"}
        assert failed == {"OIDC_TOKEN_REFUSED", "OIDC_PERSON_UNKNOWN", "OIDC_PROVIDER_WRONG"}


async def test_an_answer_counts_once_and_only_for_the_browser_that_asked(stage: Stage, tmp_path: Path) -> None:
    async with (
        hospital(stage, tmp_path) as (house, _),
        house.browser() as browser,
        house.browser() as victim,
    ):
        back = await go(browser)
        assert nobody(await victim.get(back)), "an attacker's answer, opened in the victim's browser"
        assert nobody(await browser.get(back)), "that answer is used up"
        back = await go(browser)
        assert (await browser.get(back)).status_code == 200
        assert nobody(await browser.get(back)), "replayed"
        back = await go(browser)
        assert nobody(await browser.get(back.replace("state=", "state=x"))), "state mismatch"
        back = await go(browser)
        assert nobody(await browser.get(back.partition("&iss=")[0] + "&iss=https%3A%2F%2Fanother.example")), "mix-up"
        stolen = httpx.URL(await go(victim)).params["code"]
        own = httpx.URL(await go(browser))
        spliced = own.copy_set_param("code", stolen)
        assert nobody(await browser.get(spliced)), "another's code does not fit our verifier"
        back = await go(browser)
        await stage.clock.advance(601)
        assert nobody(await browser.get(back)), "too late"
        assert (await browser.get("/people/oidc/south/start")).status_code == 404


async def test_without_a_second_factor_nobody_comes_in_where_one_is_asked_for(stage: Stage, tmp_path: Path) -> None:
    secret = tmp_path / "client.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    async with running(stage.clock) as provider:
        known = {"name": "north", "issuer": provider.issuer, "client_id": CLIENT, "client_secret_file": str(secret)}
        known |= {"acr": ["urn:mfa"], "amr": []}  # type: ignore[dict-item]
        house = await open_house(stage, require_mfa=True, public_url="https://consent.example", oidc=[known])
        async with house.browser() as browser:
            assert nobody(await sign_in(browser)), "amr says otp, but here only acr counts"
            assert provider.asked[-1]["acr_values"] == "urn:mfa"
            provider.bend = lambda claims: claims | {"acr": "urn:mfa"}
            assert (await sign_in(browser)).json()["title"] == "oidc_person_unknown"
        await house.app.db.close()


def test_settings_name_what_a_provider_lacks(stage: Stage, tmp_path: Path) -> None:
    base = stage.settings("consent")
    provider = {"name": "north", "issuer": "https://id.example", "client_id": "c", "client_secret_file": "/x"}
    for changed, said in (
        ({"oidc": [provider]}, "public_url"),
        ({"oidc": [provider, provider], "public_url": "https://c.example"}, "one name"),
        ({"oidc": [provider | {"issuer": "http://id.example"}], "public_url": "https://c.example"}, "oidc.0.issuer"),
    ):
        file = tmp_path / "consent.yaml"
        file.write_text(json.dumps(base | changed))
        with pytest.raises(ConfigurationError, match=said):
            ConsentSettings.load(file)


async def test_an_address_begins_no_more_than_so_many(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_consent.oidc.MOST_OPEN_PER_ADDRESS", 3)
    async with hospital(stage, tmp_path) as (house, _), house.browser() as browser:
        for _ in range(2):
            assert (await browser.get("/people/oidc/north/start")).status_code == 303
            await stage.clock.advance(10)
        assert (await sign_in(browser)).status_code == 200
        assert (await browser.get("/people/oidc/north/start")).status_code == 303, "one that came back is not open"
        refused = await browser.get("/people/oidc/north/start")
        assert (refused.status_code, refused.json()["title"]) == (429, "too_many_sign_ins")
        assert int(refused.headers["retry-after"]) == REQUEST_S - 20 == refused.json()["retry_after_s"]
        await stage.clock.advance(REQUEST_S - 20 + 1)
        assert (await sign_in(browser)).status_code == 200, "the oldest has ended"


async def test_of_too_many_in_all_the_oldest_are_forgotten(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_consent.oidc.MOST_OPEN", 3)
    async with hospital(stage, tmp_path) as (house, _), house.browser() as first, house.browser() as last:
        back = await go(first)
        for _ in range(3):
            await stage.clock.advance(1)
            await go(last)
        assert nobody(await first.get(back)), "its request was the oldest, and is forgotten"
        assert (await sign_in(last)).status_code == 200
        async with house.app.db.reading("test") as tx:
            left = await tx.scalar(sa.select(sa.func.count()).select_from(request_table))
        assert left == 2
