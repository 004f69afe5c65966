"""One function per message: load, decide, save with the messages that follow, all in the caller's transaction."""

from collections.abc import Sequence
from datetime import datetime

import structlog

from cohortium_consent import store
from cohortium_consent.answers import Asked, first_round, permits_for
from cohortium_consent.budgets import Cap
from cohortium_consent.cases import Cases
from cohortium_consent.documents import Documents
from cohortium_consent.domain import (
    GiveAgain,
    Grant,
    Granted,
    Stop,
    Stopped,
    advance,
    effective,
    first_state,
)
from cohortium_consent.expiry import Expiries
from cohortium_consent.withdrawals import STANDARD, Limits
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import Poison, TryLater
from cohortium_kit.site_keys import SiteKey
from cohortium_messages.consent import ConsentFile, DocumentsShared
from cohortium_messages.events import AuditEvent, GrantStarted, GrantStopped
from cohortium_messages.governance import (
    AuthoriseAsked,
    Authorised,
    GrantEnded,
    GrantGiven,
    GrantRecorded,
    GrantWithdrawn,
    Manifest,
    ManifestPublished,
    SiteRegistered,
    SiteRevoked,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.ledger import LedgerEvent
from cohortium_messages.registry import Message
from cohortium_messages.topology import SERVICES, uplink_key
from cohortium_platform.recording import put_on_record
from cohortium_privacy.chain import verify_statement
from cohortium_protocol.consent.authorise import Denied as DocumentsDeny
from cohortium_protocol.consent.authorise import authorise as authorise_documents
from cohortium_protocol.consent.intake import NotAccepted
from cohortium_protocol.documents import (
    GovernancePin,
    grant_digest,
    verify_grant,
    verify_manifest,
    verify_manifest_chain,
    verify_successor,
    verify_withdrawal,
)
from cohortium_protocol.errors import BadSignature, RemoteFault
from cohortium_protocol.signing import IdentityKey, Keyring, service_key_id, site_key_id

log = structlog.get_logger(__name__)


class Handlers:
    """Consent's decisions, carried out. Holds no state of its own but the keyring of sites."""

    def __init__(
        self,
        *,
        sender: Sender,
        key: IdentityKey,
        federation: str,
        keyring: Keyring,
        clock: Clock,
        governance: GovernancePin,
        cap: Cap | None = None,
        limits: Limits = STANDARD,
    ) -> None:
        self._sender = sender
        self._keyring = keyring
        self._clock = clock
        self._governance = governance
        self._cap = cap
        self.documents = Documents(sender, clock, governance)
        self.cases = Cases(sender, key, federation, clock, limits, self._stop, governance)
        self.expiries = Expiries(sender, clock, self.documents)
        self._known_expired: set[tuple[SiteId, str]] = set()

    # Sites and members

    async def on_site_registered(self, tx: Tx, received: Received[SiteRegistered]) -> None:
        """Enrolment says whose key is whose."""
        _only(received, "enrolment")
        message = received.message
        await store.site_keys.add(tx, SiteKey(message.site_id, message.name, message.identity_pk, revoked=False))
        known = await store.site_keys.one(tx, message.site_id)
        if known is not None and not known.revoked:
            self._keyring.add(site_key_id(known.site_id), known.identity_pk)

    async def on_site_revoked(self, tx: Tx, received: Received[SiteRevoked]) -> None:
        """A site is no site any more: its key is void, and so are its grants."""
        _only(received, "enrolment")
        site_id = received.message.site_id
        self._keyring.remove(site_key_id(site_id))
        await store.site_keys.revoke(tx, site_id)
        await self._stop(tx, await store.granted(tx, site_id=site_id), "SITE_REVOKED")

    async def on_manifest(self, tx: Tx, received: Received[ManifestPublished]) -> None:
        """Officers signed a membership: grants that waited for it count now, those it leaves out end."""
        _only(received, "enrolment")
        manifest = received.message.manifest
        latest = await store.latest_manifest(tx, manifest.study_id)
        if latest is not None and manifest.version <= latest.version:
            return
        self._check_manifest(manifest, latest)
        await store.add_manifest(tx, manifest)
        members = {member.site_id for member in manifest.members}
        in_force = await store.granted(tx, study_id=manifest.study_id)
        fits = [g for g in in_force if g.grant.site_id in members and g.grant.study_digest == manifest.study_digest]
        waiting = await store.granted(tx, study_id=manifest.study_id, announced=False)
        await self._announce_permitted(tx, [record for record in fits if record in waiting])
        await self._stop(tx, [record for record in in_force if record not in (*fits, *waiting)], "NOT_A_MEMBER")
        await self.documents.share_study(tx, StudyId(manifest.study_id))

    def _check_manifest(self, manifest: Manifest, latest: Manifest | None) -> None:
        try:
            if latest is None and manifest.version == 1:
                verify_manifest_chain((manifest,), self._governance)
            elif latest is not None and manifest.version == latest.version + 1:
                verify_manifest(manifest, self._governance)
                verify_successor(manifest, latest)
            else:
                raise TryLater("manifest_gap")
        except RemoteFault as fault:
            raise _refused(fault) from fault

    # Grants

    async def on_grant(self, tx: Tx, received: Received[GrantGiven]) -> None:
        """A hospital's permission. The same grant again changes nothing; a newer one takes the older one's place."""
        signed = received.message.grant
        site = await self._own_word(tx, received, signed.site_id)
        _zoned((signed.not_before, signed.not_after))
        try:
            verify_grant(signed, site.identity_pk)
        except RemoteFault as fault:
            raise _refused(fault) from fault
        digest = grant_digest(signed)
        if await store.grant_with_digest(tx, digest) is not None:
            return
        membership = await store.membership(tx, signed.study_id)
        known = membership is not None and membership.study_digest == signed.study_digest
        if known and membership is not None and signed.site_id not in membership.members:
            raise Poison("not_a_member")
        grant = store.grant_of(signed, digest)
        record = first_state(grant, await store.withdrawn_at(tx, signed.study_digest, signed.site_id))
        if isinstance(record, Granted):
            await self._supersede(tx, grant)
        await store.add_record(tx, record, signed)
        if isinstance(record, Granted) and known:
            await self._announce_permitted(tx, [record])

    async def _supersede(self, tx: Tx, newer: Grant) -> None:
        current = await store.current_records(tx, newer.study_digest, [newer.site_id])
        if newer.site_id in current:
            older = current[newer.site_id]
            after, _ = advance(older, GiveAgain())
            if after != older:
                await store.save_record(tx, after, "grant_given")

    async def on_withdrawal(self, tx: Tx, received: Received[GrantWithdrawn]) -> None:
        """A hospital stops. It counts at once, whether or not a grant is on record yet."""
        signed = received.message
        site = await self._own_word(tx, received, signed.site_id)
        _zoned((signed.at,))
        try:
            verify_withdrawal(signed, site.identity_pk)
        except RemoteFault as fault:
            raise _refused(fault) from fault
        await store.save_withdrawal(tx, signed, effective(signed.at, self._clock.now()))
        in_force = await store.granted(tx, site_id=signed.site_id, study_id=signed.study_id)
        ending = [record for record in in_force if record.grant.study_digest == signed.study_digest]
        await self._stop(tx, ending, "GRANT_WITHDRAWN")
        await self.cases.on_grant_withdrawn(tx, signed)

    async def _own_word(self, tx: Tx, received: Received[Message], site_id: SiteId) -> SiteKey:
        """The site that sent this about itself; `Poison` if it is another's word, or a revoked site's."""
        if received.key_id != site_key_id(site_id) or received.routing_key != uplink_key(site_id, "consent"):
            raise Poison("site_mismatch")
        site = await store.site_keys.one(tx, site_id)
        if site is None or site.revoked:
            raise Poison("site_revoked")
        return site

    # Documents

    async def on_documents(self, tx: Tx, received: Received[DocumentsShared]) -> None:
        """A hospital shares what its people signed. What that changes for grants in force is told at once."""
        name = received.key_id.partition(":")[2]
        site = await self._own_word(tx, received, SiteId(name))
        try:
            await self.take(tx, received.message.file, site=site.site_id)
        except NotAccepted as refused:
            log.warning("documents_refused", site=site.site_id, code=refused.code, name=refused.field)
            raise Poison(refused.code) from refused

    async def take(self, tx: Tx, file: ConsentFile, *, site: SiteId | None = None) -> frozenset[bytes]:
        """Add a file, and tell of every grant that it makes count or stops from counting. Raises `NotAccepted`."""
        await self.cases.check_decisions(tx, file)
        changed = await self.documents.add(tx, file, site=site)
        if changed:
            await self.cases.judge(tx, await self.documents.dossier(tx, self._clock.now()))
            await self._reconsider(tx)
        return changed

    async def _reconsider(self, tx: Tx) -> None:
        """Grants that rest on documents, asked again. One that does not count for now is not over: it may come back."""
        now = self._clock.now()
        dossier = await self.documents.dossier(tx, now)
        records = await store.granted(tx)
        signed = await store.signed_grants(tx, [record.grant.grant_digest for record in records])
        waiting = {record.grant.grant_digest for record in await store.granted(tx, announced=False)}
        for record in records:
            grant = signed[record.grant.grant_digest]
            if grant.basis is None:
                continue
            answer = authorise_documents(first_round(record.grant, now), grant, record.grant.grant_digest, dossier)
            told = record.grant.grant_digest not in waiting
            if isinstance(answer, DocumentsDeny):
                if told:
                    await self._tell_stopped(tx, Stopped(record.grant, answer.code))
                    await store.mark_announced(tx, [record.grant], announced=False)
            elif not told and await self._is_member(tx, record.grant):
                await self._announce(tx, [record.grant])

    async def _is_member(self, tx: Tx, grant: Grant) -> bool:
        membership = await store.membership(tx, grant.study_id)
        known = membership is not None and membership.study_digest == grant.study_digest
        return known and membership is not None and grant.site_id in membership.members

    async def _announce_permitted(self, tx: Tx, records: Sequence[Granted]) -> None:
        """Announce those that count now; one whose documents are not all there waits for them."""
        now = self._clock.now()
        signed = await store.signed_grants(tx, [record.grant.grant_digest for record in records])
        governed = any(grant.basis is not None for grant in signed.values())
        dossier = await self.documents.dossier(tx, now) if governed else None
        for record in records:
            digest = record.grant.grant_digest
            grant = signed[digest]
            if grant.basis is not None and dossier is not None:
                answer = authorise_documents(first_round(record.grant, now), grant, digest, dossier)
                if isinstance(answer, DocumentsDeny):
                    log.info("grant_waits", site=record.grant.site_id, study=record.grant.study_id, code=answer.code)
                    continue
            await self._announce(tx, [record.grant])

    async def _announce(self, tx: Tx, grants: Sequence[Grant]) -> None:
        """Tell scheduler and aggregator of grants that count from now on, and put them on record."""
        for grant in grants:
            recorded = GrantRecorded(
                study_id=grant.study_id,
                study_digest=grant.study_digest,
                site_id=grant.site_id,
                grant_digest=grant.grant_digest,
                not_after=grant.not_after,
            )
            started = GrantStarted(
                site_id=grant.site_id,
                study_digest=grant.study_digest,
                grant_digest=grant.grant_digest,
                not_before=grant.not_before,
                not_after=grant.not_after,
            )
            for service in ("scheduler", "aggregator"):
                await self._to_service(tx, service, recorded, grant.study_id)
            await self._record(tx, started, grant.study_id)
        await store.mark_announced(tx, grants)

    async def _stop(self, tx: Tx, ending: Sequence[Granted], reason: str) -> None:
        for record in ending:
            after, events = advance(record, Stop(self._clock.now(), reason))
            await store.save_record(tx, after, "stop")
            for event in events:
                await self._tell_stopped(tx, event)

    async def _tell_stopped(self, tx: Tx, event: Stopped) -> None:
        grant = event.grant
        ended = GrantEnded(
            study_id=grant.study_id, study_digest=grant.study_digest, site_id=grant.site_id, reason=event.reason
        )
        for service in ("scheduler", "aggregator"):
            await self._to_service(tx, service, ended, grant.study_id)
        stopped = GrantStopped(site_id=grant.site_id, study_digest=grant.study_digest, reason=event.reason)
        await self._record(tx, stopped, grant.study_id)

    # Questions

    async def on_question(self, tx: Tx, received: Received[AuthoriseAsked]) -> None:
        """The scheduler asks before each window. An answer from state: asking again gives the answer of that moment."""
        _only(received, "scheduler")
        message = received.message
        if message.prices:
            await store.save_prices(tx, message)
        asked = Asked(
            message.study_id,
            message.study_digest,
            message.round,
            message.sites,
            message.run_id,
            message.prices,
            message.governance,
        )
        permits = await permits_for(tx, asked, self._clock.now(), self._governance, self._cap)
        expired = {
            (one.site_id, one.deny_code)
            for one in permits
            if one.deny_code is not None and one.deny_code.endswith("_EXPIRED")
        }
        if expired - self._known_expired:  # else the log has heard of it, or does from who watches the calendar
            await self.expiries.tell(tx)
            tx.after_commit(lambda _: self._known_expired.update(expired))
        answer = Authorised(question_id=message.question_id, run_id=message.run_id, permits=permits)
        await self._to_service(tx, "scheduler", answer, message.study_id)

    # Privacy budgets

    async def on_ledger_event(self, tx: Tx, received: Received[LedgerEvent]) -> None:
        """A hospital says what its ledger set aside, began or gave back: its own word, signed twice."""
        statement = received.message.statement
        site = await self._own_word(tx, received, statement.site_id)
        try:
            verify_statement(statement, site.identity_pk)
        except RemoteFault as fault:
            raise _refused(fault) from fault
        await store.add_statement(tx, statement)

    # Sending

    async def _to_service(self, tx: Tx, service: str, message: Message, study: StudyId) -> None:
        await tx.send(self._sender.outgoing(SERVICES.name, service, message, study=study), ordering_key=service)

    async def _record(self, tx: Tx, event: AuditEvent, study: StudyId) -> None:
        await put_on_record(tx, self._sender, event, study=study)


def _only(received: Received[Message], role: str) -> None:
    if received.key_id != service_key_id(role):
        raise Poison("sender_not_allowed", received.envelope.type)


def _zoned(moments: tuple[datetime, ...]) -> None:
    # A time without a zone is a different moment to each reader, and comparing it would be an error of ours.
    if any(moment.tzinfo is None for moment in moments):
        raise Poison("time_without_zone")


def _refused(fault: RemoteFault) -> Poison:
    # Not the envelope's signature, which is good: what was said in it is not signed as it must be.
    return Poison("bad_document_signature" if isinstance(fault, BadSignature) else fault.code.lower())
