"""One function per message or command: load, decide, save with the messages that follow, in the caller's transaction.

Registration is the one message whose sender no keyring knows: `RegistrationVerifier` takes the key from the message
itself, and the handler then asks for the proof and the one-time token before anything changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from pydantic import ValidationError

from cohortium_enrolment import store
from cohortium_enrolment.domain.sites import (
    Active,
    Confirmed,
    Ended,
    Enrolled,
    Event,
    Invited,
    ManifestRefused,
    Proof,
    Refused,
    Register,
    Replace,
    Revoke,
    Revoked,
    Site,
    advance,
    check_members,
    check_place,
)
from cohortium_enrolment.tokens import TokenVault, new_token
from cohortium_kit.clock import Clock
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.envelopes import BadSignature, Sender
from cohortium_kit.errors import Poison
from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent, FaultSeen, ManifestRecorded, SiteEnrolled, SiteRevocation
from cohortium_messages.governance import (
    Invitation,
    Manifest,
    ManifestPublished,
    RegisterSite,
    RegistrationRefused,
    SiteRegistered,
    SiteRevoked,
    TrustDocument,
)
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.registry import Message
from cohortium_messages.topology import SERVICES, TASKS, control_queue, uplink_key
from cohortium_platform.recording import put_on_record
from cohortium_protocol.documents import (
    FIRST,
    GovernancePin,
    manifest_hash,
    verify_manifest,
    verify_registration,
    verify_successor,
)
from cohortium_protocol.errors import BadSignature as WrongSignature
from cohortium_protocol.errors import DocumentRefused, RemoteFault, WeakKey
from cohortium_protocol.signing import check_public_key, envelope_bytes, site_key_id, verify

log = structlog.get_logger(__name__)

MAX_REGISTRATION_BYTES = 4096
"""What is parsed before its signature is known to be good is small; an honest registration has about 900 bytes."""

TOLD = ("consent", "scheduler", "aggregator", "audit")
"""The services that keep a keyring of sites."""


FAULTS = frozenset({"BAD_PROOF", "TOKEN_UNKNOWN", "TOKEN_SPENT"})
"""Refusals that an honest connector never meets."""


class RegistrationVerifier:
    """Lets registrations through, and nothing else: the key that signed is the key that asks to be registered."""

    def verify(self, key_id: str, body: bytes, signature: bytes) -> None:
        """Return if the body is a registration, signed by the very key it names under its own id."""
        if len(body) > MAX_REGISTRATION_BYTES:
            raise BadSignature("no registration is so large")
        try:
            envelope = Envelope.model_validate_json(body)
            message = RegisterSite.model_validate(envelope.data)
            if envelope.type != RegisterSite.type_name or key_id != site_key_id(message.site_id):
                raise BadSignature("not a registration in the site's own name")
            check_public_key(message.identity_pk)
            verify(message.identity_pk, envelope_bytes(key_id, body), signature)
        except (ValidationError, WeakKey, WrongSignature):
            raise BadSignature("not a registration signed by its own key") from None


class NameTaken(Exception):
    """An active site has this name."""


class InvitationOver(Exception):
    """The invitation that is asked for again was used, replaced or revoked, or has expired: its token is gone."""


class AnotherInvitation(Exception):
    """The invitation that is asked for again was made for another name."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What handlers hold requests to."""

    governance: GovernancePin
    trust: TrustDocument
    invitation: timedelta


class Handlers:
    """Enrolment's decisions, carried out."""

    def __init__(
        self,
        *,
        sender: Sender,
        vault: TokenVault,
        clock: Clock,
        rules: Rules,
        standing_changed: Callable[[], object] = lambda: None,
    ) -> None:
        """`standing_changed` is called when a site became active or was revoked, after the commit."""
        self._standing_changed = standing_changed
        self._sender = sender
        self._vault = vault
        self._clock = clock
        self._rules = rules

    # Sites

    async def check_name(self, tx: Tx, name: str) -> None:
        """Raise `NameTaken` if an active site has the name: before anything is made for a site that cannot be."""
        if any(isinstance(known, Active) for known in await store.sites_named(tx, name)):
            raise NameTaken(name)

    async def invite(self, tx: Tx, site_id: SiteId, name: str) -> Invitation:
        """Record an invitation under a fresh token; an open one under the same name is void from now on.

        The same id again is the same invitation, with its token, as long as it is open: nothing changes, nothing is
        made. Raises `InvitationOver` and `AnotherInvitation` for it, and `NameTaken` if an active site has the name.
        """
        before = await store.site(tx, site_id)
        if before is not None:
            return self._again(before, name)
        await self.check_name(tx, name)
        for known in await store.sites_named(tx, name):
            replaced, _ = advance(known, Replace())
            if replaced != known:
                await store.save_site(tx, replaced, "invite")
        token, end = new_token(), self._clock.now() + self._rules.invitation
        await store.add_site(tx, Invited(site_id, name, end, self._vault.seal(token)), "invite")
        return Invitation(site_id=site_id, name=name, token=token, expires_at=end, trust=self._rules.trust)

    def _again(self, site: Site, name: str) -> Invitation:
        if site.name != name:
            raise AnotherInvitation(site.name)
        if not isinstance(site, Invited) or not site.sealed_token or self._clock.now() >= site.expires_at:
            raise InvitationOver(site.site_id)
        token = self._vault.open(site.sealed_token)
        trust = self._rules.trust
        return Invitation(site_id=site.site_id, name=name, token=token, expires_at=site.expires_at, trust=trust)

    async def on_register(self, tx: Tx, received: Received[RegisterSite]) -> None:
        """A site registers its key. The same key again gets the same answer; anything else changes nothing."""
        message = received.message
        if received.routing_key != uplink_key(message.site_id, "enrolment"):
            raise Poison("site_mismatch", "the routing key is another site's")
        site = await store.site(tx, message.site_id)
        if site is None:
            # There is no queue to answer to, and a key nobody invited proves nothing about who used it.
            raise Poison("unknown_site")
        after, events = advance(site, Register(message.identity_pk, self._proof(site, message), self._clock.now()))
        if after != site:
            await store.save_site(tx, after, "register")
            tx.after_commit(lambda _: self._standing_changed())
        for event in events:
            await self._tell(tx, event, received.envelope.id, message.identity_pk)

    def _proof(self, site: Site, message: RegisterSite) -> Proof:
        # The envelope's signature has shown already that the sender holds the key; the token only an invitation has.
        if not isinstance(site, Invited) or not site.sealed_token:
            return "FITS"
        try:
            verify_registration(message, self._vault.open(site.sealed_token), self._rules.trust.federation)
        except DocumentRefused:
            return "TOKEN_UNKNOWN"
        except RemoteFault:
            return "BAD_PROOF"
        return "FITS"

    async def revoke(self, tx: Tx, site_id: SiteId, reason: str) -> Revoked | None:
        """End a site's standing; None if it is not known. Revoking twice is once."""
        site = await store.site(tx, site_id)
        if site is None:
            return None
        after, events = advance(site, Revoke(reason, self._clock.now()))
        assert isinstance(after, Revoked)  # noqa: S101 - the transition table leads nowhere else
        if after != site:
            await store.save_site(tx, after, "revoke")
            tx.after_commit(lambda _: self._standing_changed())
        for event in events:
            await self._tell(tx, event, str(site_id))
        return after

    async def _tell(self, tx: Tx, event: Event, cause: str, offered: bytes | None = None) -> None:
        """`offered`: of a registration, the key that it is about."""
        match event:
            case Enrolled(site_id, name, key):
                registered = SiteRegistered(site_id=site_id, name=name, identity_pk=key)
                for service in TOLD:
                    await self._to_service(tx, service, registered)
                await self._to_site(tx, site_id, registered)
                await self._record(tx, SiteEnrolled(site_id=site_id, identity_pk=key), None)
            case Confirmed(site_id, name, key):
                again = SiteRegistered(site_id=site_id, name=name, identity_pk=key)
                await self._to_site(tx, site_id, again)
                # Who registers again may have lost what it was told; the scheduler offers open studies anew.
                await self._to_service(tx, "scheduler", again)
            case Refused(site_id, reason):
                log.warning("registration_refused", site=site_id, code=reason, message_id=cause)
                refused = RegistrationRefused(site_id=site_id, reason=reason, identity_pk=offered)
                await self._to_site(tx, site_id, refused)
                if reason in FAULTS:
                    await self._record(tx, FaultSeen(key_id=site_key_id(site_id), code=reason), None)
            case Ended(site_id, reason):
                for service in TOLD:
                    await self._to_service(tx, service, SiteRevoked(site_id=site_id, reason=reason))
                await self._record(tx, SiteRevocation(site_id=site_id, reason=reason), None)

    # Manifests

    async def publish_manifest(self, tx: Tx, manifest: Manifest) -> Manifest:
        """Record a signed manifest and send it to whom it concerns. The same one again changes nothing.

        Raises `ManifestRefused` naming the field that does not fit.
        """
        digest = manifest_hash(manifest)
        same = await store.manifest_version(tx, manifest.study_id, manifest.version)
        if same is not None and manifest_hash(same) == digest:
            return same
        await self._check_manifest(tx, manifest)
        await store.add_manifest(tx, manifest, digest)
        published = ManifestPublished(manifest=manifest)
        for service in TOLD:
            await self._to_service(tx, service, published, manifest.study_id)
        for member in manifest.members:
            await self._to_site(tx, member.site_id, published, manifest.study_id)
        event = ManifestRecorded(
            study_id=manifest.study_id,
            version=manifest.version,
            manifest_hash=digest,
            study_digest=manifest.study_digest,
            members=tuple(member.site_id for member in manifest.members),
        )
        await self._record(tx, event, manifest.study_id)
        return manifest

    async def _check_manifest(self, tx: Tx, manifest: Manifest) -> None:
        latest = await store.latest_manifest(tx, manifest.study_id)
        check_place(manifest, latest)
        try:
            if latest is not None:
                verify_successor(manifest, latest)
            elif manifest.prev_hash != FIRST:
                raise ManifestRefused("prev_hash", "a study's first manifest follows 32 zero bytes")
        except RemoteFault as fault:
            raise ManifestRefused("prev_hash", f"{fault}; draft the manifest again") from fault
        check_members(manifest, await store.sites_with_ids(tx, [member.site_id for member in manifest.members]))
        try:
            verify_manifest(manifest, self._rules.governance)
        except WeakKey as fault:
            raise ManifestRefused("members", str(fault)) from fault
        except RemoteFault as fault:
            raise ManifestRefused("signatures", f"{fault}; the officers sign the manifest as it stands") from fault

    # Sending

    async def _to_service(self, tx: Tx, service: str, message: Message, study: StudyId | None = None) -> None:
        await tx.send(self._sender.outgoing(SERVICES.name, service, message, study=study), ordering_key=service)

    async def _to_site(self, tx: Tx, site: SiteId, message: Message, study: StudyId | None = None) -> None:
        key = control_queue(site)
        await tx.send(self._sender.outgoing(TASKS.name, key, message, study=study), ordering_key=key)

    async def _record(self, tx: Tx, event: AuditEvent, study: StudyId | None) -> None:
        await put_on_record(tx, self._sender, event, study=study)


def site_state(site: Site, now: datetime) -> str:
    """The word for a site's state at this moment, for people."""
    if isinstance(site, Invited) and now >= site.expires_at:
        return "expired"
    return {Invited: "invited", Active: "active", Revoked: "revoked"}.get(type(site), "replaced")
