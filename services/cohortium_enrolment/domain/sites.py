"""Who is a site: the life of a registration, and what a membership manifest must agree with. Pure: time comes in.

Everything that changes a site's state is in `advance`; everything that `advance` may do is in `TRANSITIONS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, assert_never

from cohortium_kit.errors import CohortiumError
from cohortium_messages.governance import Manifest
from cohortium_messages.ids import SiteId

Proof = Literal["FITS", "BAD_PROOF", "TOKEN_UNKNOWN"]
"""What the checks of a registration's cryptography found: its proof of possession, then its token."""


@dataclass(frozen=True, slots=True)
class Invited:
    """A one-time token is out. Whether it has expired is a question of the moment it is used."""

    site_id: SiteId
    name: str
    expires_at: datetime
    sealed_token: bytes


@dataclass(frozen=True, slots=True)
class Lapsed:
    """A newer invitation under the same name took this one's place; its token is worth nothing."""

    site_id: SiteId
    name: str


@dataclass(frozen=True, slots=True)
class Active:
    """`identity_pk` speaks for this site."""

    site_id: SiteId
    name: str
    identity_pk: bytes
    since: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """Nothing that this site signs is valid any more; `identity_pk` is None if it never registered."""

    site_id: SiteId
    name: str
    identity_pk: bytes | None
    reason: str
    at: datetime


Site = Invited | Lapsed | Active | Revoked


@dataclass(frozen=True, slots=True)
class Register:
    """A site shows its key; `proof` says what was found when its signature, proof and token were checked."""

    identity_pk: bytes
    proof: Proof
    now: datetime


@dataclass(frozen=True, slots=True)
class Replace:
    """A newer invitation was made under the same name."""


@dataclass(frozen=True, slots=True)
class Revoke:
    """An operator ends the site's standing."""

    reason: str
    now: datetime


Command = Register | Replace | Revoke


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The site's key is known from now on; everybody is told."""

    site_id: SiteId
    name: str
    identity_pk: bytes


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The site asked again with the key it registered: it gets the same answer, nobody else is told anything."""

    site_id: SiteId
    name: str
    identity_pk: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The registration changes nothing, and the site is told why."""

    site_id: SiteId
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The site's key is void from now on; everybody is told."""

    site_id: SiteId
    reason: str


Event = Enrolled | Confirmed | Refused | Ended

TRANSITIONS: Mapping[tuple[type[Site], type[Command]], tuple[type[Site], ...]] = {
    (Invited, Register): (Invited, Active),
    (Invited, Replace): (Lapsed,),
    (Invited, Revoke): (Revoked,),
    (Lapsed, Register): (Lapsed,),
    (Lapsed, Replace): (Lapsed,),
    (Lapsed, Revoke): (Revoked,),
    (Active, Register): (Active,),
    (Active, Replace): (Active,),
    (Active, Revoke): (Revoked,),
    (Revoked, Register): (Revoked,),
    (Revoked, Replace): (Revoked,),
    (Revoked, Revoke): (Revoked,),
}
"""Where each command may lead from each state. `advance` does nothing that is not here; a test holds it to that."""


def advance(site: Site, command: Command) -> tuple[Site, tuple[Event, ...]]:
    """The site after the command, and what follows. A command that comes twice changes nothing the second time."""
    match command:
        case Register():
            return _register(site, command)
        case Replace():
            return (Lapsed(site.site_id, site.name), ()) if isinstance(site, Invited) else (site, ())
        case Revoke():
            return _revoke(site, command)
        case _:
            assert_never(command)


def _register(site: Site, command: Register) -> tuple[Site, tuple[Event, ...]]:
    if command.proof == "BAD_PROOF":
        return site, (Refused(site.site_id, "BAD_PROOF"),)
    match site:
        case Active(identity_pk=known) if known == command.identity_pk:
            # Its token is gone, so only the key itself can prove that this is the same registration again.
            return site, (Confirmed(site.site_id, site.name, known),)
        case Active():
            return site, (Refused(site.site_id, "TOKEN_SPENT"),)
        case Revoked():
            return site, (Refused(site.site_id, "SITE_REVOKED"),)
        case Lapsed():
            return site, (Refused(site.site_id, "TOKEN_EXPIRED"),)
        case Invited(expires_at=end) if command.now >= end:
            return site, (Refused(site.site_id, "TOKEN_EXPIRED"),)
        case Invited() if command.proof == "TOKEN_UNKNOWN":
            return site, (Refused(site.site_id, "TOKEN_UNKNOWN"),)
        case Invited():
            active = Active(site.site_id, site.name, command.identity_pk, command.now)
            return active, (Enrolled(site.site_id, site.name, command.identity_pk),)
        case _:
            assert_never(site)


def _revoke(site: Site, command: Revoke) -> tuple[Site, tuple[Event, ...]]:
    match site:
        case Revoked():
            return site, ()
        case Active(identity_pk=key):
            revoked = Revoked(site.site_id, site.name, key, command.reason, command.now)
            return revoked, (Ended(site.site_id, command.reason),)
        case Invited() | Lapsed():
            # Nobody was ever told of this site, so nobody needs to forget it.
            return Revoked(site.site_id, site.name, None, command.reason, command.now), ()
        case _:
            assert_never(site)


class ManifestRefused(CohortiumError):
    """The manifest does not fit what is on record. `field` says where, the text says what and what to do."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def check_members(manifest: Manifest, sites: Mapping[SiteId, Site]) -> None:
    """Raise `ManifestRefused` unless every member is an active site under exactly the key and name on record."""
    for place, member in enumerate(manifest.members):
        site = sites.get(member.site_id)
        field = f"members.{place}"
        if not isinstance(site, Active):
            state = "not known here" if site is None else f"{type(site).__name__.lower()}, not active"
            raise ManifestRefused(f"{field}.site_id", f"site {member.site_id} is {state}; enrol it, then draft again")
        if site.identity_pk != member.identity_pk:
            raise ManifestRefused(
                f"{field}.identity_pk", f"the key is not the one that {site.name} registered; draft the manifest again"
            )
        if site.name != member.name:
            raise ManifestRefused(f"{field}.name", f"site {member.site_id} is registered as {site.name!r}")


def check_place(manifest: Manifest, latest: Manifest | None) -> None:
    """Raise `ManifestRefused` unless this is the version that comes next; the chain of hashes is checked elsewhere."""
    expected = 1 if latest is None else latest.version + 1
    if manifest.version != expected:
        raise ManifestRefused(
            "version",
            f"study {manifest.study_id} needs version {expected} next, not {manifest.version}; draft it again",
        )
