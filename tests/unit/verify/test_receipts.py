"""A receipt verifies with nothing but the officers' keys, and every forgery of one is refused for its reason."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cohortium_hospital import __main__ as hospital

from cohortium_messages.envelope import Envelope
from cohortium_messages.events import AuditEvent
from cohortium_messages.governance import ServiceKeys, TrustDocument
from cohortium_messages.ids import SiteId, StudyId
from cohortium_messages.withdrawals import WithdrawalProven, WithdrawalRecorded
from cohortium_protocol.attest import sign_statement
from cohortium_protocol.documents import GovernancePin, sign_trust
from cohortium_protocol.logproof import LogProof, entry_bytes, log_name
from cohortium_protocol.notes import Checkpoint, sign_checkpoint
from cohortium_protocol.receipts import ReceiptFile, ReceiptRefused, receipt_statement, verify_receipt
from cohortium_protocol.signing import IdentityKey, envelope_bytes
from cohortium_protocol.translog import Tree, leaf_hash

NOW = datetime(2027, 1, 1, tzinfo=UTC)
STUDY, SITE = StudyId("heart"), SiteId("10000000-0000-4000-8000-000000000001")
FACTS: dict[str, Any] = {
    "federation": "test.example",
    "study": STUDY,
    "study_digest": "d1" * 32,
    "site": SITE,
    "type": "institution",
    "withdrawal": "a1" * 32,
    "decision": {"digest": "de" * 32, "effect": "retire", "people": ["olga", "otto"], "at": "2027-01-02T00:00:00Z"},
    "first_rounds_without": [],
    "models": {"flagged": [], "retired": [], "retrained": None},
}


@dataclass(frozen=True)
class Parties:
    """Everybody's keys; what they sign may be a lie."""

    officers: tuple[IdentityKey, IdentityKey]
    consent: IdentityKey
    audit: IdentityKey

    @classmethod
    def fresh(cls) -> "Parties":
        made = [IdentityKey.generate() for _ in range(4)]
        return cls((made[0], made[1]), made[2], made[3])

    @property
    def pin(self) -> GovernancePin:
        return GovernancePin(frozenset(key.public for key in self.officers), 2)

    def trust(self) -> TrustDocument:
        other = IdentityKey.generate().public
        keys = ServiceKeys(
            enrolment=other,
            consent=self.consent.public,
            scheduler=other,
            aggregator=other,
            audit=self.audit.public,
            aggregator_seal=other,
        )
        document = TrustDocument(
            federation="test.example",
            version=1,
            issued_at=NOW,
            services=keys,
            governance_keys=tuple(key.public for key in self.officers),
            threshold=2,
        )
        for officer in self.officers:
            document = sign_trust(document, officer)
        return document

    def entry(self, event: AuditEvent, number: int) -> bytes:
        envelope = Envelope(
            id=f"event-{number:04}",
            source="/consent",
            type=event.type_name,
            time=NOW + timedelta(minutes=number),
            study=STUDY,
            data=event.model_dump(mode="json"),
        )
        shown = envelope.model_dump(mode="json")
        signature = self.consent.sign(envelope_bytes("service:consent", rfc8785.dumps(shown)))
        return entry_bytes(shown, "service:consent", signature)

    def receipt(
        self, facts: dict[str, Any] = FACTS, *, swapped: bool = False, study: str = STUDY, **said: Any
    ) -> ReceiptFile:
        """An honest receipt, but for what the test changes: `said` are fields of the two events."""
        statement = sign_statement(receipt_statement(facts), [self.consent])
        digest = said.pop("receipt_sha256", hashlib.sha256(statement).digest())
        recorded = WithdrawalRecorded(
            withdrawal=said.pop("withdrawal", bytes.fromhex(facts["withdrawal"])),
            type="institution",
            site_id=SITE,
            study_digest=bytes.fromhex(facts["study_digest"]),
            requested_effect="retire",
            received_at=NOW,
        )
        proven = WithdrawalProven(
            withdrawal=recorded.withdrawal, effect=said.pop("effect", "retire"), receipt_sha256=digest
        )
        events: list[AuditEvent] = [proven, recorded] if swapped else [recorded, proven]
        entries = [self.entry(event, number) for number, event in enumerate(events)]
        tree = Tree.of(leaf_hash(entry) for entry in entries)
        note = sign_checkpoint(Checkpoint(log_name("test.example", study), tree.size, tree.root()), self.audit)
        proofs = [
            LogProof(entry, place, tuple(tree.inclusion(place, tree.size)), note).text()
            for place, entry in enumerate(entries)
        ]
        first, last = (1, 0) if swapped else (0, 1)
        return ReceiptFile(
            statement=statement.decode(), recorded=proofs[first], proven=proofs[last], trust=self.trust()
        )


def test_an_honest_receipt_is_proven_offline() -> None:
    parties = Parties.fresh()
    proven = verify_receipt(ReceiptFile.model_validate_json(parties.receipt().model_dump_json()), parties.pin)
    assert (proven.recorded_at, proven.proven_at) == (0, 1)
    assert proven.facts["decision"]["effect"] == "retire"


def _other_models(file: ReceiptFile, parties: Parties) -> ReceiptFile:
    lie = {**FACTS, "models": {"flagged": [], "retired": ["all of them"], "retrained": None}}
    return file.model_copy(update={"statement": sign_statement(receipt_statement(lie), [parties.consent]).decode()})


def _foreign_signature(file: ReceiptFile, parties: Parties) -> ReceiptFile:
    return file.model_copy(
        update={"statement": sign_statement(receipt_statement(FACTS), [IdentityKey.generate()]).decode()}
    )


FORGERIES: list[tuple[Callable[[Parties], ReceiptFile], str]] = [
    (lambda us: _other_models(us.receipt(), us), "digest of another receipt"),
    (lambda us: _foreign_signature(us.receipt(), us), "not consent's"),
    (lambda us: us.receipt(withdrawal=b"o" * 32), "records another withdrawal"),
    (lambda us: us.receipt(effect="stop_future"), "another effect"),
    (lambda us: us.receipt(receipt_sha256=b"o" * 32), "digest of another receipt"),
    (lambda us: us.receipt(swapped=True), "before the withdrawal"),
    (lambda us: us.receipt(study="another"), "the log does not hold"),
    (lambda us: us.receipt({**FACTS, "federation": "other.example"}), "no receipt of this federation"),
    (
        lambda us: us.receipt().model_copy(update={"proven": Parties.fresh().receipt().proven}),
        "the log does not hold",
    ),
    (
        lambda us: us.receipt().model_copy(update={"trust": Parties.fresh().trust()}),
        "not signed by enough of your officers",
    ),
]


@pytest.mark.parametrize(("forge", "words"), FORGERIES)
def test_a_forged_receipt_is_refused(forge: Callable[[Parties], ReceiptFile], words: str) -> None:
    parties = Parties.fresh()
    with pytest.raises(ReceiptRefused, match=words):
        verify_receipt(forge(parties), parties.pin)


def test_a_hospital_checks_a_receipt_with_its_own_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parties, file = Parties.fresh(), tmp_path / "receipt.json"
    keys = [word for officer in parties.officers for word in ("--governance-key", officer.public.hex())]
    file.write_text(parties.receipt().model_dump_json())
    assert hospital.main(["consent-verify-receipt", str(file), *keys]) == 0
    assert "decided: retire" in capsys.readouterr().out
    strangers = [word for officer in Parties.fresh().officers for word in ("--governance-key", officer.public.hex())]
    assert hospital.main(["consent-verify-receipt", str(file), *strangers]) == 1
    assert "NOT PROVEN" in capsys.readouterr().out
    file.write_text("{}")
    assert hospital.main(["consent-verify-receipt", str(file), *keys]) == 2
