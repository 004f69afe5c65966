"""What was decided about models that learnt from who left: what officers signed, no less than terms had promised."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from cohortium_messages.consent import GrantBasis, Withdrawal, WithdrawalEffect
from cohortium_messages.events import GrantStarted
from cohortium_messages.withdrawals import WithdrawalDecided, WithdrawalRecorded
from cohortium_protocol.consent.authorise import IN_FORCE
from cohortium_protocol.consent.promises import is_weaker, promised_effect
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import withdrawal_digest
from cohortium_verify.case import Case
from cohortium_verify.log import Entry
from cohortium_verify.report import Failure
from cohortium_verify.rules import Said, said


def wrong_decisions(case: Case, entries: Sequence[Entry]) -> Iterator[Failure]:
    """Every withdrawal on record is the one that was signed, and every decision about it was signed by enough people
    and is at least what the data-use terms promised that were signed when it came in."""
    recorded: dict[bytes, Said[WithdrawalRecorded]] = {}
    for left in said(entries, WithdrawalRecorded):
        recorded.setdefault(left.message.withdrawal, left)
        yield from _other_notice(case, left)
    for decided in said(entries, WithdrawalDecided):
        yield from _unsigned(case, decided)
        about = recorded.get(decided.message.withdrawal)
        # An outage may shuffle the log. To date a record back wins nothing: what came before it counts all the same.
        if about is None or (decided.index < about.index and _time(decided) < _time(about)):
            yield Failure("a decision is on record about a withdrawal that was not on record before it", decided.index)
        else:
            yield from _too_weak(case, entries, about, decided)


def _time(one: Said[WithdrawalRecorded] | Said[WithdrawalDecided]) -> datetime:
    return one.entry.envelope.time


def _too_weak(
    case: Case, entries: Sequence[Entry], about: Said[WithdrawalRecorded], decided: Said[WithdrawalDecided]
) -> Iterator[Failure]:
    """Promises count by the signatures that consent had put on record before the withdrawal: by one clock, so nothing
    counts early, and none less for a record that is dated back."""
    left = about.message
    at = max(one.envelope.time for one in entries[: about.index + 1] if one.key_id == about.entry.key_id)
    people = case.dossier(at, early=timedelta()).people
    file = case.known(at, early=timedelta())
    if _lacks_terms(case, entries, left):
        text = (
            f"an approval of site {left.site_id} counted, and the data-use terms that it names are not in this bundle"
        )
        yield Failure(f"{text}: nobody can say what they promise", decided.index)
    promised = promised_effect(file, people, left.site_id, left.study_digest, left.type, at)
    if promised is not None and is_weaker(decided.message.effect, promised):
        who = "patients leave it" if left.type == "patient_set" else "it leaves"
        text = f"{decided.message.effect} was decided, and the data-use terms of site {left.site_id} promise {promised}"
        yield Failure(f"{text} at least when {who}", decided.index)


def _lacks_terms(case: Case, entries: Sequence[Entry], left: WithdrawalRecorded) -> bool:
    """Whether terms were left out under which a grant of the hospital had begun. An approval whose terms nobody ever
    filed lets no grant begin."""
    place = (left.site_id, left.study_digest)
    begun = [one.message for one in said(entries, GrantStarted)]
    grants = [case.grants.get(one.grant_digest) for one in begun if (one.site_id, one.study_digest) == place]
    documents = {record_digest(one.document): one.document for one in case.file.records}
    return any(
        isinstance(basis, GrantBasis)
        and (basis.site_id, basis.study_digest) == place
        and basis.terms not in documents
        and any(grant is None or grant.basis == digest for grant in grants)
        for digest, basis in documents.items()
    )


def _other_notice(case: Case, about: Said[WithdrawalRecorded]) -> Iterator[Failure]:
    """A hospital's own notice may be followed by a newer one, which then is in the bundle alone; others are
    documents."""
    left = about.message
    signed: dict[bytes, tuple[str, str, bytes]] = {
        withdrawal_digest(one): ("institution", one.site_id, one.study_digest) for one in case.withdrawals
    }
    for record in case.file.records:
        if isinstance(one := record.document, Withdrawal):
            signed[record_digest(one)] = (one.type, one.site_id, one.study_digest)
    found = signed.get(left.withdrawal)
    if found is None and left.type != "institution":
        yield Failure("a withdrawal is on record, and nobody signed it: it is not among the documents", about.index)
    elif found is not None and found != (left.type, left.site_id, left.study_digest):
        yield Failure("a withdrawal is on record as another one than was signed", about.index)


def _unsigned(case: Case, decided: Said[WithdrawalDecided]) -> Iterator[Failure]:
    message, at = decided.message, decided.entry.envelope.time
    judged = case.dossier(at).records.get(message.decision)
    document = None if judged is None else judged.document
    if judged is None or not isinstance(document, WithdrawalEffect):
        yield Failure("a decision is on record that is not among the documents", decided.index)
    elif (document.withdrawal, document.effect) != (message.withdrawal, message.effect):
        yield Failure("a decision is on record as another one than people signed", decided.index)
    elif judged.standing(at)[0] not in IN_FORCE:
        yield Failure("a decision is on record, and not enough people had signed it by then", decided.index)
