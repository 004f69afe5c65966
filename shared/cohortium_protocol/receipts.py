"""Receipts of withdrawals: what a hospital, or anybody it shows them to, checks offline.

A receipt is a statement that consent signed (DSSE, in-toto), with two proofs that the study's log holds what frames it:
the entry that records the withdrawal, and the entry that names the statement's digest. Whose keys these are says the
trust document, which governance officers signed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import StudyId, Wire
from cohortium_messages.withdrawals import WithdrawalProven, WithdrawalRecorded
from cohortium_protocol.attest import MAX_ENVELOPE_BYTES, Statement, verify_statement
from cohortium_protocol.documents import GovernancePin, verify_trust
from cohortium_protocol.errors import AttestationRefused, LogRefused, RemoteFault
from cohortium_protocol.logproof import MAX_TEXT, LogProof, study_log
from cohortium_protocol.signing import service_key_id

PREDICATE_TYPE: Final = "https://cohortium.org/attestation/withdrawal/1"


class ReceiptFile(Wire):
    """What is handed over: the signed statement, the proofs of the two entries (C2SP tlog-proof), and whose keys are
    whose."""

    statement: Annotated[str, Field(max_length=MAX_ENVELOPE_BYTES)]
    recorded: Annotated[str, Field(max_length=MAX_TEXT)]
    proven: Annotated[str, Field(max_length=MAX_TEXT)]
    trust: TrustDocument


class ReceiptRefused(Exception):
    """The receipt does not prove what it says. The text says which part, and why."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receipt proves. `facts` are the statement's; the log's entries with these indices frame it."""

    facts: Mapping[str, Any]
    recorded_at: int
    proven_at: int


def receipt_statement(facts: Mapping[str, Any]) -> Statement:
    """The statement that consent signs: about the withdrawal and the decision, by their digests."""
    subjects = {
        "withdrawal": bytes.fromhex(facts["withdrawal"]),
        "decision": bytes.fromhex(facts["decision"]["digest"]),
    }
    return Statement(subjects=subjects, predicate_type=PREDICATE_TYPE, predicate=facts)


def verify_receipt(file: ReceiptFile, pin: GovernancePin) -> Receipt:
    """Everything is checked against the officers' keys that the reader pinned. Raises `ReceiptRefused`."""
    try:
        verify_trust(file.trust, pin)
    except RemoteFault as fault:
        raise ReceiptRefused(f"the trust document is not signed by enough of your officers ({fault})") from None
    try:
        statement = verify_statement(file.statement.encode(), [file.trust.services.consent], 1)
    except AttestationRefused as refused:
        raise ReceiptRefused(f"the statement is not consent's ({refused})") from None
    facts = _checked_facts(statement, file.trust)
    recorded_at, recorded = _logged(file.recorded, file.trust, facts, WithdrawalRecorded)
    proven_at, proven = _logged(file.proven, file.trust, facts, WithdrawalProven)
    named = (facts["withdrawal"], facts["site"], facts["study_digest"], facts["type"])
    if (recorded.withdrawal.hex(), recorded.site_id, recorded.study_digest.hex(), recorded.type) != named:
        raise ReceiptRefused("the log's entry records another withdrawal than the statement is about")
    if proven.receipt_sha256 != hashlib.sha256(file.statement.encode()).digest():
        raise ReceiptRefused("the log holds the digest of another receipt: this statement is not the recorded one")
    if (proven.withdrawal, proven.effect) != (recorded.withdrawal, facts["decision"]["effect"]):
        raise ReceiptRefused("the log's entry proves another withdrawal, or another effect")
    if recorded_at >= proven_at:
        raise ReceiptRefused("the log has the receipt before the withdrawal")
    return Receipt(facts, recorded_at, proven_at)


def _checked_facts(statement: Statement, trust: TrustDocument) -> Mapping[str, Any]:
    facts = statement.predicate
    try:
        wanted = receipt_statement(facts).subjects
        said = [facts[name] for name in ("study", "site", "study_digest", "type", "models", "first_rounds_without")]
        ours = facts["federation"] == trust.federation and isinstance(said[0], str)
        ours = ours and isinstance(facts["decision"]["effect"], str)
    except (KeyError, TypeError, ValueError):
        raise ReceiptRefused("the statement lacks what a receipt says") from None
    if statement.predicate_type != PREDICATE_TYPE or dict(statement.subjects) != wanted or not ours:
        raise ReceiptRefused("the statement is no receipt of this federation")
    return facts


def _logged(text: str, trust: TrustDocument, facts: Mapping[str, Any], kind: type[AuditEvent]) -> tuple[int, Any]:
    """Where the study's log holds the entry, and what consent said in it."""
    services, study = trust.services, StudyId(facts["study"])
    try:
        proof = LogProof.parse(text)
        proof.check(study_log(trust.federation, study, services.audit))
        envelope, event = proof.event(service_key_id("consent"), services.consent)
    except LogRefused as refused:
        raise ReceiptRefused(f"the log does not hold {kind.type_name} ({refused.detail or refused})") from None
    if type(event) is not kind or envelope.study != study:
        raise ReceiptRefused(f"the proven entry is no {kind.type_name} of {study}")
    return proof.index, event
