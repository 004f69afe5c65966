"""The login that a connector makes for itself: shared by its connections, renewed in time, never older than it says."""

import asyncio
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from cohortium_connector.login import RENEW_FROM, RENEW_TO, SiteLogin, broker_address
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.amqp import Login
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.testing.clock import START, ManualClock
from cohortium_messages.ids import SiteId
from cohortium_protocol.logins import NO_MAC, Audience, LoginStatement, read_login, verify_login
from cohortium_protocol.signing import IdentityKey

SITE = SiteId("11111111-1111-4111-8111-111111111111")
KEY = IdentityKey.from_seed(bytes(range(32)))


def settings(folder: Path, **changes: object) -> ConnectorSettings:
    values = {
        "amqp_url": "amqps://broker.example:5671/cohortium",
        "spool_dir": str(folder),
        "governance_keys": ["ab" * 32],
        "governance_threshold": 1,
        "credential_s": 100,
    }
    return ConnectorSettings.model_validate({**values, **changes})


def login(folder: Path, clock: ManualClock, **changes: object) -> SiteLogin:
    identity = SimpleNamespace(site_id=SITE, key=KEY, trust=SimpleNamespace(federation="hospitals.example"))
    return SiteLogin(settings(folder, **changes), identity, clock)  # type: ignore[arg-type]


def statement(made: Login) -> LoginStatement:
    password = urlsplit(made.url).password
    assert password is not None
    return read_login(password)


async def test_it_is_the_sites_own_and_lasts_as_long_as_the_settings_say(tmp_path: Path) -> None:
    clock = ManualClock()
    made = login(tmp_path, clock)()
    found = statement(made)
    verify_login(found, Audience("hospitals.example", "cohortium"), SITE, KEY.public)
    assert (found.issued_at, found.ends_at) == (int(clock.now().timestamp()), int(clock.now().timestamp()) + 100)
    assert found.mac == NO_MAC
    assert urlsplit(made.url).username == SITE
    assert found.signature.hex() not in repr(made)


async def test_connections_share_it_until_it_is_to_be_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    source = login(tmp_path, ManualClock())
    first = source()
    assert source() is first
    assert began + 100 * RENEW_FROM <= first.renew_at <= loop.time() + 100 * RENEW_TO
    monkeypatch.setattr(loop, "time", lambda: first.renew_at)
    second = source()
    assert second is not first
    assert statement(second).nonce != statement(first).nonce


async def test_a_clock_that_was_put_back_makes_a_new_one(tmp_path: Path) -> None:
    source = login(tmp_path, ManualClock())
    first = source()
    source._clock = ManualClock(START - timedelta(hours=1))
    assert source() is not first


def test_an_address_with_a_login_is_for_trials(tmp_path: Path) -> None:
    identity = SimpleNamespace(site_id=SITE, key=KEY, trust=SimpleNamespace(federation="hospitals.example"))
    url = "amqps://somebody:pw@broker.example/cohortium"
    with pytest.raises(ConfigurationError, match="remove the login"):
        broker_address(settings(tmp_path, amqp_url=url), identity, ManualClock())  # type: ignore[arg-type]
    trial = settings(tmp_path, amqp_url=url, broker_check="trial")
    assert broker_address(trial, identity, ManualClock()) == url  # type: ignore[arg-type]
