"""This site's login at the broker: a statement that it signs itself, and makes anew before the last one ends."""

import asyncio
import random
import secrets
from collections.abc import Callable

from cohortium_connector.identity import Identity, read_invitation
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit.addresses import login_of, with_login
from cohortium_kit.amqp import Login
from cohortium_kit.clock import Clock
from cohortium_kit.errors import ConfigurationError
from cohortium_protocol.logins import NONCE_BYTES, Audience, LoginStatement, make_login

RENEW_FROM, RENEW_TO = 0.5, 0.75
"""A new statement is made somewhere in this part of the last one's time: hospitals do not come all at once."""


class SiteLogin:
    """The broker's address with this site's login, for every dial. All connections share one statement: enrolment ends
    those of the last one when it has seen a newer."""

    def __init__(self, settings: ConnectorSettings, identity: Identity, clock: Clock) -> None:
        if login_of(settings.amqp_url) is not None:
            raise ConfigurationError("amqp_url: remove the login; the site's own key is its login")
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._audience = Audience(identity.trust.federation, settings.namespace)
        self._login: Login | None = None
        self._statement: LoginStatement | None = None

    def __call__(self) -> Login:
        """The login to dial with now: the one of the last dial, until it is to be renewed."""
        now, loop_now = int(self._clock.now().timestamp()), asyncio.get_running_loop().time()
        last = self._statement
        # A clock that was put back makes a statement from the future, which nobody would take.
        if self._login is None or last is None or loop_now >= self._login.renew_at or now < last.issued_at:
            lasts_s = self._settings.credential_s
            self._statement = self._make(now, int(lasts_s))
            part = random.uniform(RENEW_FROM, RENEW_TO)  # noqa: S311 - spreads load, no secret
            url = with_login(self._settings.amqp_url, self._identity.site_id, self._statement.password())
            self._login = Login(url, loop_now + part * lasts_s)
        return self._login

    def _make(self, now: int, lasts_s: int) -> LoginStatement:
        return make_login(
            self._audience,
            self._identity.site_id,
            self._identity.key,
            issued_at=now,
            ends_at=now + lasts_s,
            nonce=secrets.token_bytes(NONCE_BYTES),
            token=self._token(),
        )

    def _token(self) -> str | None:
        """The invitation's token, while the invitation is there. Once the key is registered nobody asks for it."""
        file = self._settings.invitation_file
        if file is None or not file.exists():
            return None
        invitation = read_invitation(self._settings)
        return invitation.token if invitation is not None and invitation.site_id == self._identity.site_id else None


def broker_address(settings: ConnectorSettings, identity: Identity, clock: Clock) -> str | Callable[[], Login]:
    """What the connector dials: with the site's own login, or, in a trial, with the one that the address brings."""
    if settings.broker_check == "trial" and login_of(settings.amqp_url) is not None:
        return settings.amqp_url
    return SiteLogin(settings, identity, clock)
