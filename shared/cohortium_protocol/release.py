"""The release of a run's model: what people sign so that a candidate may be used.

A second in-toto Statement beside the aggregator's attestation, over the same files and the attestation itself. A
governance officer signs it, as many member hospitals as the study asks for (each with its identity key), and at last
the aggregator: each key in one role only. Whoever has the trust document and the memberships can check it offline.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from cohortium_messages.privacy_test import PrivacyTest
from cohortium_protocol.attest import Statement, sign_statement, signers_of, verify_statement
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.signing import IdentityKey

MODEL_TYPE: Final = "https://cohortium.org/attestation/model/1"
"""The aggregator's own statement about a model, which a release covers."""
RELEASE_TYPE: Final = "https://cohortium.org/attestation/release/1"
ATTESTATION: Final = "attestation.dsse.json"
RELEASE: Final = "release.dsse.json"
MEANING: Final = "I have reviewed this model and release it for its intended use."
MAX_RELEASE_BYTES: Final = 256 << 10
_BOUND: Final = ("federation", "study", "study_digest", "run", "model")
"""What the release repeats of the attestation, for who reads only one of them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that the aggregator attested: the envelope as it was published, and what is said in it."""

    attestation: bytes
    statement: Statement

    @classmethod
    def of(cls, attestation: bytes, aggregator: bytes) -> "Candidate":
        """Raises `AttestationRefused` unless this aggregator signed it."""
        return cls(attestation, verify_statement(attestation, (aggregator,), 1))

    @property
    def subjects(self) -> Mapping[str, bytes]:
        """The files that a release covers: those of the model, and the attestation."""
        return {**self.statement.subjects, ATTESTATION: sha256(self.attestation)}

    @property
    def bound(self) -> dict[str, Any]:
        return {name: self.statement.predicate.get(name) for name in _BOUND}


@dataclass(frozen=True, slots=True)
class Roles:
    """Who may sign in which role: the aggregator's key, the officers', and by site id the member hospitals'."""

    aggregator: bytes
    officers: frozenset[bytes]
    members: Mapping[str, bytes]

    def officers_of(self, keys: Collection[bytes]) -> tuple[bytes, ...]:
        """The officers among these signers. The aggregator's own key is nobody else's."""
        return tuple(sorted((self.officers - {self.aggregator}) & set(keys)))

    def sites_of(self, keys: Collection[bytes]) -> tuple[str, ...]:
        """The hospitals among these signers; a key that is an officer's or the aggregator's counts for none."""
        others = self.officers | {self.aggregator}
        return tuple(sorted(site for site, key in self.members.items() if key in keys and key not in others))


@dataclass(frozen=True, slots=True)
class Signed:
    """A release with the signatures that hold so far."""

    statement: Statement
    officers: tuple[bytes, ...]
    sites: tuple[str, ...]
    countersigned: bool

    @property
    def at(self) -> str:
        return str(self.statement.predicate.get("at", ""))

    @property
    def officer_name(self) -> str:
        """The printed name of the officer who wrote it."""
        return str(self.statement.predicate.get("officer", ""))

    @property
    def privacy_test(self) -> PrivacyTest | None:
        """What a test of the model's privacy found, as the officer signed it; None where none is given."""
        found = self.statement.predicate.get("privacy_test")
        return None if found is None else PrivacyTest.model_validate(found)

    def missing(self, sites_needed: int) -> tuple[str, ...]:
        """Whose signatures are needed yet, in words."""
        words = [] if self.officers else ["a governance officer"]
        if (lack := sites_needed - len(self.sites)) > 0:
            words.append(f"{lack} more member hospital{'' if lack == 1 else 's'}")
        return tuple(words)


def sign_release(
    candidate: Candidate, officer: str, at: datetime, key: IdentityKey, privacy_test: PrivacyTest | None = None
) -> bytes:
    """The release of this candidate, written and signed by an officer: printed name, moment and meaning are in it, and
    what a test of the model's privacy found, where there was one. Raises `AttestationRefused` for another model's."""
    predicate = {**candidate.bound, "officer": officer, "at": at.isoformat(timespec="seconds"), "meaning": MEANING}
    if privacy_test is not None:
        predicate["privacy_test"] = privacy_test.model_dump(mode="json")
        _check_test(predicate, candidate)
    return sign_statement(Statement(candidate.subjects, RELEASE_TYPE, predicate), [key])


def read_release(envelope: bytes, candidate: Candidate, roles: Roles) -> Signed:
    """The release of exactly this candidate, and who signed it. Raises `AttestationRefused` where it is another's."""
    if len(envelope) > MAX_RELEASE_BYTES:
        raise AttestationRefused("the release is too large")
    known = (roles.aggregator, *roles.officers, *roles.members.values())
    keys = signers_of(envelope, known)
    if not keys:
        raise AttestationRefused("no officer, member hospital or aggregator of this federation signed the release")
    statement = verify_statement(envelope, tuple(keys), 1)
    if statement.predicate_type != RELEASE_TYPE or statement.predicate.get("meaning") != MEANING:
        raise AttestationRefused("it is a statement, and no release of a model")
    if dict(statement.subjects) != dict(candidate.subjects):
        raise AttestationRefused("the release is of other files than these")
    if {name: statement.predicate.get(name) for name in _BOUND} != candidate.bound:
        raise AttestationRefused("the release names another study, run or model than the attestation")
    _check_test(statement.predicate, candidate)
    return Signed(statement, roles.officers_of(keys), roles.sites_of(keys), roles.aggregator in keys)


def _check_test(predicate: Mapping[str, Any], candidate: Candidate) -> None:
    """The test in a release is of the model that is released."""
    if "privacy_test" not in predicate:
        return
    try:
        test = PrivacyTest.model_validate(predicate["privacy_test"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise AttestationRefused(f"its privacy test is not of its form: {place}: {first['msg']}") from None
    model = candidate.bound["model"]
    if (test.run, test.model_hash.hex()) != (candidate.bound["run"], (model or {}).get("model_hash")):
        raise AttestationRefused(f"its privacy test is of another model, of run {test.run}")


def check_release(envelope: bytes, candidate: Candidate, roles: Roles, sites_needed: int) -> Signed:
    """A release that counts: an officer, enough hospitals and the aggregator signed it. Raises `AttestationRefused`."""
    signed = read_release(envelope, candidate, roles)
    missing: Sequence[str] = (*signed.missing(sites_needed), *(() if signed.countersigned else ("the aggregator",)))
    if missing:
        raise AttestationRefused(f"the release is not signed by {' and '.join(missing)}")
    return signed
