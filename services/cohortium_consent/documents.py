"""Signed documents come in, are put on record, shared with the hospitals they concern, and change what is permitted.

What is accepted proves itself: every act is signed by a person whom a hospital or enough officers vouch for, and it
does something. The service adds nothing of its own; a hospital judges its copies alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cohortium_consent import store
from cohortium_consent.store import consent_records
from cohortium_kit.clock import Clock
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_messages.consent import Act, ConsentFile, DocumentsShared, PersonCard, Record
from cohortium_messages.events import ConsentActRecorded
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.topology import TASKS, control_queue
from cohortium_platform.recording import put_on_record
from cohortium_protocol.consent.authorise import Dossier
from cohortium_protocol.consent.files import about, acts_of, named_by
from cohortium_protocol.consent.intake import NotAccepted, check_file
from cohortium_protocol.consent.rules import sites_of, study_of
from cohortium_protocol.consent.signing import act_digest, card_digest, record_digest
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import RemoteFault


@dataclass(frozen=True, slots=True)
class Documents:
    """Consent's hand on the documents. Holds nothing but who it is."""

    sender: Sender
    clock: Clock
    governance: GovernancePin

    async def dossier(self, tx: Tx, now: datetime) -> Dossier:
        """Every document as it stands at a moment."""
        return Dossier.judge(await consent_records.load(tx), self.governance, await site_keys(tx), now)

    async def add(self, tx: Tx, file: ConsentFile, *, site: SiteId | None = None) -> frozenset[bytes]:
        """Put what is new on record and share it; returns the digests that something is new about.

        From a hospital (`site`) only what concerns it. The same file again changes nothing. Raises `NotAccepted`.
        """
        known = await consent_records.load(tx)
        if site is not None:
            _check_reach(known, file, site)
        new = check_file(known, file, self.governance, await site_keys(tx), self.clock.now())
        try:
            changed = await consent_records.add(tx, file)
        except RemoteFault as fault:
            raise NotAccepted("too_many_acts", "records", str(fault)) from None
        await self._log(tx, new)
        await self._share(tx, changed, but=site)
        return changed

    async def share_study(self, tx: Tx, study_id: StudyId) -> None:
        """After a new membership: give the members the study's versions."""
        file = await consent_records.load(tx)
        versions = [one for one in file.records if one.document.kind == "study_version"]
        await self._share(
            tx, frozenset(record_digest(one.document) for one in versions if study_of(one.document) == study_id)
        )

    async def _log(self, tx: Tx, acts: Iterable[Act]) -> None:
        now = self.clock.now()
        file = await consent_records.load(tx)
        dossier = Dossier.judge(file, self.governance, await site_keys(tx), now)
        cards = {card_digest(card): card for card in file.people}
        about_studies = {study_of(one.document) for one in file.records} - {None}
        bases = {study: named_by(file, study) for study in sorted(filter(None, about_studies))}
        for act in acts:
            judged, card = dossier.records.get(act.record), cards.get(act.record)
            if judged is not None:
                study, kind = study_of(judged.document), str(judged.document.kind)
                word, sites = judged.standing(now)[0], sites_of(judged.document)
            elif card is not None:
                study, kind, word = None, "person", "terminated"
                sites = frozenset({card.site_id}) if card.site_id is not None else None
            else:
                continue
            event = ConsentActRecorded(
                record=act.record,
                kind=kind,
                act=act_digest(act),
                deed=act.deed,
                person=dossier.people.person(act.key),
                at=act.at,
                standing=word,
                site_id=min(sites) if sites and len(sites) == 1 else None,
            )
            # What is about no single study, such as an agreement, is told in the log of every study that rests on it.
            logs = [study] if study is not None else [None, *(one for one in bases if act.record in bases[one])]
            for one in logs:
                await put_on_record(tx, self.sender, event, study=one)

    async def _share(self, tx: Tx, changed: frozenset[bytes], but: SiteId | None = None) -> None:
        """Each hospital gets what concerns it and is new, with the cards of the people behind it. The one that sent it
        has it already."""
        if not changed:
            return
        file = await consent_records.load(tx)
        everybody = [key.site_id for key in await store.site_keys.all(tx) if not key.revoked and key.identity_pk]
        people = any(card_digest(card) in changed for card in file.people) or not changed.isdisjoint(
            act.record for act in file.ended_cards
        )
        for site_id in everybody:
            if site_id == but:
                continue
            mine = frozenset([digest for digest in changed if await self._concerns(tx, file, digest, site_id)])
            if mine or people:
                share = about(file, mine)
                message = DocumentsShared(file=share)
                outgoing = self.sender.outgoing(TASKS.name, control_queue(site_id), message)
                await tx.send(outgoing, ordering_key=f"site/{site_id}")

    async def _concerns(self, tx: Tx, file: ConsentFile, digest: bytes, site_id: SiteId) -> bool:
        record = next((one for one in file.records if record_digest(one.document) == digest), None)
        if record is None:
            return False
        sites = sites_of(record.document)
        if sites is not None:
            return site_id in sites
        study = study_of(record.document)
        if study is None:
            return True
        membership = await store.membership(tx, study)
        return membership is not None and site_id in membership.members


async def site_keys(tx: Tx) -> dict[SiteId, bytes]:
    """The identity keys of hospitals that are not revoked."""
    keys = await store.site_keys.all(tx)
    return {key.site_id: key.identity_pk for key in keys if not key.revoked and key.identity_pk}


def _check_reach(known: ConsentFile, file: ConsentFile, site: SiteId) -> None:
    cards: dict[bytes, PersonCard] = {card_digest(card): card for card in (*known.people, *file.people)}
    before = {record_digest(one.document) for one in known.records}
    for place, record in enumerate(file.records):
        sites = sites_of(record.document)
        if (sites is None or site not in sites) and _is_news(record, known, before):
            raise NotAccepted("not_its_document", f"records.{place}", "the document is not about this hospital")
    for place, act in enumerate(file.ended_cards):
        card = cards.get(act.record)
        if card is None or card.site_id != site:
            raise NotAccepted("not_its_document", f"ended_cards.{place}", "the card is not of this hospital")


def _is_news(record: Record, known: ConsentFile, before: set[bytes]) -> bool:
    if record_digest(record.document) not in before:
        return True
    have = {act_digest(act) for act in acts_of(known)}
    return any(act_digest(act) not in have for act in record.acts)
