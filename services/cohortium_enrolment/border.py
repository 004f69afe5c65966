"""The broker's questions, answered: may this login in, and what may it do. Every no is counted for the audit log.

Only sites are answered for here. The services' own users are the broker's; a wrong password of theirs comes here, too,
and is refused like every name that is no site's.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from cohortium_enrolment import store
from cohortium_enrolment.domain.passes import Claim, Pass, PassRules, Refusal, connected_as, judge
from cohortium_enrolment.domain.sites import Active, Invited, Site
from cohortium_enrolment.refusals import Refusals
from cohortium_enrolment.tokens import TokenUnreadable, TokenVault
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database, Tx
from cohortium_messages.ids import SiteId
from cohortium_messages.rights import (
    CHECK_NAME,
    NOBODY,
    NOBODYS_KEY,
    SITE_ID,
    Asked,
    Standing,
    site_may,
    site_may_publish,
)
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.logins import Audience, LoginStatement, read_login, verify_invited_login, verify_login

log = structlog.get_logger(__name__)

LOGINS_A_MINUTE = 60
_LAST_SECOND = 253_402_300_799
"""The last second of the year 9999, beyond which Python has no time."""


@dataclass(slots=True)
class Border:
    """Answers for one federation: its audience, its namespace in it, and its virtual host."""

    db: Database
    clock: Clock
    vault: TokenVault
    audience: Audience
    vhost: str
    rules: PassRules
    refusals: Refusals
    _issuing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Two connections of one site log in at once with one statement: it has one pass."""
    _logins: dict[SiteId, deque[float]] = field(default_factory=dict)

    async def login(self, name: str, password: str) -> Standing | None:
        """With which standing this login is let in; None if it is not. A good one is on record when this returns."""
        if not SITE_ID.match(name):
            if (name, password) != ("guest", "guest"):  # everybody's start-up check asks that
                self._refuse(None, "SITE_UNKNOWN")
            return None
        site_id = SiteId(name)
        site, passes = await self._known(site_id)
        verdict = await self._verdict(site_id, site, passes, password)
        if isinstance(verdict, Pass):
            log.info("broker_login_accepted", site=site_id, standing=verdict.standing.value)
            return verdict.standing
        self._refuse(None if site is None else site_id, verdict)
        return None

    async def _verdict(self, site_id: SiteId, site: Site | None, passes: list[Pass], password: str) -> Pass | Refusal:
        try:
            statement = read_login(password)
        except RemoteFault:
            return "LOGIN_MALFORMED"
        if max(statement.issued_at, statement.ends_at) > _LAST_SECOND:
            return "LOGIN_MALFORMED"
        claim = self._claim(site, statement)
        if claim.fits and self._too_often(site_id):
            return "LOGIN_TOO_OFTEN"
        verdict = judge(site, claim, passes, self.rules, self.clock.now())
        if not isinstance(verdict, Pass) or verdict in passes:
            return verdict
        async with self._issuing:
            return await self.db.run("issue_pass", lambda tx: self._issue(tx, site_id, statement))

    async def may_enter(self, name: str, vhost: str, tag: str) -> bool:
        """Whether this login may use the virtual host."""
        if vhost != self.vhost:
            self._refuse(await self._known_id(name), "VHOST_FORBIDDEN")
            return False
        return await self._standing(name, tag) is not None

    async def may(self, name: str, vhost: str, tag: str, asked: Asked) -> bool:
        """Whether this login may do this with a queue or an exchange."""
        standing = await self._standing(name, tag) if vhost == self.vhost else None
        if standing is None:
            return False
        if site_may(SiteId(name), standing, self.audience.namespace, asked):
            return True
        if not _is_check(asked):
            self._refuse(SiteId(name), _code(asked))
        return False

    async def may_publish(self, name: str, vhost: str, tag: str, asked: Asked, key: str) -> bool:
        """Whether this login may publish under this key."""
        if not await self.may(name, vhost, tag, asked):
            return False
        standing = Standing(tag)
        if site_may_publish(SiteId(name), standing, key):
            return True
        if key != NOBODYS_KEY:
            self._refuse(SiteId(name), "KEY_FORBIDDEN")
        return False

    async def refused_by_broker(self, name: str | None, code: str) -> None:
        """Count what the broker refused by itself; `name` is the login, where it is sure."""
        self._refuse(None if name is None else await self._known_id(name), code)

    async def _standing(self, name: str, tag: str) -> Standing | None:
        if not SITE_ID.match(name):
            return None
        site, passes = await self._known(SiteId(name))
        found = connected_as(site, passes, tag, self.clock.now())
        if isinstance(found, Standing):
            return found
        self._refuse(None if site is None else SiteId(name), found)
        return None

    async def _known(self, site_id: SiteId) -> tuple[Site | None, list[Pass]]:
        async with self.db.reading("find_passes") as tx:
            return await store.site(tx, site_id), await store.passes(tx, site_id)

    async def _known_id(self, name: str) -> SiteId | None:
        if not SITE_ID.match(name):
            return None
        site, _ = await self._known(SiteId(name))
        return None if site is None else site.site_id

    async def _issue(self, tx: Tx, site_id: SiteId, statement: LoginStatement) -> Pass | Refusal:
        """Judge again with what is on record now, and write the pass. Two connections may log in at once."""
        site, passes = await store.site(tx, site_id), await store.passes(tx, site_id)
        verdict = judge(site, self._claim(site, statement), passes, self.rules, self.clock.now())
        if isinstance(verdict, Pass) and verdict not in passes:
            await store.add_pass(tx, verdict)
        return verdict

    def _claim(self, site: Site | None, statement: LoginStatement) -> Claim:
        issued_at, ends_at = (
            datetime.fromtimestamp(moment, UTC) for moment in (statement.issued_at, statement.ends_at)
        )
        return Claim(issued_at, ends_at, statement.nonce, self._fits(site, statement))

    def _fits(self, site: Site | None, statement: LoginStatement) -> bool:
        try:
            match site:
                case Active(site_id=site_id, identity_pk=key):
                    verify_login(statement, self.audience, site_id, key)
                case Invited(site_id=site_id, sealed_token=sealed) if sealed:
                    verify_invited_login(statement, self.audience, site_id, self.vault.open(sealed))
                case _:
                    return False
        except (RemoteFault, TokenUnreadable):
            return False
        return True

    def _too_often(self, site_id: SiteId) -> bool:
        """Counts proven logins only: with false ones anybody could shut a site out."""
        now = self.clock.monotonic()
        recent = self._logins.setdefault(site_id, deque(maxlen=LOGINS_A_MINUTE))
        if len(recent) == LOGINS_A_MINUTE and now - recent[0] < 60:
            return True
        recent.append(now)
        return False

    def _refuse(self, site_id: SiteId | None, code: str) -> None:
        log.warning("broker_access_refused", site=site_id, code=code)
        self.refusals.note(site_id, code)


def _is_check(asked: Asked) -> bool:
    """Whether this was tried by a start-up check, which wants to be refused."""
    return asked.name.endswith(f".{CHECK_NAME}") or f".site.{NOBODY}." in asked.name


def _code(asked: Asked) -> str:
    match asked.resource, asked.permission:
        case _, "configure":
            return "DECLARE_FORBIDDEN"
        case "queue", "read":
            return "QUEUE_FORBIDDEN"
        case "queue", _:
            return "DECLARE_FORBIDDEN"
        case _:
            return "EXCHANGE_FORBIDDEN"
