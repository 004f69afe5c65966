"""Which login at the broker is good, and which connection is over (decision 0013). Pure: time comes in.

A good login issues a *pass*: until when this site may be connected by this statement. The newest pass of a site is the
one that counts; the one before it stays good for the overlap in which a connector moves over.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from cohortium_enrolment.domain.sites import Active, Invited, Lapsed, Revoked, Site
from cohortium_messages.ids import SiteId
from cohortium_messages.rights import Standing

Refusal = Literal[
    "LOGIN_MALFORMED",
    "LOGIN_BAD_PROOF",
    "LOGIN_EARLY",
    "LOGIN_ENDED",
    "LOGIN_TOO_LONG",
    "LOGIN_RETIRED",
    "LOGIN_TOO_OFTEN",
    "SITE_UNKNOWN",
    "SITE_REVOKED",
    "TOKEN_EXPIRED",
]
"""Why a login is refused. `problems.SENTENCES` has the sentence for each."""

SKEW = timedelta(minutes=5)
"""A site's clock may be ahead of ours by this much."""
BROKER_SKEW = timedelta(seconds=2)
"""The moment a connection was opened is by the broker's clock, and a little before we are asked about its login."""


@dataclass(frozen=True, slots=True)
class PassRules:
    """`longest` is what a statement may last at most; `overlap`, how long the pass before the newest is good."""

    longest: timedelta
    overlap: timedelta
    most_connections: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a statement says of itself, once its proof was looked at. `fits`: it was made with what the site's standing
    demands, the identity key of an active site or the token of an invited one."""

    issued_at: datetime
    ends_at: datetime
    nonce: bytes
    fits: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """One accepted login. `standing` is what the site was when it logged in: a pass never gains rights afterwards."""

    site_id: SiteId
    nonce: bytes
    standing: Standing
    issued_at: datetime
    ends_at: datetime
    first_seen: datetime


def standing_of(site: Site | None, now: datetime) -> Standing | Refusal:
    """What a site may be at the broker at this moment, or why it may not be there."""
    match site:
        case Active():
            return Standing.ACTIVE
        case Invited(expires_at=end) if now < end:
            return Standing.INVITED
        case Invited() | Lapsed():
            return "TOKEN_EXPIRED"
        case Revoked():
            return "SITE_REVOKED"
        case None:
            return "SITE_UNKNOWN"


def judge(site: Site | None, claim: Claim, passes: Sequence[Pass], rules: PassRules, now: datetime) -> Pass | Refusal:
    """The pass that this login has, a known one or a new one; or why it is refused.

    `passes` are those of the site that are on record. A statement may be used again until its end, but only while it
    is the newest one, or in the overlap after a newer one was first seen.
    """
    standing = standing_of(site, now)
    if not isinstance(standing, Standing):
        return standing
    assert site is not None  # noqa: S101 - only a known site has a standing
    if not claim.fits:
        return "LOGIN_BAD_PROOF"
    if claim.issued_at > now + SKEW:
        return "LOGIN_EARLY"
    if claim.ends_at <= now:
        return "LOGIN_ENDED"
    if not timedelta(0) < claim.ends_at - claim.issued_at <= rules.longest:
        return "LOGIN_TOO_LONG"
    # A pass never gains rights: what was issued while the site was invited is void once it is active.
    counting = [one for one in passes if one.standing is standing]
    known = next((one for one in counting if one.nonce == claim.nonce), None)
    newest = newest_pass(counting, now)
    if known is not None:
        return known if _good(known, newest, rules, now) else "LOGIN_RETIRED"
    if newest is not None and claim.issued_at < newest.issued_at:
        return "LOGIN_RETIRED"
    ends_at = min(claim.ends_at, now + rules.longest)
    return Pass(site.site_id, claim.nonce, standing, claim.issued_at, ends_at, now)


def newest_pass(passes: Iterable[Pass], now: datetime) -> Pass | None:
    """The pass that counts: of those that have not ended, the one that was first seen last."""
    return max((one for one in passes if now < one.ends_at), key=lambda one: one.first_seen, default=None)


def _good(one: Pass, newest: Pass | None, rules: PassRules, now: datetime) -> bool:
    """Whether a pass still lets anybody in."""
    if now >= one.ends_at:
        return False
    return newest is None or one.nonce == newest.nonce or now < newest.first_seen + rules.overlap


def connected_as(site: Site | None, passes: Sequence[Pass], tag: str, now: datetime) -> Standing | Refusal:
    """With which rights a question of the broker is answered. `tag` is the standing that the login was given."""
    standing = standing_of(site, now)
    if not isinstance(standing, Standing):
        return standing
    if tag != standing:
        return "LOGIN_RETIRED"
    counting = [one for one in passes if one.standing is standing]
    return standing if newest_pass(counting, now) is not None else "LOGIN_ENDED"


@dataclass(frozen=True, slots=True)
class Connection:
    """One open connection, as the broker's management lists it."""

    name: str
    user: str
    connected_at: datetime


@dataclass(frozen=True, slots=True)
class Over:
    """A connection that has to be closed, and why."""

    name: str
    site_id: SiteId
    reason: str


def connections_over(
    connections: Iterable[Connection],
    sites: Mapping[SiteId, Site],
    passes: Mapping[SiteId, Sequence[Pass]],
    rules: PassRules,
    now: datetime,
) -> list[Over]:
    """Which of these connections have to be closed now. Users that are no sites are not our affair.

    The broker does not say by which statement a connection was opened. But every connection from before the newest
    pass was opened by an older one, so it is over when the overlap is.
    """
    found: list[Over] = []
    kept: dict[SiteId, int] = {}
    for one in sorted(connections, key=lambda connection: connection.connected_at, reverse=True):
        site_id = SiteId(one.user)
        site = sites.get(site_id)
        if site is None:
            continue
        reason = _why_over(one, site, passes.get(site_id, ()), rules, now)
        if reason is None:
            kept[site_id] = kept.get(site_id, 0) + 1
            reason = "TOO_MANY_CONNECTIONS" if kept[site_id] > rules.most_connections else None
        if reason is not None:
            found.append(Over(one.name, site_id, reason))
    return found


def _why_over(one: Connection, site: Site, passes: Sequence[Pass], rules: PassRules, now: datetime) -> str | None:
    standing = standing_of(site, now)
    if not isinstance(standing, Standing):
        return standing
    newest = newest_pass([known for known in passes if known.standing is standing], now)
    if newest is None:
        return "LOGIN_ENDED"
    older = one.connected_at < newest.first_seen - BROKER_SKEW
    return "LOGIN_RETIRED" if older and now >= newest.first_seen + rules.overlap else None
