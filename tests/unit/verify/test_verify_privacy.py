"""The promise of a private run: told alike everywhere, the study's own, paid for. Forgeries fail for their reason."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cohortium_messages import events as ev
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.ledger import FIRST_ORDER, LedgerRecorded, LedgerStatement
from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study import Study
from cohortium_privacy.prices import planned_parts
from cohortium_privacy.study_plans import statement_of
from cohortium_privacy.windows import usual_plan
from cohortium_protocol.attest import Statement, sign_statement
from cohortium_protocol.signing import IdentityKey
from cohortium_verify import privacy
from cohortium_verify.log import Entry
from cohortium_verify.privacy import check_privacy
from cohortium_verify.report import Check

RUN = RunId("00000000-0000-4000-8000-0000000000aa")
SITES = tuple(SiteId(f"00000000-0000-4000-8000-00000000000{digit}") for digit in "123")
AGGREGATOR = IdentityKey.from_seed(b"\x05" * 32)
TRUST = cast("TrustDocument", SimpleNamespace(services=SimpleNamespace(aggregator=AGGREGATOR.public)))
MODEL = ModelRef(version=2, model_hash=bytes(32))
ROUNDS = 2
SUMMED = {"mode": "distributed", "epsilon": 4, "delta": 1e-5, "sampling_rate": 0.5, "patients": 800}


def study_with(privacy: dict[str, Any]) -> Study:
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "name": "heart",
            "purpose": "Test the verifier",
            "dataset": {
                "features": [{"name": "age", "type": "float", "range": [18, 110], "missing": "impute"}],
                "label": {"name": "disease", "type": "binary"},
                "split": {"test": 0.3},
            },
            "recipe": {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5}},
            "federation": {"rounds": ROUNDS, "min_sites": 3},
            "privacy": privacy,
        }
    )


def window(number: int) -> bytes:
    return bytes([number]) * 16


@dataclass(frozen=True)
class Story:
    """What a bundle tells. Each test changes one thing of it."""

    study: Study = field(default_factory=lambda: study_with(SUMMED))
    logged: PrivacyStatement | None = None
    signed: PrivacyStatement | None = None
    carded: PrivacyStatement | None = None
    kept: Study | None = None
    statements: tuple[LedgerStatement, ...] = ()

    @classmethod
    def honest(cls, privacy: dict[str, Any] | None = None) -> "Story":
        study = study_with(SUMMED if privacy is None else privacy)
        promise = statement_of(study)
        story = cls(study, promise, promise, promise, study)
        plan = usual_plan(study)
        if plan is None:
            return story
        told = [story.said(site, "PLANNED", 0, plan.steps) for site in SITES]
        told += [story.said(site, "UPLOADED", step, 1) for site in SITES for step in range(ROUNDS)]
        return replace(story, statements=tuple(told))

    def said(self, site: SiteId, reason: str, first: int, steps: int, **changes: Any) -> LedgerStatement:
        plan = usual_plan(self.study)
        assert plan is not None
        (part,) = planned_parts(plan, self.study.rounds)
        price = part.prices[plan.order - FIRST_ORDER]
        assert price is not None
        state = {"PLANNED": "RESERVED", "RETRY": "RESERVED", "UPLOADED": "COMMITTED"}.get(reason, "RELEASED_BACK")
        values = {
            "site_id": site,
            "study_id": StudyId(self.study.name),
            "study_digest": self.study.digest(),
            "run_id": RUN,
            "part": "training",
            "state": state,
            "reason": reason,
            "first_step": first,
            "steps": steps,
            "attempt": 1,
            "order": plan.order,
            "rdp": price * steps,
            "head": bytes(32),
            "sig": hashlib.sha512(f"{site} {reason} {first} {changes}".encode()).digest(),
        }
        return LedgerStatement.model_validate(values | changes)

    def check(self, folder: Path) -> Check:
        files = {"model.safetensors": b"weights", "card.json": json.dumps(_card(self.carded)).encode()}
        if self.kept is not None:
            files["study.json"] = self.kept.canonical()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        subjects = {name: hashlib.sha256(data).digest() for name, data in files.items()}
        predicate = {} if self.signed is None else {"privacy": self.signed.model_dump(mode="json")}
        raw = sign_statement(Statement(subjects, "https://test/model/1", predicate), [AGGREGATOR])
        (folder / "attestation.dsse.json").write_bytes(raw)
        return check_privacy(folder / "attestation.dsse.json", TRUST, _entries(self._messages(raw)))

    def _messages(self, attestation: bytes) -> list[AuditEvent]:
        digest = hashlib.sha256(attestation).digest()
        messages: list[AuditEvent] = [
            ev.StudySubmitted(study_id=StudyId(self.study.name), study_digest=self.study.digest(), run_id=RUN)
        ]
        messages += [LedgerRecorded(statement=one) for one in self.statements]
        for number in range(1, ROUNDS + 1):
            ids = {"run_id": RUN, "window_id": window(number)}
            messages.append(
                ev.WindowAuthorised(**ids, round=number, purpose="update", params_hash=bytes(32), permits=())
            )
            messages.append(ev.AggregateOpened(**ids, survivors_hash=bytes(32), survivors=SITES, dropped=()))
        return [
            *messages,
            ev.ModelBundled(run_id=RUN, model=MODEL, attestation_sha256=digest, privacy=self.logged),
        ]


def _card(promise: PrivacyStatement | None) -> dict[str, Any]:
    return {} if promise is None else {"privacy": promise.model_dump(mode="json") | {"statement": "words"}}


def _entries(messages: Sequence[AuditEvent]) -> list[Entry]:
    return [Entry(place, "", cast("Any", None), message) for place, message in enumerate(messages)]


def told_everywhere(story: Story, **changes: Any) -> Story:
    """The same lie in the log, in the attestation and on the card."""
    assert story.logged is not None
    lie = story.logged.model_copy(update=changes)
    return replace(story, logged=lie, signed=lie, carded=lie)


def charged(story: Story, *more: tuple[str, int, int], **changes: Any) -> Story:
    """The first site says more: reason, first step, steps."""
    said = [story.said(SITES[0], reason, first, steps, **changes) for reason, first, steps in more]
    return replace(story, statements=(*story.statements, *said))


@pytest.fixture(scope="module")
def honest() -> Story:
    return Story.honest()


def test_an_honest_promise_is_proven(honest: Story, tmp_path: Path) -> None:
    check = honest.check(tmp_path)
    assert (check.state, check.failures, check.notes) == ("passed", (), ())
    assert "epsilon 4 at delta 1e-05 for each patient (distributed, rdp)" in check.fact
    assert f"{len(SITES) * ROUNDS} charges in {len(SITES)} plans" in check.fact


def test_a_study_without_privacy_promises_nothing_and_charges_nobody(tmp_path: Path) -> None:
    check = Story.honest({"mode": "none"}).check(tmp_path)
    assert (check.state, check.fact) == ("passed", "nothing is promised; no hospital was charged")


def test_what_was_proven_never_opened_and_not_begun_again_is_given_back(honest: Story, tmp_path: Path) -> None:
    ended = charged(honest, ("ABORT_CERT", 1, 1), ("RETRY", 1, 1))
    ended = charged(ended, ("NEVER_STARTED", 1, 1), attempt=2)
    check = ended.check(tmp_path)
    assert check.state == "passed", check.failures


def test_what_was_proven_never_opened_may_be_charged_again(honest: Story, tmp_path: Path) -> None:
    again = charged(honest, ("ABORT_CERT", 1, 1), ("RETRY", 1, 1))
    again = charged(again, ("UPLOADED", 1, 1), attempt=2)
    assert again.check(tmp_path).state == "passed"


Forge = Callable[[Story], Story]
FORGERIES: dict[str, tuple[Forge, str]] = {
    "a smaller epsilon": (
        lambda story: told_everywhere(story, epsilon=1.0),
        "the promise says epsilon 1.0, and the study comes to 4.0",
    ),
    "a smaller computed epsilon": (
        lambda story: told_everywhere(story, epsilon_pld=0.5),
        "the promise says epsilon_pld 0.5",
    ),
    "a smaller delta": (lambda story: told_everywhere(story, delta=1e-9), "the promise says delta 1e-09"),
    "another unit": (
        lambda story: told_everywhere(story, unit="hospital"),
        "the promise says unit 'hospital', and the study comes to 'patient'",
    ),
    "another mechanism": (
        lambda story: told_everywhere(story, mechanism="magic"),
        "the promise says mechanism 'magic'",
    ),
    "more noise than was asked for": (
        lambda story: told_everywhere(story, noise_multiplier=50.0),
        "the promise says noise_multiplier 50.0",
    ),
    "other words": (
        lambda story: told_everywhere(story, sentences=("Nothing can be learnt.",)),
        "the promise says sentences",
    ),
    "fewer to rely on": (lambda story: told_everywhere(story, relies_on=()), "the promise says relies_on ()"),
    "another mode": (
        lambda story: told_everywhere(story, mode="local"),
        "the promise is of mode local, and the study of mode distributed",
    ),
    "no promise in the log": (
        lambda story: replace(story, logged=None, signed=None, carded=None, statements=()),
        "the study asks for privacy in mode distributed, and no promise is on record",
    ),
    "no promise, and hospitals were charged": (
        lambda story: replace(story, logged=None, signed=None, carded=None, kept=None),
        f"site {SITES[0]} was charged for run {RUN}, whose model promises nothing",
    ),
    "mode none, and hospitals were charged": (
        lambda story: told_everywhere(replace(story, kept=None), mode="none"),
        "whose model promises nothing",
    ),
    "the attestation says less than the log": (
        lambda story: replace(story, signed=told_everywhere(story, epsilon=2.0).signed),
        "the attestation says epsilon 2, and the log 4.0",
    ),
    "the attestation promises nothing": (
        lambda story: replace(story, signed=None),
        "the attestation has no promise, and the log differs",
    ),
    "the card says less than the log": (
        lambda story: replace(story, carded=told_everywhere(story, epsilon=2.0).carded),
        "the card says epsilon 2.0, and the log 4.0",
    ),
    "a study that cannot be kept": (
        lambda story: replace(
            story, study=study_with(SUMMED | {"delta": 5e-3}), kept=study_with(SUMMED | {"delta": 5e-3}), statements=()
        ),
        "the study's promise cannot be kept: privacy.delta is 0.005, not below 1/patients",
    ),
    "the study is left out": (
        lambda story: replace(story, kept=None),
        "the model is signed without study.json",
    ),
    "another study": (
        lambda story: replace(story, kept=study_with(SUMMED | {"epsilon": 2})),
        "study.json is another study version than the one that was submitted",
    ),
    "more charges than the plan": (lambda story: charged(story, ("UPLOADED", 2, 1)), "charges step 2 of a plan of 2"),
    "a round charged twice": (
        lambda story: charged(story, ("UPLOADED", 1, 1), attempt=2),
        "charges step 1 2 times, and gave it back 0 times",
    ),
    "more given back than charged": (
        lambda story: charged(charged(story, ("ABORT_CERT", 1, 1)), ("ECHO_CERT", 1, 1), attempt=2),
        "gives step 1 back 2 times, and charged it 1 times",
    ),
    "a round given back as never begun": (
        lambda story: charged(story, ("NEVER_STARTED", 1, 1)),
        "gives step 1 back as never begun, which it charged",
    ),
    "a plan made twice": (lambda story: charged(story, ("PLANNED", 0, 2), attempt=2), "sets one plan aside twice"),
    "a charge below the price": (
        lambda story: charged(
            replace(story, statements=story.statements[1:]), ("PLANNED", 0, 2), rdp=story.statements[0].rdp / 2
        ),
        "prices 1 steps at",
    ),
    "a plan below the study's price": (
        lambda story: replace(story, statements=_cheaper(story.statements)),
        "where the study's plan costs",
    ),
    "a plan of fewer steps": (
        lambda story: replace(
            story, statements=(story.said(SITES[0], "PLANNED", 0, 1), story.said(SITES[0], "UPLOADED", 0, 1))
        ),
        "plans 1 steps, and the study 2",
    ),
    "a charge without a plan": (
        lambda story: replace(story, statements=story.statements[1:]),
        "that it never set aside",
    ),
}


def _cheaper(statements: Sequence[LedgerStatement]) -> tuple[LedgerStatement, ...]:
    return tuple(one.model_copy(update={"rdp": one.rdp / 2}) for one in statements)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_fails_for_its_reason(honest: Story, tmp_path: Path, name: str) -> None:
    forge, reason = FORGERIES[name]
    check = forge(honest).check(tmp_path)
    assert check.state == "failed"
    assert any(reason in str(failure) for failure in check.failures), check.failures
    assert all(failure.index is not None for failure in check.failures)


def test_a_sum_that_a_site_was_not_charged_for_is_noted(honest: Story, tmp_path: Path) -> None:
    """A failure it cannot be: the site's events may still be on their way."""
    check = replace(honest, statements=honest.statements[:-1]).check(tmp_path)
    assert check.state == "passed"
    assert check.notes == (f"site {SITES[2]} is in 2 private sums of run {RUN} (training), and tells of 1 charges",)


def test_without_the_accountant_the_studys_own_numbers_are_compared(
    honest: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "accountant_installed", lambda: False)
    check = honest.check(tmp_path)
    assert check.state == "passed"
    assert "not worked out again" in check.notes[0]
    for changes, reason in (({"epsilon": 1.0}, "epsilon 1.0"), ({"unit": "hospital"}, "unit 'hospital'")):
        check = told_everywhere(honest, **changes).check(tmp_path)
        assert check.state == "failed"
        assert reason in check.fact
