"""What a study cost each hospital's patients in all its runs, against the cap that the hospital's people signed.

The cap stands in the documents under the grant by which a hospital was let into a run's windows; the spend in the
hospital's own statements about its ledger. Both are signed, and the same rule that the connector kept to
(`cohortium_privacy.agreed`) is applied to them anew, at each plan that was set aside.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.ledger import LedgerRecorded, LedgerStatement
from cohortium_messages.papers import StudyPapers
from cohortium_privacy.agreed import AgreedCap, PlanCost, agreed_epsilon, is_above
from cohortium_privacy.statements import holdings
from cohortium_protocol.consent.caps import PapersMissing, caps_of
from cohortium_protocol.documents import grant_digest
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, Window, said, verdict

NAME = "agreed privacy caps"


def check_agreed(papers: StudyPapers | None, entries: Sequence[Entry], windows: Mapping[bytes, Window]) -> Check:
    """No hospital was charged more for a study, over all its runs, than its signed documents allow."""
    case = _Case.of(papers, windows)
    failures: list[Failure] = []
    plans = 0
    for site_id, told in sorted(_by_site(entries).items()):
        for place, one in enumerate(told):
            if one.message.statement.reason != "PLANNED":
                continue
            plans += 1
            failures += case.judge(site_id, one, [before.message.statement for before in told[: place + 1]])
    return verdict(NAME, case.fact(plans), failures, tuple(dict.fromkeys(case.notes)))


def _by_site(entries: Sequence[Entry]) -> dict[SiteId, list[Said[LedgerRecorded]]]:
    """Each hospital's statements in the order in which it told them, each once. The log may have them otherwise."""
    found: dict[SiteId, dict[bytes, Said[LedgerRecorded]]] = {}
    for one in said(entries, LedgerRecorded):
        found.setdefault(one.message.site_id, {}).setdefault(one.message.statement.sig, one)
    return {site: _in_order(list(one.values())) for site, one in found.items()}


def _in_order(told: list[Said[LedgerRecorded]]) -> list[Said[LedgerRecorded]]:
    begun: dict[bytes, int] = {}
    for one in told:
        begun.setdefault(one.entry.envelope.series or b"", one.index)

    def place(one: Said[LedgerRecorded]) -> tuple[int, int]:
        envelope = one.entry.envelope
        return begun[envelope.series or b""], one.index if envelope.number is None else envelope.number

    return sorted(told, key=place)


@dataclass(slots=True)
class _Case:
    """Who was let into which run by which grant, and what the papers say of these."""

    papers: StudyPapers | None
    permitted: Mapping[tuple[SiteId, RunId], Sequence[tuple[int, bytes, bool]]]
    grants: Mapping[bytes, SiteGrant]
    notes: list[str] = field(default_factory=list)
    most: dict[SiteId, float] = field(default_factory=dict)

    @classmethod
    def of(cls, papers: StudyPapers | None, windows: Mapping[bytes, Window]) -> "_Case":
        permitted: dict[tuple[SiteId, RunId], list[tuple[int, bytes, bool]]] = {}
        for window in windows.values():
            for grounds in window.authorised:
                for permit in grounds.message.permits:
                    if permit.permitted and permit.grant_digest is not None:
                        known = permitted.setdefault((permit.site_id, grounds.message.run_id), [])
                        known.append((grounds.index, permit.grant_digest, permit.permit_digest is not None))
        grants = {} if papers is None else {grant_digest(grant): grant for grant in papers.grants}
        return cls(papers, permitted, grants)

    def fact(self, plans: int) -> str:
        """What was held against a cap."""
        if not plans:
            return "no hospital was charged"
        if not self.most:
            return f"{plans} plans over all runs, and no cap for them was signed"
        worst = max(self.most.values())
        within = f"within the caps that {len(self.most)} signed"
        return f"{plans} plans over all runs, {within}; the most is epsilon {worst:.3g}"

    def judge(self, site_id: SiteId, planned: Said[LedgerRecorded], told: list[LedgerStatement]) -> Iterator[Failure]:
        """What stands against one plan, after all that the hospital told before."""
        run_id, study_id = planned.message.statement.run_id, planned.message.statement.study_id
        known = [one for one in self.permitted.get((site_id, run_id), ()) if one[0] < planned.index]
        if not known:
            yield Failure(f"site {site_id} was charged for run {run_id}, which no grant let it into", planned.index)
            return
        choices = []
        for digest, governed in dict.fromkeys((digest, governed) for _, digest, governed in known):
            caps = self._caps(digest, governed=governed)
            if isinstance(caps, str):
                yield Failure(f"site {site_id} was charged for run {run_id}, and {caps}", planned.index)
                return
            choices.append(caps)
        if not all(choices):
            kind = "documents agree" if any(governed for *_, governed in known) else "grant, for a trial, agrees"
            self.notes.append(f"site {site_id} was charged for run {run_id}, and its {kind} no cap over all runs")
            return
        costs = [PlanCost(one.run_id, one.order, one.rdp) for one in holdings(told) if one.study_id == study_id]
        # Of several grants in force during a run the log does not tell which one the plan rests on: one must allow it.
        above = [list(self._above(site_id, caps, costs)) for caps in choices]
        if all(above):
            yield from (Failure(text, planned.index) for text in above[-1])

    def _above(self, site_id: SiteId, caps: Sequence[AgreedCap], costs: Sequence[PlanCost]) -> Iterator[str]:
        for cap in caps:
            epsilon = agreed_epsilon(costs, cap.delta)
            if is_above(epsilon, cap):
                runs = len({one.run_id for one in costs})
                yield (
                    f"site {site_id} is charged epsilon {epsilon:.4g} at delta {cap.delta:g} over {runs} runs, and "
                    f"{cap.document} allows {cap.epsilon:g}"
                )
            else:
                self.most[site_id] = max(epsilon, self.most.get(site_id, 0.0))

    def _caps(self, digest: bytes, *, governed: bool) -> tuple[AgreedCap, ...] | str:
        """The caps under a grant, or why they are not known. A trial's grant rests on no document."""
        grant = self.grants.get(digest)
        if grant is None:
            return "the documents that agree its cap are not in this bundle" if governed else ()
        assert self.papers is not None  # noqa: S101 - the grants are from them
        try:
            found = caps_of(grant, self.papers.file)
        except PapersMissing as missing:
            return f"the documents that agree its cap are not in this bundle: {missing}"
        return tuple(AgreedCap(one.cap.epsilon, one.cap.delta, one.document) for one in found)
