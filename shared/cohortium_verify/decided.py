"""What was decided about models that learnt from who left: what officers signed, no less than terms had promised."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from cohortium_messages.consent import Effect, Withdrawal, WithdrawalEffect
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
    recorded = {one.message.withdrawal: one for one in said(entries, WithdrawalRecorded)}
    for left in recorded.values():
        yield from _other_notice(case, left)
    for decided in said(entries, WithdrawalDecided):
        yield from _unsigned(case, decided)
        about = recorded.get(decided.message.withdrawal)
        promised = None if about is None else _promised(case, about)
        if about is not None and promised is not None and is_weaker(decided.message.effect, promised):
            who = "patients leave it" if about.message.type == "patient_set" else "it leaves"
            text = (
                f"{decided.message.effect} was decided, and the data-use terms of site {about.message.site_id} promise "
                f"{promised} at least when {who}"
            )
            yield Failure(text, decided.index)


def _promised(case: Case, about: Said[WithdrawalRecorded]) -> Effect | None:
    """By the signatures that consent had put on record before it: one clock, so nothing counts early."""
    at, left = about.entry.envelope.time, about.message
    people = case.dossier(at, early=timedelta()).people
    file = case.known(at, early=timedelta())
    return promised_effect(file, people, left.site_id, left.study_digest, left.type, at)


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
