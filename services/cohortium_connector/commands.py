"""What a person in the hospital does: see offers, approve, withdraw, see the state. Works on the spool alone.

A connector that runs on the same spool sees the change within `poll_s` and sends what was written; otherwise it is
sent when it starts.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cohortium_connector.app import open_site
from cohortium_connector.desk import Desk
from cohortium_connector.domain.commands import Withdrawn
from cohortium_connector.domain.policy import usable_grant
from cohortium_connector.handlers.membership import approve as approve_offer
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import remove
from cohortium_connector.store import models, products, seeds, site, studies, windows
from cohortium_connector.store.studies import Offer
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import CohortiumError
from cohortium_messages.governance import GrantWithdrawn, ShortName, SiteGrant
from cohortium_protocol.documents import UNSIGNED, sign_withdrawal


class NoSuchOffer(CohortiumError):
    """No study of this name or digest was offered to this hospital. `offers` lists them."""


class AmbiguousOffer(CohortiumError):
    """Several versions of the study were offered: name the one that is meant by the beginning of its digest."""


@dataclass(frozen=True, slots=True)
class OfferView:
    """One offered study version. `permission`: `granted`, or the code that says why not."""

    study: str
    purpose: str
    digest: str
    state: str
    permission: str
    members: tuple[str, ...]
    offered_at: datetime
    granted_until: datetime | None


@dataclass(frozen=True, slots=True)
class WindowView:
    window: str
    study: str
    purpose: str
    round: int
    phase: str


@dataclass(frozen=True, slots=True)
class StatusView:
    """What this connector is, and what it has in hand. `waiting_messages`: not yet taken by the broker."""

    site_id: str
    name: str
    federation: str
    registered: bool
    refused: str
    windows: tuple[WindowView, ...]
    finished_windows: int
    waiting_messages: int


class LocalSite:
    """The hospital's own hand on its connector."""

    def __init__(self, desk: Desk, db: Database) -> None:
        self._desk = desk
        self._db = db

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: ConnectorSettings, clock: Clock | None = None) -> AsyncIterator["LocalSite"]:
        """The site of this spool; raises `ConfigurationError` if it has not joined a federation."""
        desk, db = await open_site(settings, clock or SystemClock())
        try:
            yield cls(desk, db)
        finally:
            await db.close()

    async def offers(self) -> tuple[OfferView, ...]:
        """All study versions that were offered, the oldest first."""
        async with self._db.reading("command_offers") as tx:
            return tuple([await self._view(tx, offer) for offer in await studies.offers(tx)])

    async def _view(self, tx: Tx, offer: Offer) -> OfferView:
        held = usable_grant(await studies.grants(tx, offer.study_digest), 0, self._desk.clock.now())
        manifest = await studies.newest_manifest(tx, offer.study_id)
        return OfferView(
            study=offer.study_id,
            purpose=offer.study.purpose,
            digest=offer.study_digest.hex(),
            state=offer.state,
            permission=held if isinstance(held, str) else "granted",
            members=tuple(member.name for member in manifest.members) if manifest else (),
            offered_at=offer.offered_at,
            granted_until=None if isinstance(held, str) else held.grant.not_after,
        )

    async def approve(self, study: str, approvers: tuple[ShortName, ...]) -> SiteGrant | None:
        """Grant the study version that `study` names (its name, or its digest's beginning); None if granted already."""

        async def approve(tx: Tx) -> SiteGrant | None:
            return await approve_offer(tx, self._desk, await self._offer(tx, study), approvers, by="command_approve")

        return await self._db.run("command_approve", approve)

    async def withdraw(self, study: str) -> int:
        """Leave the study at once: its work stops, what was made for it is deleted, consent is told.

        One person can do it. Returns how many grants ended. Twice is once.
        """
        ended, files = await self._db.run("command_withdraw", lambda tx: self._withdraw(tx, study))
        await self._desk.charges.note(self._db)
        for path in files:
            remove(path)
        return ended

    async def _withdraw(self, tx: Tx, study: str) -> tuple[int, list[Path]]:
        by, desk = "command_withdraw", self._desk
        offer = await self._offer(tx, study)
        ended = await studies.withdraw_grants(tx, offer.study_digest, by=by)
        await studies.set_offer_state(tx, offer.study_digest, "WITHDRAWN", by=by)
        files = []
        for run_id in await studies.open_runs(tx, offer.study_digest):
            files += [desk.spool.models / run_id, desk.spool.journals / run_id]
            await models.delete_models(tx, run_id)
            await seeds.forget_seeds(tx, run_id)
            await desk.charges.close(tx, run_id, "GRANT_WITHDRAWN", by=by)
            for product in await products.products_of_run(tx, run_id):
                files.append(desk.spool.product(product.product_id))
                await products.delete_product(tx, product.product_id)
        for window in await windows.open_windows(tx, offer.study_id):
            if window.params.study_digest == offer.study_digest:
                files.append(desk.spool.upload(window.window_id))
                await desk.step(tx, window, Withdrawn(), by=by)
        if ended:
            unsigned = GrantWithdrawn(
                study_id=offer.study_id,
                study_digest=offer.study_digest,
                site_id=desk.identity.site_id,
                at=desk.clock.now(),
                sig=UNSIGNED,
            )
            await desk.post(tx, "consent", sign_withdrawal(unsigned, desk.identity.key), offer.study_id)
        return ended, files

    async def _offer(self, tx: Tx, study: str) -> Offer:
        found = [
            offer
            for offer in await studies.offers(tx)
            if offer.study_id == study or (len(study) >= 8 and offer.study_digest.hex().startswith(study))
        ]
        if not found:
            raise NoSuchOffer(f"no offer {study!r}; `offers` lists what was offered to this hospital")
        if len(found) > 1:
            digests = ", ".join(offer.study_digest.hex()[:12] for offer in found)
            raise AmbiguousOffer(f"{study} was offered in several versions ({digests}); name one by its digest")
        return found[0]

    async def status(self) -> StatusView:
        """What this connector is and has in hand."""
        async with self._db.reading("command_status") as tx:
            record = await site.find_site(tx)
            opened = await windows.open_windows(tx)
            counts = await windows.counts(tx)
            waiting = await site.unsent_messages(tx)
        identity = self._desk.identity
        return StatusView(
            site_id=identity.site_id,
            name=identity.name,
            federation=identity.trust.federation,
            registered=record is not None and record.registered,
            refused=record.refused if record is not None else "",
            windows=tuple(
                WindowView(
                    window=window.window_id.hex(),
                    study=window.study_id,
                    purpose=window.params.purpose,
                    round=window.params.round,
                    phase=window.state.phase.value,
                )
                for window in opened
            ),
            finished_windows=sum(counts.values()) - len(opened),
            waiting_messages=waiting,
        )
