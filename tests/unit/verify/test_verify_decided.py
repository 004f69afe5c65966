"""What was decided about who left is held against what people signed: the notice, the decision, and the terms."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import pytest
from test_verify_consent import NOW, PLANE, SITE, basis_of, envelope_of, recorded

from cohortium_messages import events as ev
from cohortium_messages.consent import ConsentFile, Effect, Record, Withdrawal, WithdrawalEffect, WithdrawalType
from cohortium_messages.governance import GrantWithdrawn, Manifest, Member, SiteGrant
from cohortium_messages.papers import StudyPapers
from cohortium_messages.withdrawals import WithdrawalDecided, WithdrawalRecorded
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import FIRST, UNSIGNED, grant_digest, sign_withdrawal, withdrawal_digest
from cohortium_verify.consent import check_consent
from cohortium_verify.log import Entry
from consent_stage import DAY, SITES, STUDY, STUDY_DIGEST

LEFT_AT = NOW
DECIDED_AT = NOW + DAY


def signed_with(**terms: Any) -> ConsentFile:
    """The hospital's documents, with these data-use terms; the people of all of them."""
    parts = PLANE.parts(SITE, terms=terms)
    return ConsentFile(people=PLANE.cards(), records=tuple(PLANE.signed(SITE, parts).values()))


def notice(type_: WithdrawalType) -> Withdrawal:
    return Withdrawal(
        type=type_,
        site_id=SITE,
        study_id=STUDY,
        study_digest=STUDY_DIGEST,
        received_at=LEFT_AT,
        effective_at=LEFT_AT,
        requested_effect="stop_future",
    )


def own_notice() -> GrantWithdrawn:
    """The hospital's, by its connector."""
    unsigned = GrantWithdrawn(study_id=STUDY, study_digest=STUDY_DIGEST, site_id=SITE, at=LEFT_AT, sig=UNSIGNED)
    return sign_withdrawal(unsigned, PLANE.site_keys[SITE])


def started(grant: SiteGrant) -> ev.GrantStarted:
    return ev.GrantStarted(
        site_id=grant.site_id,
        study_digest=grant.study_digest,
        grant_digest=grant_digest(grant),
        not_before=grant.not_before,
        not_after=grant.not_after,
    )


def decision(withdrawal: bytes, effect: Effect) -> WithdrawalEffect:
    return WithdrawalEffect(
        withdrawal=withdrawal,
        site_id=SITE,
        study_id=STUDY,
        study_digest=STUDY_DIGEST,
        effect=effect,
        decided_at=DECIDED_AT,
    )


@dataclass(frozen=True)
class Story:
    """Somebody left, and it was decided what becomes of the models. `told`: what the log says of the decision, where
    it is something else than what was signed; `late`: acts that consent first heard of after the withdrawal; `early`:
    all acts are on record before it, at their time, and it is dated so long before what is true; `recorded_at`: on
    which side of the decision the withdrawal is told of; `grant`: one on record as begun; `grants`: those in the
    bundle."""

    terms: ConsentFile
    type: WithdrawalType = "institution"
    effect: Effect = "stop_future"
    told: Effect | None = None
    approved: bool = True
    noticed: bool = True
    decision_there: bool = True
    recorded_type: WithdrawalType | None = None
    late: Callable[[Record], bool] = lambda _: False
    early: timedelta | None = None
    recorded_at: Literal["before", "after"] | None = "before"
    left_at: datetime = LEFT_AT
    grant: SiteGrant | None = None
    grants: tuple[SiteGrant, ...] = ()

    def failures(self) -> list[str]:
        own, document = own_notice(), notice(self.type)
        digest = withdrawal_digest(own) if self.type == "institution" else record_digest(document)
        decided = decision(digest, self.effect)
        admin = PLANE.admin(SITE)
        records = [*self.terms.records]
        if self.type != "institution" and self.noticed:
            records.append(Record(document=document, acts=(PLANE.act(document, "submit", admin, LEFT_AT),)))
        if self.decision_there:
            acts = [PLANE.act(decided, "submit", PLANE.lead, DECIDED_AT)]
            if self.approved:
                acts.append(PLANE.act(decided, "approve", PLANE.officer, DECIDED_AT))
            records.append(Record(document=decided, acts=tuple(acts)))
        said: list[tuple[ev.AuditEvent, datetime]] = []
        left = WithdrawalRecorded(
            withdrawal=digest,
            type=self.recorded_type or self.type,
            site_id=SITE,
            study_digest=STUDY_DIGEST,
            requested_effect="stop_future",
            received_at=LEFT_AT,
        )
        outcome = WithdrawalDecided(
            withdrawal=digest, decision=record_digest(decided), effect=self.told or self.effect, people=()
        )
        if self.early is not None:
            said += [(recorded(act), self.left_at) for one in self.terms.records for act in one.acts]
        if self.grant is not None:
            said.append((started(self.grant), LEFT_AT - DAY))
        follows = [*self._acts(), (outcome, DECIDED_AT + timedelta(seconds=1))]
        if self.recorded_at is not None:
            told = (left, self.left_at - (self.early or timedelta()))
            follows = [told, *follows] if self.recorded_at == "before" else [*follows, told]
        said += follows
        entries = [Entry(place, "service:x", envelope_of(one, at), one) for place, (one, at) in enumerate(said)]
        papers = StudyPapers(
            study_id=STUDY,
            file=self.terms.model_copy(update={"records": tuple(records)}),
            grants=self.grants,
            withdrawals=(own,) if self.type == "institution" else (),
        )
        members = tuple(Member(site_id=site, name="H", identity_pk=key) for site, key in PLANE.site_publics().items())
        manifest = Manifest(
            study_id=STUDY,
            version=1,
            prev_hash=FIRST,
            study_digest=STUDY_DIGEST,
            members=members,
            collusion=1,
            k_min_floor=0,
        )
        check = check_consent(papers, PLANE.pin, (manifest,), entries, {})
        weaker = [one for one in check.failures if "promise" in one.text]
        place = next(one.index for one in entries if isinstance(one.message, WithdrawalDecided))
        assert all(one.index == place for one in weaker), "the decision is what fails"
        return [one.text for one in check.failures]

    def _acts(self) -> list[tuple[ev.AuditEvent, datetime]]:
        return [
            (recorded(act), LEFT_AT + timedelta(minutes=5))
            for one in self.terms.records
            if self.late(one)
            for act in one.acts
        ]


RETRAIN = signed_with(withdrawal_effect="retrain")
APART = signed_with(withdrawal_effect="retire", patient_withdrawal_effect="retrain")


@pytest.mark.parametrize("kind", ["institution", "regulator", "patient_set"])
@pytest.mark.parametrize("effect", ["stop_future", "retrain", "retire"])
def test_a_decision_is_at_least_what_the_terms_promise(kind: WithdrawalType, effect: Effect) -> None:
    failures = Story(RETRAIN, type=kind, effect=effect).failures()
    if effect != "stop_future":
        assert failures == []
        return
    (text,) = failures
    assert text.startswith(f"stop_future was decided, and the data-use terms of site {SITE} promise retrain at least")


def test_terms_promise_for_patients_and_hospitals_apart() -> None:
    assert Story(APART, type="patient_set", effect="retrain").failures() == []
    for kind in ("institution", "regulator"):
        (text,) = Story(APART, type=kind, effect="retrain").failures()  # type: ignore[arg-type]
        assert text.endswith("promise retire at least when it leaves")
    (text,) = Story(APART, type="patient_set", effect="stop_future").failures()
    assert text.endswith("promise retrain at least when patients leave it")


def test_terms_that_came_after_the_withdrawal_promise_nothing_about_it() -> None:
    assert Story(RETRAIN, late=lambda one: one.document.kind == "terms").failures() == []
    assert Story(RETRAIN, late=lambda one: one.document.kind == "ethics").failures() != []


def test_a_record_that_is_dated_back_changes_no_promise() -> None:
    """What the log holds before it counts, whatever it says of its time."""
    (text,) = Story(RETRAIN, early=400 * DAY).failures()
    assert "promise retrain at least" in text
    assert Story(RETRAIN, early=400 * DAY, effect="retrain").failures() == []


NOT_BEFORE = "a decision is on record about a withdrawal that was not on record before it"


def test_a_decision_follows_a_withdrawal_on_record() -> None:
    for forged in (Story(RETRAIN, recorded_at=None), Story(RETRAIN, recorded_at="after", left_at=DECIDED_AT + DAY)):
        assert forged.failures() == [NOT_BEFORE]
    assert Story(RETRAIN, recorded_at="after", effect="retrain").failures() == [], "an outage may shuffle the log"
    (text,) = Story(RETRAIN, recorded_at="after").failures()
    assert "promise retrain at least" in text


def test_terms_under_which_a_grant_began_are_not_left_out() -> None:
    without = RETRAIN.model_copy(
        update={"records": tuple(one for one in RETRAIN.records if one.document.kind != "terms")}
    )
    grant = PLANE.grant(SITE, basis_of(RETRAIN))
    assert Story(RETRAIN, effect="retrain", grant=grant, grants=(grant,)).failures() == []
    for grants in ((grant,), ()):
        (text,) = Story(without, grant=grant, grants=grants).failures()
        assert "the data-use terms that it names are not in this bundle" in text
    assert Story(without).failures() == [], "terms that nobody filed let no grant begin"
    trial = PLANE.grant(SITE, None)
    assert Story(without, grant=trial, grants=(trial,)).failures() == []


def test_a_trial_promises_nothing() -> None:
    assert Story(ConsentFile(people=PLANE.cards())).failures() == []


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"told": "retrain"}, "as another one than people signed"),
        ({"approved": False}, "not enough people had signed it"),
        ({"decision_there": False}, "a decision is on record that is not among the documents"),
        ({"type": "patient_set", "noticed": False}, "nobody signed it"),
        ({"recorded_type": "patient_set"}, "a withdrawal is on record as another one than was signed"),
    ],
)
def test_each_lie_about_who_left_is_found(lie: dict[str, Any], words: str) -> None:
    plain = Story(ConsentFile(people=PLANE.cards()))
    assert plain.failures() == []
    assert any(words in text for text in replace(plain, **lie).failures())


def test_only_the_hospitals_own_terms_bind() -> None:
    """Another hospital's stricter terms promise nothing to this one."""
    other = PLANE.signed(SITES[1], PLANE.parts(SITES[1], terms={"withdrawal_effect": "retire"}))
    mine = signed_with()
    both = mine.model_copy(update={"records": (*mine.records, *other.values())})
    assert basis_of(both, SITES[1])
    assert Story(both).failures() == []
