"""The hospital's veto: what must be true before a row is read for a window, or a survivor set is confirmed.

Every answer is a stable code of `problems.SENTENCES`, or None for "nothing against it". The order of the checks is from
what proves identity to what is a matter of taste, so that the first reason is the most basic one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from cohortium_messages.consent import ConsentFile, GrantBasis
from cohortium_messages.governance import Manifest, SiteGrant
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.privacy import LocalPrivacy, SitePrivacy
from cohortium_messages.secure_sum import Purpose, WindowParams
from cohortium_messages.study import LightgbmRecipe, RandomTreesRecipe, Study
from cohortium_messages.study_checks_privacy import least_sites
from cohortium_privacy.windows import formal, noise_for, plan_for, private_spec
from cohortium_protocol.consent.authorise import IN_FORCE, Dossier, Permitted, Question, Reason, authorise, withdrawn
from cohortium_protocol.consent.records import Active
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.parameters import layout_of
from cohortium_protocol.statistics import input_count
from cohortium_protocol.trees.vectors import integer_length

SUMS: dict[str, tuple[Purpose, ...]] = {
    "lightgbm": ("statistics", "refinement", "training", "evaluation"),
    "lightgbm.random_trees": ("statistics", "update", "evaluation"),
}
"""By trainer: what its runs ask sums for."""
SUMS_OF_OTHERS: tuple[Purpose, ...] = ("statistics", "update", "evaluation")


@dataclass(frozen=True, slots=True)
class Policy:
    """What this hospital demands of every study."""

    min_cohort: int
    min_collusion: int
    refuse_cohort_differing_by_one: bool | None
    """Rule R9; None: as the study says, and refused where it says nothing."""


@dataclass(frozen=True, slots=True)
class HeldGrant:
    """The site's own signed grant, and whether it was withdrawn."""

    grant: SiteGrant
    digest: bytes
    withdrawn: bool


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """All that the spool holds about a study version. `manifest`: its newest verified one. `runs`: those still open."""

    study: Study
    runs: frozenset[RunId]
    manifest: Manifest | None
    manifest_hash: bytes
    grants: tuple[HeldGrant, ...]
    consent: ConsentFile = field(default_factory=ConsentFile)
    """The site's own copies of the institution plane's documents."""


@dataclass(frozen=True, slots=True)
class Site:
    site_id: SiteId
    identity_pk: bytes
    aggregator_seal_pk: bytes
    """From the trust document: windows that name another one are refused."""
    pin: GovernancePin
    """The officers' keys that the hospital pinned: people of the federation are vouched for by them."""


def usable_grant(grants: Iterable[HeldGrant], round_: int, now: datetime) -> HeldGrant | str:
    """The newest grant that covers this round now, as consent takes it; or the code that says why there is none."""
    best = "GRANT_NOT_FOUND"
    for held in sorted(grants, key=lambda held: _given(held.grant), reverse=True):
        grant = held.grant
        if held.withdrawn:
            best = "GRANT_WITHDRAWN"
        elif now < grant.not_before:
            best = "GRANT_NOT_YET_VALID"
        elif now >= grant.not_after:
            best = "GRANT_EXPIRED" if best == "GRANT_NOT_FOUND" else best
        elif round_ > grant.max_rounds:
            best = "GRANT_ROUNDS_SPENT"
        else:
            return held
    return best


def _given(grant: SiteGrant) -> tuple[datetime, datetime]:
    """To order grants by when they were signed, which they say by their cohort, or by their beginning."""
    return (grant.not_before if grant.cohort is None else grant.cohort.as_of), grant.not_after


def permission(facts: StudyFacts, site: Site, round_: int, now: datetime) -> HeldGrant | tuple[Reason, ...]:
    """The grant under which this hospital takes part in this round, or every reason against it, the widest first.

    A study that is no trial needs documents, which are judged here from the hospital's own signed copies: no service is
    asked, and none is believed.
    """
    held = usable_grant(facts.grants, round_, now)
    if isinstance(held, str):
        return (Reason(held, f"grant for {facts.study.name}"),)
    epsilon = getattr(facts.study.privacy, "epsilon", None)
    digest, name = facts.study.digest(), StudyId(facts.study.name)
    question = Question(name, digest, site.site_id, round_, now, epsilon=epsilon, knows_study=True)
    if facts.study.governance == "trial":  # it needs no document, but heeds one that stops
        return tuple(withdrawn(question, held.grant, dossier(facts, site, now))) or held
    answer = authorise(question, held.grant, held.digest, dossier(facts, site, now))
    return held if isinstance(answer, Permitted) else answer.reasons


def dossier(facts: StudyFacts, site: Site, now: datetime) -> Dossier:
    """The hospital's documents as they stand now. Other hospitals' people are known by the study's members."""
    members = facts.manifest.members if facts.manifest is not None else ()
    keys = {member.site_id: member.identity_pk for member in members} | {site.site_id: site.identity_pk}
    return Dossier.judge(facts.consent, site.pin, keys, now)


def approvals_in_force(facts: StudyFacts, site: Site, now: datetime) -> list[tuple[GrantBasis, tuple[str, ...]]]:
    """The approvals of this study version that enough people of this hospital signed and that count now, the longest
    first, each with the ids of the people who signed it."""
    judged = dossier(facts, site, now)
    digest = facts.study.digest()
    found = []
    for one in judged.records.values():
        basis = one.document
        if not isinstance(basis, GrantBasis) or not isinstance(one.state, Active):
            continue
        mine = (basis.site_id, basis.study_digest) == (site.site_id, digest)
        if mine and one.standing(now)[0] in IN_FORCE:
            people = sorted(
                {name.partition("/")[2] for hand in one.state.approvals for name in hand.names if _is_id(name)}
            )
            found.append((basis, tuple(people[:8])))
    return sorted(found, key=lambda pair: pair[0].not_after, reverse=True)


def _is_id(name: str) -> bool:
    return not name.startswith("key/")


def objection(
    params: WindowParams, facts: StudyFacts | None, site: Site, policy: Policy, now: datetime
) -> HeldGrant | str:
    """The grant under which this window may be worked on, or the code of the first reason against it.

    For a private study it may compute for a second, as the plan is made here too: keep it off the event loop.
    """
    if facts is None or params.study_id != facts.study.name or params.run_id not in facts.runs:
        return "STUDY_UNKNOWN"
    manifest = facts.manifest
    if manifest is None or not _is_member(manifest, site):
        return "NOT_A_MEMBER"
    if params.manifest_hash != facts.manifest_hash:
        return "MANIFEST_CHANGED"
    held = permission(facts, site, params.round, now)
    if not isinstance(held, HeldGrant):
        return held[0].code
    if params.least_cohort < max(policy.min_cohort, facts.study.federation.min_sites, manifest.collusion + 2):
        return "COHORT_TOO_SMALL"
    if manifest.collusion < policy.min_collusion or params.aggregator_seal_pk != site.aggregator_seal_pk:
        return "POLICY_REFUSED"
    as_approved = _as_approved(params, facts.study) and noise_objection(params, facts.study, manifest) is None
    return held if as_approved else "POLICY_REFUSED"


def _is_member(manifest: Manifest, site: Site) -> bool:
    return any(member.site_id == site.site_id and member.identity_pk == site.identity_pk for member in manifest.members)


def _as_approved(params: WindowParams, study: Study) -> bool:
    """Whether the window asks for exactly what the approved study says: purpose, vector, kind, bases, privacy."""
    federation = study.federation
    buffered = params.purpose == "update" and federation.mode == "buffered"
    return (
        params.privacy_mode == study.privacy.mode
        and params.purpose in SUMS.get(study.recipe.trainer, SUMS_OF_OTHERS)
        and params.kind == _kind(params.purpose, study)
        and params.max_staleness <= (federation.max_staleness if buffered else 0)
        and _bases_fit(params, most=federation.max_staleness + 1 if buffered else 1)
        and _vector_fits(params, study)
        and _session_fits(params, study)
        and params.round <= study.rounds
    )


def _kind(purpose: Purpose, study: Study) -> str:
    if purpose == "training":
        return "strict"
    return "buffered" if purpose == "update" and study.federation.mode == "buffered" else "sync"


def _bases_fit(params: WindowParams, most: int) -> bool:
    versions = [base.version for base in params.bases]
    least = 0 if params.purpose == "statistics" else 1
    return least <= len(versions) <= (most if least else 0) and len(set(versions)) == len(versions)


def noise_objection(params: WindowParams, study: Study, manifest: Manifest) -> str | None:
    """Why the window does not ask for exactly the noise that follows from the approved study and the manifest, worked
    out here again; None where it does. For the hospital's own people.

    Less would promise less than the study says; the last model alone is evaluated.
    """
    if formal(study) is None:
        return None if params.noise is None else "the window asks for noise, and the study for no privacy"
    if params.purpose == "evaluation" and params.round != study.rounds:
        return f"the window evaluates round {params.round}; what is paid for is after round {study.rounds}"
    least, collusion = params.least_cohort, manifest.collusion
    if isinstance(study.privacy, SitePrivacy):
        expected, members, fewest = study.privacy.sites, len(manifest.members), least_sites(study)
        if members < expected:
            return f"the study promises to hide a hospital among {expected}, and the manifest has {members}"
        if least < fewest:
            return f"a sum of {least} hospitals could open; among {expected} the fewest are {fewest}"
    try:
        plan = plan_for(study, len(manifest.members), least, collusion)
        wanted = noise_for(study, params.purpose, plan, least, collusion)
    except (ValueError, ImportError) as error:  # no such plan or window, or nothing installed to make plans with
        return str(error)
    if params.noise == wanted:
        return None
    asked, due = (None if one is None else one.model_dump() for one in (params.noise, wanted))
    return f"the window's noise is {asked}, and the study comes to {due}"


def _vector_fits(params: WindowParams, study: Study) -> bool:
    """A strict session's steps have each their own length, which the training process decides: only the ring is said
    here."""
    vector, purpose, recipe = params.vector, params.purpose, study.recipe
    if formal(study) is not None:
        try:
            private = private_spec(study, purpose, (vector.rotation_seed, vector.keep_seed))
        except ValueError:
            return False
        if private is not None:
            return vector == private.model_copy(update={"chunk_bytes": vector.chunk_bytes})
    if purpose == "training":
        return (vector.encoding, vector.ring_bits) == ("integer", 64)
    if isinstance(recipe, LightgbmRecipe | RandomTreesRecipe) and vector.ring_bits != 64:
        return False
    if purpose != "update" or isinstance(recipe, LightgbmRecipe | RandomTreesRecipe):
        return vector.encoding == "integer" and vector.dimension == _length(study, purpose)
    compression = study.federation.compression
    return (
        vector.encoding == "grid"
        and vector.dimension == layout_of(recipe, input_count(study)).size
        and vector.ring_bits == compression.ring_bits
        and vector.rotate == compression.rotate
        and vector.keep == compression.keep
        and vector.clip_norm_l2 == compression.clip_norm_l2
        and (vector.weight_cap == 1 or not isinstance(study.privacy, LocalPrivacy))
    )


def _length(study: Study, purpose: Purpose) -> int:
    """0 for a sum that the study has not: no vector is as short."""
    try:
        return integer_length(study, purpose)
    except ValueError:
        return 0


def _session_fits(params: WindowParams, study: Study) -> bool:
    """A strict session grows what the study says. It may start from a published model: after a change of the cohort, or
    where a site has lost its journal; `cohort_objection` guards the roster in both cases."""
    spec = params.strict
    if params.kind != "strict" or spec is None:
        return spec is None and params.kind != "strict"
    return spec.rounds == study.boosting_rounds and spec.trees_done <= spec.rounds


def differs_by_one(members: frozenset[SiteId], earlier: Iterable[frozenset[SiteId]]) -> bool:
    """Rule R9: whether the difference of this sum and an earlier one would be (about) one site's vector."""
    return any(len(members ^ other) == 1 for other in earlier)


def cohort_objection(
    members: frozenset[SiteId],
    first: frozenset[SiteId] | None,
    earlier: Iterable[frozenset[SiteId]],
    study: Study,
    policy: Policy,
) -> str | None:
    """Why this site takes no part in a strict session with this cohort, or None.

    Every sum of a session is over all of `members`. `first` is the cohort of the run's first session, None if there was
    none: sums over the same rows with another one are made only where the study allows it. Who approved that study has
    accepted what a change by one site shows, unless the hospital's own policy says otherwise (rule R9, `earlier` are
    the sets to compare with).
    """
    if first is not None and members != first and not study.federation.allow_cohort_change:
        return "SITES_CHANGED"
    refuses = policy.refuse_cohort_differing_by_one
    if refuses is None:
        refuses = not study.federation.allow_cohort_change
    if refuses and differs_by_one(members, earlier):
        return "COHORT_DIFFERS_BY_ONE"
    return None
