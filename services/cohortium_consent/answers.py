"""The answer to "may these sites take part?": the policy over grants, documents, and the privacy cap."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cohortium_consent import store
from cohortium_consent.budgets import Cap, affordable
from cohortium_consent.documents import site_keys
from cohortium_consent.domain import Denied, Grant, GrantRecord, Permitted, Question, Standing, authorise
from cohortium_kit.db import Tx
from cohortium_messages.consent import StudyVersion
from cohortium_messages.governance import PartPrice, Permit, SiteGrant
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_privacy.statements import holdings
from cohortium_protocol.consent.authorise import Denied as DocumentsDeny
from cohortium_protocol.consent.authorise import Dossier, Reason
from cohortium_protocol.consent.authorise import Question as DocumentsQuestion
from cohortium_protocol.consent.authorise import authorise as authorise_documents
from cohortium_protocol.consent.people import Directory
from cohortium_protocol.documents import GovernancePin


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about several sites: may they take part in this round of this study version?"""

    study_id: StudyId
    study_digest: bytes
    round_number: int
    sites: Sequence[SiteId]
    run_id: RunId | None = None
    prices: tuple[PartPrice, ...] = ()
    governance: Literal["required", "trial", "unknown"] = "unknown"
    """Of the study file. Unknown: documents are asked for where a grant, or a study version on record, names any."""


async def permits_for(
    tx: Tx, asked: Asked, now: datetime, governance: GovernancePin, cap: Cap | None = None
) -> tuple[Permit, ...]:
    """The policy's answer for each site, from what is on record."""
    return tuple(permit for permit, _ in await answers_for(tx, asked, now, governance, cap))


async def answers_for(
    tx: Tx, asked: Asked, now: datetime, governance: GovernancePin, cap: Cap | None = None
) -> list[tuple[Permit, tuple[Reason, ...]]]:
    """The answer for each site, and every reason that documents give against it."""
    poor = await _exhausted(tx, asked, cap)
    revoked = frozenset(key.site_id for key in await store.site_keys.all(tx) if key.revoked)
    membership = await store.membership(tx, asked.study_id)
    current = await store.current_records(tx, asked.study_digest, asked.sites)
    papers = await _papers(tx, asked, current.values(), governance, now)
    answers: list[tuple[Permit, tuple[Reason, ...]]] = []
    for site_id in asked.sites:
        standing = Standing(revoked, membership, current.get(site_id))
        decision = authorise(standing, Question(site_id, asked.study_digest, asked.round_number, now))
        if isinstance(decision, Permitted) and site_id in poor:
            decision = Denied("EPSILON_EXHAUSTED")
        if isinstance(decision, Denied):
            answers.append((Permit(site_id=site_id, permitted=False, deny_code=decision.code), ()))
            continue
        answers.append(papers.answer(asked, site_id, decision.grant_digest, now))
    return answers


@dataclass(frozen=True, slots=True)
class _Papers:
    """The documents, as far as this question needs them. `needed`: whether the study needs any."""

    needed: bool
    dossier: Dossier
    grants: Mapping[bytes, SiteGrant]

    def answer(self, asked: Asked, site_id: SiteId, digest: bytes, now: datetime) -> tuple[Permit, tuple[Reason, ...]]:
        grant = self.grants[digest]
        if not self.needed and grant.basis is None:
            return Permit(site_id=site_id, permitted=True, grant_digest=digest), ()
        question = DocumentsQuestion(asked.study_id, asked.study_digest, site_id, asked.round_number, now)
        said = authorise_documents(question, grant, digest, self.dossier)
        if isinstance(said, DocumentsDeny):
            return Permit(site_id=site_id, permitted=False, deny_code=said.code), said.reasons
        permit = Permit(
            site_id=site_id, permitted=True, grant_digest=digest, permit_digest=said.digest, until=said.until
        )
        return permit, ()


async def _papers(
    tx: Tx, asked: Asked, records: Iterable[GrantRecord], governance: GovernancePin, now: datetime
) -> _Papers:
    grants = await store.signed_grants(tx, [record.grant.grant_digest for record in records])
    named = any(grant.basis is not None for grant in grants.values())
    if asked.governance == "trial" and not named:
        return _Papers(False, Dossier({}, Directory(frozenset())), grants)
    dossier = Dossier.judge(await store.consent_records.load(tx), governance, await site_keys(tx), now)
    on_record = any(
        isinstance(one.document, StudyVersion) and one.document.study_digest == asked.study_digest
        for one in dossier.records.values()
    )
    return _Papers(asked.governance == "required" or on_record, dossier, grants)


def first_round(grant: Grant, now: datetime) -> DocumentsQuestion:
    """Whether a grant counts at all: the question about round 0, which every grant covers."""
    return DocumentsQuestion(grant.study_id, grant.study_digest, grant.site_id, 0, now)


async def _exhausted(tx: Tx, asked: Asked, cap: Cap | None) -> frozenset[SiteId]:
    """Sites whose patients cannot pay for the run within the federation's cap, as far as their hospitals told."""
    if cap is None or asked.run_id is None or not asked.prices:
        return frozenset()
    prices = await store.run_prices(tx)
    held = holdings(await store.statements(tx, asked.sites))
    return frozenset(
        site_id
        for site_id in asked.sites
        if not affordable(asked.run_id, asked.prices, [one for one in held if one.site_id == site_id], prices, cap)
    )
