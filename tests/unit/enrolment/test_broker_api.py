"""The broker's questions as forms: what is none of them is answered `deny`, whatever it is."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from cohortium_cli.pki import key_pem, make_authority, make_server, pem
from cohortium_enrolment import store
from cohortium_enrolment.app import App
from cohortium_enrolment.domain.sites import Active
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.events import BrokerRefusal
from cohortium_protocol.logins import Audience, make_login
from governance_stage import Stage, hospital, sent_of


async def build(stage: Stage, **changes: Any) -> App:
    settings = EnrolmentSettings.model_validate({**stage.settings("enrolment"), **changes})
    database = await stage.database("enrolment")
    return await App.build(settings, bus=await stage.bus(), database=database, clock=stage.clock)


class Broker:
    """Asks as RabbitMQ does."""

    def __init__(self, app: App) -> None:
        self._transport = httpx.ASGITransport(app=app.gate.http)

    async def ask(self, question: str, *, content: bytes | None = None, **fields: str) -> str:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://enrolment") as client:
            answer = await client.post(f"/broker/{question}", data=fields or None, content=content)
        assert answer.status_code == 200
        return answer.text


@pytest.fixture
async def stage(tmp_path: Path) -> Stage:
    return Stage.at(tmp_path)


async def test_a_login_and_what_it_may_do(stage: Stage) -> None:
    app = await build(stage)
    site = hospital(1)
    active = Active(site.site_id, site.name, site.key.public, stage.clock.now())
    await app.db.run("test", lambda tx: store.add_site(tx, active, "test"))
    now = int(stage.clock.now().timestamp())
    audience = Audience("test.example", "test")
    login = make_login(audience, site.site_id, site.key, issued_at=now, ends_at=now + 600, nonce=bytes(16))
    broker = Broker(app)
    who = {"username": site.site_id}
    assert await broker.ask("user", **who, password=login.password()) == "allow active"
    asked = {**who, "vhost": "/", "tags": "active"}
    assert await broker.ask("vhost", **asked, ip="127.0.0.1") == "allow"
    own = {"resource": "queue", "name": f"test.site.{site.site_id}.bulk", "permission": "read"}
    assert await broker.ask("resource", **asked, **own) == "allow"
    topic = {"resource": "topic", "name": "test.uplink", "permission": "write"}
    assert await broker.ask("topic", **asked, **topic, routing_key=f"site.{site.site_id}.audit") == "allow"
    assert await broker.ask("topic", **asked, **topic, routing_key="site.x.audit") == "deny"
    for changes in ({"tags": "invited"}, {"tags": ""}, {"vhost": "other"}, {"username": "admin"}):
        assert await broker.ask("resource", **{**asked, **changes}, **own) == "deny"
    await stage.clock.advance(601)
    assert await broker.ask("resource", **asked, **own) == "deny"
    assert await broker.ask("user", **who, password=login.password()) == "deny"
    await app.gate.refusals.report(app.db)
    codes = {one.code for _, one in await _events(app)}
    assert codes == {"KEY_FORBIDDEN", "LOGIN_RETIRED", "LOGIN_ENDED"}


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"username=a", b"username=a&username=b&password=c", b"\xff=1", b"username=a&password=" + b"x" * 5000],
)
@pytest.mark.parametrize("question", ["user", "vhost", "resource", "topic"])
async def test_what_is_no_question_is_denied(stage: Stage, question: str, content: bytes) -> None:
    broker = Broker(await build(stage))
    assert await broker.ask(question, content=content) == "deny"


async def test_the_gate_is_not_opened_without_somebody_who_closes(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match="management_url"):
        await build(stage, broker_auth_port=8081)


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"broker_auth_cert_file": "tls.crt"}, "give both, or neither"),
        ({"broker_auth_cert_file": "tls.crt", "broker_auth_key_file": "absent.key"}, "secret file .*absent.key"),
        ({"broker_auth_cert_file": "tls.crt", "broker_auth_key_file": "open.key"}, "chmod 600"),
        ({"broker_auth_cert_file": "tls.crt", "broker_auth_key_file": "other.key"}, "that belong together"),
    ],
)
async def test_a_certificate_that_cannot_be_shown_is_said_at_the_start(
    stage: Stage, tmp_path: Path, files: dict[str, str], word: str
) -> None:
    now = datetime.now(UTC)
    certificate, key = make_server(*make_authority("test.example", now), ["enrolment"], now)
    _, other = make_authority("test.example", now)
    for name, text in {"tls.crt": pem(certificate), "open.key": key_pem(key), "other.key": key_pem(other)}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644 if name == "open.key" else 0o600)
    with pytest.raises(ConfigurationError, match=word):
        await build(
            stage,
            broker_auth_port=8081,
            management_url="https://reaper:x@broker:15671",
            **{name: str(tmp_path / file) for name, file in files.items()},
        )


async def test_refusals_are_one_event_a_minute(stage: Stage) -> None:
    app = await build(stage)
    for _ in range(3):
        for _ in range(50):
            await app.gate.border.login("nobody", "x")
            await app.gate.refusals.report(app.db)
        await stage.clock.advance(61)
    await app.gate.refusals.report(app.db)
    counts = [one.count for _, one in await _events(app)]
    assert sum(counts) == 150
    assert len(counts) <= 4


async def _events(app: App) -> list[tuple[str, BrokerRefusal]]:
    return await sent_of(app, BrokerRefusal)
