"""Tables of the people who sign in: accounts, roles, sessions, attempts, and requests at identity providers.

What a stolen copy of them gives: password hashes (Argon2id), no session and no token, for only digests of those are
kept, and no authenticator secret, for those are sealed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_consent.store import metadata
from cohortium_kit.db import Tx
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.people import Assignment, Method, Role

person_table = sa.Table(
    "person",
    metadata,
    sa.Column("person", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("setup_digest", sa.LargeBinary),
    sa.Column("setup_ends_at", sa.Double),
    sa.Column("totp_sealed", sa.LargeBinary),
    sa.Column("totp_confirmed", sa.Boolean, nullable=False),
    sa.Column("totp_last_step", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
identity_table = sa.Table(
    "person_identity",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("person", sa.Text, nullable=False),
)
role_table = sa.Table(
    "person_role",
    metadata,
    sa.Column("person", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Text, primary_key=True),
)
session_table = sa.Table(
    "person_session",
    metadata,
    sa.Column("session_digest", sa.LargeBinary, primary_key=True),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("mfa", sa.Boolean, nullable=False),
    sa.Column("began_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Column("proved_at", sa.Double, nullable=False),
)
attempt_table = sa.Table(
    "sign_in_attempt",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("failures", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
)
request_table = sa.Table(
    "oidc_request",
    metadata,
    sa.Column("state_digest", sa.LargeBinary, primary_key=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("browser_digest", sa.LargeBinary, nullable=False),
    sa.Column("nonce", sa.Text, nullable=False),
    sa.Column("verifier", sa.Text, nullable=False),
    sa.Column("session_digest", sa.LargeBinary),
    sa.Column("began_at", sa.Double, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Person:
    """One account. `ended`: nobody signs in with it again, and its id is never given anew."""

    person: str
    name: str
    ended: bool = False
    password_hash: str | None = None
    setup_digest: bytes | None = None
    setup_ends_at: float | None = None
    totp_sealed: bytes | None = None
    totp_confirmed: bool = False
    totp_last_step: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who signed in. Times are unix seconds; `proved_at`: when they last showed who they are."""

    session_digest: bytes
    person: str
    method: Method
    mfa: bool
    began_at: float
    seen_at: float
    proved_at: float


@dataclass(frozen=True, slots=True)
class OidcRequest:
    """Somebody who went to an identity provider and has not come back. `session_digest`: whose session is proved
    anew; None: a new one begins."""

    state_digest: bytes
    provider: str
    browser_digest: bytes
    nonce: str
    verifier: str
    session_digest: bytes | None
    began_at: float
    address: str


# People


async def person(tx: Tx, person_id: str) -> Person | None:
    """One account, an ended one too."""
    found = await tx.row(sa.select(*_PERSON).where(person_table.c.person == person_id))
    return None if found is None else Person(**found._asdict())


async def people(tx: Tx, after: str, limit: int, only: Iterable[str] | None = None) -> list[Person]:
    """Accounts in the order of their ids, of these people or of all."""
    query = sa.select(*_PERSON).where(person_table.c.person > after)
    if only is not None:
        query = query.where(person_table.c.person.in_(list(only)))
    return [Person(**row._asdict()) for row in await tx.rows(query.order_by(person_table.c.person).limit(limit))]


async def save_person(tx: Tx, one: Person, by: str) -> None:
    """Write an account, a new one or a known one."""
    values = {name: getattr(one, name) for name in Person.__slots__} | {"updated_at": tx.now, "updated_by": by}
    done = await tx.execute(sa.update(person_table).where(person_table.c.person == one.person).values(values))
    if done.rowcount == 0:
        await tx.execute(sa.insert(person_table).values(values))


async def person_of_identity(tx: Tx, issuer: str, subject: str) -> str | None:
    """Whose identity at a provider this is."""
    known = identity_table.c
    found: str | None = await tx.scalar(sa.select(known.person).where(known.issuer == issuer, known.subject == subject))
    return found


async def add_identity(tx: Tx, issuer: str, subject: str, person_id: str) -> None:
    await tx.execute(sa.insert(identity_table).values(issuer=issuer, subject=subject, person=person_id))


async def erase_identities(tx: Tx, person_id: str) -> None:
    await tx.execute(sa.delete(identity_table).where(identity_table.c.person == person_id))


# Roles


async def roles(tx: Tx, people_ids: Iterable[str]) -> dict[str, tuple[Assignment, ...]]:
    """The roles of each of these people."""
    held = role_table.c
    query = sa.select(held.person, held.role, held.site_id, held.study_id).where(held.person.in_(list(people_ids)))
    found: dict[str, tuple[Assignment, ...]] = {}
    for row in await tx.rows(query.order_by(held.person, held.role, held.site_id, held.study_id)):
        one = Assignment(
            role=Role(row.role),
            site_id=SiteId(row.site_id) if row.site_id else None,
            study_id=StudyId(row.study_id) if row.study_id else None,
        )
        found[row.person] = (*found.get(row.person, ()), one)
    return found


async def people_with(tx: Tx, role: Role | None = None, sites: Iterable[SiteId] | None = None) -> set[str]:
    """Who has this role, or any role at these hospitals."""
    query = sa.select(role_table.c.person)
    if role is not None:
        query = query.where(role_table.c.role == role.value)
    if sites is not None:
        query = query.where(role_table.c.site_id.in_(list(sites)))
    return {row.person for row in await tx.rows(query)}


async def set_roles(tx: Tx, person_id: str, given: Iterable[Assignment]) -> None:
    """The person has these roles, and no other."""
    await tx.execute(sa.delete(role_table).where(role_table.c.person == person_id))
    for one in given:
        values = {"person": person_id, "role": one.role.value}
        values |= {"site_id": one.site_id or "", "study_id": one.study_id or ""}
        await tx.execute(sa.insert(role_table).values(values))


# Sessions


async def session(tx: Tx, digest: bytes) -> Session | None:
    found = await tx.row(sa.select(*_SESSION).where(session_table.c.session_digest == digest))
    return None if found is None else Session(**found._asdict())


async def add_session(tx: Tx, one: Session) -> None:
    await tx.execute(sa.insert(session_table).values({name: getattr(one, name) for name in Session.__slots__}))


async def touch_session(tx: Tx, digest: bytes, **changed: float | bool) -> None:
    """Change when it was seen or proved. One that has ended stays ended."""
    await tx.execute(sa.update(session_table).where(session_table.c.session_digest == digest).values(**changed))


async def end_session(tx: Tx, digest: bytes) -> None:
    await tx.execute(sa.delete(session_table).where(session_table.c.session_digest == digest))


async def end_sessions(tx: Tx, person_id: str) -> None:
    """End every session of a person."""
    await tx.execute(sa.delete(session_table).where(session_table.c.person == person_id))


async def forget_before(tx: Tx, session_began: float, attempt_since: float) -> None:
    """Delete sessions and attempts that began before these moments: they count for nothing any more."""
    await tx.execute(sa.delete(session_table).where(session_table.c.began_at < session_began))
    await tx.execute(sa.delete(attempt_table).where(attempt_table.c.since < attempt_since))


# Attempts


async def failures(tx: Tx, source: str, since: float) -> int:
    """How often this source failed since then."""
    tried = attempt_table.c
    found = await tx.scalar(sa.select(tried.failures).where(tried.source == source, tried.since >= since))
    return int(found or 0)


async def count_failure(tx: Tx, source: str, since: float) -> None:
    """One more; the count begins anew where the old one began before `since`."""
    tried = attempt_table.c
    before = await failures(tx, source, since)
    if before:
        await tx.execute(sa.update(attempt_table).where(tried.source == source).values(failures=before + 1))
        return
    await tx.execute(sa.delete(attempt_table).where(tried.source == source))
    await tx.execute(sa.insert(attempt_table).values(source=source, failures=1, since=tx.now))


async def ended_attempts(tx: Tx, beginning: str, since: float) -> Sequence[tuple[str, int]]:
    """Sources with this beginning whose count began before `since`, and their failures."""
    tried = attempt_table.c
    query = sa.select(tried.source, tried.failures).where(tried.since < since, tried.source.startswith(beginning))
    return [(row.source, int(row.failures)) for row in await tx.rows(query.order_by(tried.source))]


async def forgive(tx: Tx, source: str) -> None:
    await tx.execute(sa.delete(attempt_table).where(attempt_table.c.source == source))


# Requests at identity providers


async def add_request(tx: Tx, one: OidcRequest) -> None:
    await tx.execute(sa.insert(request_table).values({name: getattr(one, name) for name in OidcRequest.__slots__}))


async def forget_requests(tx: Tx, began: float) -> None:
    """Delete requests that began before this moment: an answer to them comes too late."""
    await tx.execute(sa.delete(request_table).where(request_table.c.began_at < began))


async def requests_from(tx: Tx, address: str) -> tuple[int, float | None]:
    """How many requests an address began that have not come back, and when the oldest of them began."""
    known = request_table.c
    query = sa.select(sa.func.count().label("found"), sa.func.min(known.began_at).label("oldest"))
    row = await tx.row(query.where(known.address == address))
    return (0, None) if row is None else (int(row.found), row.oldest)


async def keep_newest_requests(tx: Tx, most: int) -> None:
    """Delete the oldest requests, as far as there are more than so many."""
    known = request_table.c
    kept = sa.select(known.began_at).order_by(known.began_at.desc()).offset(most - 1).limit(1)
    oldest_kept = await tx.scalar(kept)
    if oldest_kept is not None:
        await forget_requests(tx, oldest_kept)


async def take_request(tx: Tx, state_digest: bytes) -> OidcRequest | None:
    """The request, which is gone afterwards: an answer counts once."""
    found = await tx.row(sa.select(*_REQUEST).where(request_table.c.state_digest == state_digest))
    await tx.execute(sa.delete(request_table).where(request_table.c.state_digest == state_digest))
    return None if found is None else OidcRequest(**found._asdict())


_PERSON = [person_table.c[name] for name in Person.__slots__]
_SESSION = [session_table.c[name] for name in Session.__slots__]
_REQUEST = [request_table.c[name] for name in OidcRequest.__slots__]
