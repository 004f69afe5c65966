"""The table of sites' identity keys as enrolment announces them: each service that believes hospitals has its own copy.

A key that was revoked never comes back, in whatever order the two messages are handled: another instance may have the
site's registration in hand while this one hears of the revocation.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_kit.db import Tx
from cohortium_messages.ids import SiteId


@dataclass(frozen=True, slots=True)
class SiteKey:
    """Whose key is whose. A site that was revoked before it was known has no name and an empty key."""

    site_id: SiteId
    name: str
    identity_pk: bytes
    revoked: bool


class SiteKeys:
    """The table in a service's own metadata; its migrations make it."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self._table = sa.Table(
            "site_key",
            metadata,
            sa.Column("site_id", sa.Text, primary_key=True),
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("identity_pk", sa.LargeBinary, nullable=False),
            sa.Column("revoked", sa.Boolean, nullable=False),
            sa.Column("updated_at", sa.Double, nullable=False),
            sa.Column("updated_by", sa.Text, nullable=False),
        )
        known = self._table.c
        self._all = sa.select(known.site_id, known.name, known.identity_pk, known.revoked)

    async def all(self, tx: Tx) -> list[SiteKey]:
        """Every site that enrolment ever announced."""
        return [_site_key(row) for row in await tx.rows(self._all)]

    async def one(self, tx: Tx, site_id: SiteId) -> SiteKey | None:
        """One site's key."""
        row = await tx.row(self._all.where(self._table.c.site_id == site_id))
        return None if row is None else _site_key(row)

    async def good(self, tx: Tx) -> dict[SiteId, bytes]:
        """The keys of the sites in good standing."""
        rows = await tx.rows(self._all.where(self._table.c.revoked.is_(False)))
        return {key.site_id: key.identity_pk for key in map(_site_key, rows)}

    async def is_good(self, tx: Tx, site_id: SiteId) -> bool:
        """Whether the site is known and not revoked."""
        known = await self.one(tx, site_id)
        return known is not None and not known.revoked

    async def revoked(self, tx: Tx) -> frozenset[SiteId]:
        """The sites whose keys are void."""
        rows = await tx.rows(sa.select(self._table.c.site_id).where(self._table.c.revoked.is_(True)))
        return frozenset(SiteId(row.site_id) for row in rows)

    async def add(self, tx: Tx, key: SiteKey) -> bool:
        """Record a site's key. One that is known already stays as it is. Returns whether the site's key is good."""
        known = await self.one(tx, key.site_id)
        if known is None:
            values = {"site_id": key.site_id, "name": key.name, "identity_pk": key.identity_pk, "revoked": key.revoked}
            values |= {"updated_at": tx.now, "updated_by": "add_site_key"}
            await tx.execute(sa.insert(self._table).values(values))
        return not (known or key).revoked

    async def revoke(self, tx: Tx, site_id: SiteId) -> None:
        """Mark a site's key as void, before it is known, too. Twice is once."""
        changed = {"revoked": True, "updated_at": tx.now, "updated_by": "revoke_site_key"}
        done = await tx.execute(sa.update(self._table).where(self._table.c.site_id == site_id).values(changed))
        if done.rowcount == 0:
            values = {"site_id": site_id, "name": "", "identity_pk": b""} | changed
            await tx.execute(sa.insert(self._table).values(values))


def _site_key(row: sa.Row[tuple[str, str, bytes, bool]]) -> SiteKey:
    return SiteKey(SiteId(row.site_id), row.name, bytes(row.identity_pk), bool(row.revoked))
