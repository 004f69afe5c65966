"""Registration, manifests, offers, and the ends of runs."""

from datetime import timedelta

import structlog

from cohortium_connector.desk import BrokenProtocol, Desk
from cohortium_connector.domain.commands import Superseded
from cohortium_connector.domain.policy import approvals_in_force, usable_grant
from cohortium_connector.settings import ANY
from cohortium_connector.store import cohorts, models, products, residuals, seeds, site, studies, windows
from cohortium_connector.store.studies import Offer
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.errors import CohortiumError
from cohortium_messages.governance import (
    GrantedCohort,
    GrantGiven,
    Manifest,
    ManifestPublished,
    RegistrationRefused,
    ShortName,
    SiteGrant,
    SiteRegistered,
)
from cohortium_messages.problems import sentence
from cohortium_messages.runs import RunEnded, StudyOffered
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import UNSIGNED, manifest_hash, sign_grant, verify_manifest, verify_successor

log = structlog.get_logger(__name__)
SKEW_S = 300.0
"""A grant begins this much before it is signed, so that a slow clock elsewhere does not call it future."""


class MembershipHandlers:
    """Who this site is to the federation, and which studies it is asked to join."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def on_registered(self, tx: Tx, received: Received[SiteRegistered]) -> None:
        """Enrolment knows our key. One for another key means that somebody else enrolled under this site's id."""
        message, identity = received.message, self._desk.identity
        if message.site_id != identity.site_id or message.identity_pk != identity.key.public:
            log.error("registered_with_another_key", site=identity.site_id)
            raise BrokenProtocol("REGISTERED_OTHER_KEY", received.key_id)
        await site.mark_registered(tx, by="on_registered")
        log.info("site_registered", site=identity.site_id, name=message.name)

    async def on_refused(self, tx: Tx, received: Received[RegistrationRefused]) -> None:
        reason, refused = received.message.reason, received.message.identity_pk
        if refused is not None and refused != self._desk.identity.key.public:
            log.warning("another_key_refused", code=reason)  # somebody tried to be us; our own registration stands
            return
        await site.mark_refused(tx, reason, by="on_refused")
        log.error("registration_refused", code=reason, reason=sentence(reason))

    async def on_manifest(self, tx: Tx, received: Received[ManifestPublished]) -> None:
        await self._accept_manifest(tx, received.message.manifest, received.key_id)

    async def _accept_manifest(self, tx: Tx, manifest: Manifest, key_id: str) -> None:
        """Keep a manifest that enough pinned officers signed and that does not turn the chain back.

        A version that leaves this site out is not sent here, so a gap is possible; the next one in line must fit.
        """
        verify_manifest(manifest, self._desk.identity.pin)
        newest = await studies.newest_manifest(tx, manifest.study_id)
        if newest is not None and manifest.version <= newest.version:
            known = await studies.manifest_by_hash(tx, manifest_hash(manifest))
            if known is None and manifest.version == newest.version:
                raise BrokenProtocol("MANIFEST_FORKED", key_id, study=manifest.study_id)
            return
        if newest is not None and manifest.version == newest.version + 1:
            verify_successor(manifest, newest)
        await studies.add_manifest(tx, manifest)
        await self._desk.name_witness(tx, manifest.study_id)

    async def on_offer(self, tx: Tx, received: Received[StudyOffered]) -> None:
        """A study version asks for this hospital's grant: kept, and approved only as the settings say."""
        by, message = "on_offer", received.message
        digest = message.study.digest()
        if digest != message.study_digest or message.manifest.study_digest != digest:
            raise BrokenProtocol("STUDY_DIGEST_WRONG", received.key_id)
        if message.manifest.study_id != message.study.name:
            raise BrokenProtocol("MANIFEST_OF_ANOTHER_STUDY", received.key_id)
        await self._accept_manifest(tx, message.manifest, received.key_id)
        offer = await studies.save_offer(tx, message.study, digest, by=by)
        await studies.add_run(tx, message.run_id, digest, by=by)
        log.info("study_offered", study=offer.study_id, run=message.run_id, state=offer.state)
        await _approve_if_listed(tx, self._desk, offer, by=by)

    async def on_run_ended(self, tx: Tx, received: Received[RunEnded]) -> None:
        """What was kept for the run may go. A window whose roster was accepted ends by its own messages."""
        by, message = "on_run_ended", received.message
        await studies.end_run(tx, message.run_id, message.reason or message.state, by=by)
        for window in await windows.open_windows(tx, message.study_id):
            if window.run_id == message.run_id:
                await self._desk.step(tx, window, Superseded(), by=by)
        for product in await products.free_products(tx, message.run_id):
            await products.delete_product(tx, product.product_id)
        await models.delete_models(tx, message.run_id)
        await residuals.forget(tx, message.run_id)
        await seeds.forget_seeds(tx, message.run_id)
        await self._desk.charges.close(tx, message.run_id, message.reason or message.state, by=by)
        await cohorts.forget_cohort(tx, message.run_id)
        log.info("run_ended", study=message.study_id, run=message.run_id, state=message.state)


async def _approve_if_listed(tx: Tx, desk: Desk, offer: Offer, *, by: str) -> None:
    # Where documents are needed the cohort goes with the grant, and a training process reads its table (`approving`).
    if offer.study.governance == "trial" and approved_by_settings(desk, offer):
        warn_of_wildcard(desk, offer)
        await approve(tx, desk, offer, desk.settings.policy.approvers, by=by)


def approved_by_settings(desk: Desk, offer: Offer) -> bool:
    """Whether the hospital's settings let this study in without asking a person."""
    policy = desk.settings.policy
    if policy.approvals != "listed" or offer.state == "WITHDRAWN":
        return False
    return offer.study_digest.hex() in policy.approved_studies or ANY in policy.approved_studies


def warn_of_wildcard(desk: Desk, offer: Offer) -> None:
    """Say in the log that nobody named this study."""
    if offer.study_digest.hex() not in desk.settings.policy.approved_studies:
        log.warning("study_approved_by_wildcard", study=offer.study_id)


class NotApproved(CohortiumError):
    """The study is no trial, and no approval by two people of the hospital is in force for it. The text says what to
    do."""


async def wanted_grant(
    tx: Tx, desk: Desk, offer: Offer, approvers: tuple[ShortName, ...], *, anew: bool = False
) -> SiteGrant | None:
    """The grant for a study version that would be given now, still unsigned; None if one is in force already, and it is
    not to be given anew.

    For a study that is no trial it rests on the newest approval in force, goes no further than it, and names the people
    who signed it. Raises `NotApproved` if there is none.
    """
    policy, now = desk.settings.policy, desk.clock.now()
    held = await studies.grants(tx, offer.study_digest)
    usable = usable_grant(held, round_=0, now=now)
    # After a withdrawal only a grant that begins later counts, so that one is dated exactly.
    ahead_s = 0.0 if any(one.withdrawn for one in held) else SKEW_S
    unsigned = SiteGrant(
        study_id=offer.study_id,
        study_digest=offer.study_digest,
        site_id=desk.identity.site_id,
        not_before=now - timedelta(seconds=ahead_s),
        not_after=now + timedelta(days=policy.grant_days),
        max_rounds=policy.max_rounds,
        approvers=approvers,
        sig=UNSIGNED,
    )
    if offer.study.governance != "trial":
        unsigned = await _on_approval(tx, desk, offer, unsigned)
    wanted = anew or isinstance(usable, str) or usable.grant.basis != unsigned.basis
    return unsigned if wanted else None


async def approve(
    tx: Tx,
    desk: Desk,
    offer: Offer,
    approvers: tuple[ShortName, ...],
    *,
    by: str,
    cohort: GrantedCohort | None = None,
    anew: bool = False,
) -> SiteGrant | None:
    """Sign the grant that is wanted, for this cohort, keep it and send it to consent; None if one is in force already,
    unless it is to be given anew. Raises `NotApproved`."""
    unsigned = await wanted_grant(tx, desk, offer, approvers, anew=anew)
    if unsigned is None:
        return None
    grant = sign_grant(unsigned.model_copy(update={"cohort": cohort}), desk.identity.key)
    await studies.add_grant(tx, grant, by=by)
    await studies.set_offer_state(tx, offer.study_digest, "APPROVED", by=by)
    await desk.post(tx, "consent", GrantGiven(grant=grant), offer.study_id)
    return grant


async def _on_approval(tx: Tx, desk: Desk, offer: Offer, wanted: SiteGrant) -> SiteGrant:
    facts, now = await studies.facts(tx, offer.study_digest), desk.clock.now()
    if facts is None:
        raise LookupError("an offer has no study")
    found = approvals_in_force(facts, desk.site, now)
    if not found:
        raise NotApproved(
            f"{offer.study_id} needs an approval that two people of this hospital signed; write one with `cohortium "
            "consent new`, have it signed with `cohortium consent sign`, and add it with `cohortium consent add`"
        )
    basis, people = found[0]
    changes = {
        "basis": record_digest(basis),
        "not_before": max(wanted.not_before, basis.not_before),
        "not_after": min(wanted.not_after, basis.not_after),
        "max_rounds": min(wanted.max_rounds, basis.max_rounds),
        "approvers": people,
    }
    return wanted.model_copy(update=changes)
