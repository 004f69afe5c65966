"""What people in the hospital do with consent documents: vouch for each other, add signatures, see what counts and why.

Works on the spool alone, like the other commands; a running connector sends what was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cohortium_connector.at_site import AtSite
from cohortium_connector.commands import LocalSite
from cohortium_connector.domain.policy import HeldGrant, permission
from cohortium_connector.leaving import heed_withdrawals
from cohortium_connector.store import studies
from cohortium_connector.store.tables import consent_records
from cohortium_kit.db import Tx
from cohortium_messages.consent import ConsentFile, DocumentsShared, PersonCard
from cohortium_messages.ids import SiteId
from cohortium_protocol.consent.authorise import Dossier, Reason
from cohortium_protocol.consent.files import about
from cohortium_protocol.consent.intake import check_file
from cohortium_protocol.consent.rules import sites_of
from cohortium_protocol.consent.signing import record_digest, sign_card


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the hospital's own copies say of one study: every reason against it, none if it may be worked on."""

    study: str
    governance: str
    round: int
    at: datetime
    reasons: tuple[Reason, ...]


class LocalConsent(AtSite):
    """The hospital's own hand on its documents."""

    @property
    def site_id(self) -> SiteId:
        return self._desk.identity.site_id

    def vouch(self, card: PersonCard) -> PersonCard:
        """The card of a person of this hospital, signed with its identity key. Raises `ValueError` for another's."""
        if card.site_id != self.site_id:
            raise ValueError(f"the card of {card.person} is not of this hospital; its site_id would be {self.site_id}")
        return sign_card(card, self._desk.identity.key)

    async def file(self) -> ConsentFile:
        """Everything that this hospital has copies of."""
        async with self._db.reading("consent_file") as tx:
            return await consent_records.load(tx)

    async def dossier(self, at: datetime | None = None) -> Dossier:
        """The same, as it stands at a moment."""
        async with self._db.reading("consent_dossier") as tx:
            file, keys = await consent_records.load(tx), await self._site_keys(tx)
        return Dossier.judge(file, self._desk.identity.pin, keys, at or self._desk.clock.now())

    async def add(self, file: ConsentFile) -> frozenset[bytes]:
        """Keep what is new, and share what concerns this hospital with consent. Raises `NotAccepted`."""
        return await self._db.run("command_add_documents", lambda tx: self._add(tx, file))

    async def _add(self, tx: Tx, file: ConsentFile) -> frozenset[bytes]:
        desk = self._desk
        known = await consent_records.load(tx)
        check_file(known, file, desk.identity.pin, await self._site_keys(tx), desk.clock.now())
        changed = await consent_records.add(tx, file)
        if changed:
            await heed_withdrawals(tx, desk, by="command_add_documents")
            merged = await consent_records.load(tx)
            ours = {record_digest(one.document) for one in merged.records if self._concerns_us(sites_of(one.document))}
            shared = about(merged, changed & frozenset(ours))
            mine = tuple(card for card in merged.people if card.site_id == self.site_id)
            people = tuple({card.key: card for card in (*shared.people, *mine)}.values())
            await desk.post(tx, "consent", DocumentsShared(file=shared.model_copy(update={"people": people})))
        return changed

    def _concerns_us(self, sites: frozenset[SiteId] | None) -> bool:
        return sites is not None and self.site_id in sites

    async def check(self, study: str, round_: int, at: datetime | None = None) -> Verdict:
        """What would be said of a round of an offered study, now or at another moment. Raises `NoSuchOffer`."""
        moment = at or self._desk.clock.now()
        async with self._db.reading("consent_check") as tx:
            offer = await LocalSite(self._desk, self._db).offer(tx, study)
            facts = await studies.facts(tx, offer.study_digest)
        if facts is None:
            raise LookupError("an offer has no study")
        answer = permission(facts, self._desk.site, round_, moment)
        reasons = () if isinstance(answer, HeldGrant) else answer
        return Verdict(offer.study_id, offer.study.governance, round_, moment, reasons)

    async def _site_keys(self, tx: Tx) -> Mapping[SiteId, bytes]:
        keys: dict[SiteId, bytes] = {}
        for offer in await studies.offers(tx):
            manifest = await studies.newest_manifest(tx, offer.study_id)
            if manifest is not None:
                keys |= {member.site_id: member.identity_pk for member in manifest.members}
        return keys | {self.site_id: self._desk.identity.key.public}
