"""The cap that a hospital's people signed, against what its ledger tells of all runs: a forged bundle fails for its
reason, at its entry."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from cohortium_messages import events as ev
from cohortium_messages.consent import ConsentFile
from cohortium_messages.envelope import Envelope
from cohortium_messages.governance import Permit, SiteGrant
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.ledger import LedgerRecorded, LedgerStatement
from cohortium_messages.papers import StudyPapers
from cohortium_privacy.renyi import budget, epsilon_of
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import grant_digest
from cohortium_verify.agreed import check_agreed
from cohortium_verify.log import Entry
from cohortium_verify.report import Check
from cohortium_verify.rules import windows_of
from consent_stage import NOW, SITES, STUDY, STUDY_DIGEST, Plane

PLANE = Plane()
SITE = SITES[0]
DELTA, ORDER = 1e-5, 8
RUNS = tuple(RunId(f"00000000-0000-4000-8000-0000000000a{number}") for number in range(4))
EACH = budget(2.0, DELTA, ORDER)
"""What a run of ε = 2 has in divergence; of three, ε is below 6, since divergence adds up and ε does not."""
TWO, THREE = (epsilon_of(runs * EACH, DELTA, ORDER) for runs in (2, 3))


def papers_with(**caps: Any) -> tuple[ConsentFile, SiteGrant]:
    """The hospital's documents, with a `privacy_cap` in the terms or in the approval (`basis`), and its grant."""
    fields = {name: {"privacy_cap": {"epsilon": epsilon, "delta": DELTA}} for name, epsilon in caps.items()}
    parts = PLANE.parts(SITE, **fields)
    file = ConsentFile(people=PLANE.cards(), records=tuple(PLANE.signed(SITE, parts).values()))
    return file, PLANE.grant(SITE, record_digest(parts["basis"]))


def told(run: RunId, reason: str = "PLANNED", *, first: int = 0, steps: int = 10, part: str = "training") -> Any:
    state = {"PLANNED": "RESERVED", "UPLOADED": "COMMITTED"}.get(reason, "RELEASED_BACK")
    about = f"{run} {reason} {first} {steps} {part}"
    return LedgerStatement.model_validate(
        {
            "site_id": SITE,
            "study_id": STUDY,
            "study_digest": STUDY_DIGEST,
            "run_id": run,
            "part": part,
            "state": state,
            "reason": reason,
            "first_step": first,
            "steps": steps,
            "attempt": 1,
            "order": ORDER,
            "rdp": EACH * steps / 10,
            "head": bytes(32),
            "sig": hashlib.sha512(about.encode()).digest(),
        }
    )


@dataclass(frozen=True)
class Story:
    """What the log says: each run's window is authorised, then the hospital tells of its plan."""

    file: ConsentFile
    grant: SiteGrant
    statements: tuple[LedgerStatement, ...]
    papers: bool = True
    governed: bool = True
    permitted: tuple[SiteId, ...] = (SITE,)
    order: Callable[[list[int]], list[int]] = list
    """In which order the hospital's own events came to the log, by their numbers."""

    def check(self) -> Check:
        papers = StudyPapers(study_id=STUDY, file=self.file, grants=(self.grant,), withdrawals=())
        entries = self.entries()
        return check_agreed(papers if self.papers else None, entries, windows_of(entries))

    def entries(self) -> list[Entry]:
        messages: list[tuple[ev.AuditEvent, int | None]] = [(self.authorised(run), None) for run in RUNS]
        numbers = self.order(list(range(1, len(self.statements) + 1)))
        messages += [(LedgerRecorded(statement=self.statements[number - 1]), number) for number in numbers]
        return [Entry(place, "", _envelope(one, place, number), one) for place, (one, number) in enumerate(messages)]

    def authorised(self, run: RunId) -> ev.WindowAuthorised:
        digest = b"d" * 32 if self.governed else None
        permits = tuple(
            Permit(site_id=site, permitted=True, grant_digest=grant_digest(self.grant), permit_digest=digest)
            for site in self.permitted
        )
        window = hashlib.sha256(run.encode()).digest()[:16]
        return ev.WindowAuthorised(
            run_id=run, window_id=window, round=1, purpose="update", params_hash=bytes(32), permits=permits
        )


def _envelope(message: ev.AuditEvent, place: int, number: int | None) -> Envelope:
    chain = {} if number is None else {"series": b"s" * 8, "number": number, "previous": bytes(32)}
    data = json.loads(message.model_dump_json())
    at = NOW + timedelta(seconds=place)
    return Envelope(id=f"{place:032}", source="/x", type=message.type_name, time=at, data=data, **chain)


def story(runs: int = 2, **caps: Any) -> Story:
    file, grant = papers_with(**caps)
    return Story(file, grant, tuple(told(run) for run in RUNS[:runs]))


def test_runs_within_the_cap_are_proven_and_counted_together() -> None:
    check = story(terms=TWO + 0.01, basis=TWO).check()
    assert (check.state, check.notes) == ("passed", ())
    assert check.fact == f"2 plans over all runs, within the caps that 1 signed; the most is epsilon {TWO:.3g}"


def test_what_was_given_back_counts_no_more_and_evaluation_beside_training_not_twice() -> None:
    honest = story(terms=TWO)
    ended = (told(RUNS[0]), told(RUNS[0], "NEVER_STARTED"), told(RUNS[1]), told(RUNS[2]))
    assert replace(honest, statements=ended).check().state == "passed"
    both = (told(RUNS[0]), told(RUNS[0], part="evaluation"), told(RUNS[1]))
    assert replace(honest, statements=both).check().state == "passed"


def test_the_hospitals_own_order_counts_and_not_that_of_the_log() -> None:
    """The plan after one that ended came to the log before its end did."""
    ended = (told(RUNS[0]), told(RUNS[0], "NEVER_STARTED"), told(RUNS[1]), told(RUNS[2]))
    late = replace(story(terms=TWO), statements=ended, order=lambda numbers: [1, 3, 4, 2])
    assert late.check().state == "passed"


def test_the_same_plan_told_twice_is_one() -> None:
    honest = story(terms=TWO)
    assert replace(honest, statements=(*honest.statements, honest.statements[0])).check().state == "passed"


FORGED: dict[str, tuple[Callable[[], Story], str, int]] = {
    "a third run above the terms' cap": (
        lambda: story(3, terms=TWO),
        f"site {SITE} is charged epsilon {THREE:.4g} at delta 1e-05 over 3 runs, and data-use terms T-1 allows {TWO:g}",
        len(RUNS) + 2,
    ),
    "a second run above the approval's cap": (
        lambda: story(2, terms=9.0, basis=2.0),
        "over 2 runs, and the hospital's approval of heart-disease allows 2",
        len(RUNS) + 1,
    ),
    "the documents are left out": (
        lambda: replace(story(1, terms=9.0), papers=False),
        "the documents that agree its cap are not in this bundle",
        len(RUNS),
    ),
    "the terms are left out": (
        lambda: _without(story(1, terms=9.0), "terms"),
        "the documents that agree its cap are not in this bundle: data-use terms",
        len(RUNS),
    ),
    "the approval is left out": (
        lambda: _without(story(1, terms=9.0), "grant_basis"),
        "the documents that agree its cap are not in this bundle: approval",
        len(RUNS),
    ),
    "a charge of a hospital that nobody let in": (
        lambda: replace(story(1, terms=9.0), permitted=(SITES[1],)),
        "which no grant let it into",
        len(RUNS),
    ),
}


def _without(honest: Story, kind: str) -> Story:
    records = tuple(one for one in honest.file.records if one.document.kind != kind)
    return replace(honest, file=honest.file.model_copy(update={"records": records}))


@pytest.mark.parametrize("name", FORGED)
def test_a_spend_that_nobody_agreed_is_found(name: str) -> None:
    make, reason, index = FORGED[name]
    check = make().check()
    assert check.state == "failed"
    assert [failure.index for failure in check.failures] == [index]
    assert reason in str(check.failures[0])


def test_documents_without_a_cap_and_trials_are_told() -> None:
    check = story(1).check()
    assert check.state == "passed"
    assert check.notes == (f"site {SITE} was charged for run {RUNS[0]}, and its documents agree no cap over all runs",)
    trial = replace(story(1), grant=PLANE.grant(SITE, None), governed=False, papers=False)
    assert trial.check().notes == (
        f"site {SITE} was charged for run {RUNS[0]}, and its grant, for a trial, agrees no cap over all runs",
    )
