"""Signed statements about model bundles: in-toto Statement v1 in a DSSE envelope, through securesystemslib (Ed25519).

DSSE signs its own pre-authentication encoding of payload type and payload, so anyone's DSSE verifier can check these.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # it has no __all__

from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.signing import IdentityKey

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAX_ENVELOPE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Statement:
    """What is said (`predicate`, whose meaning the URI `predicate_type` names) about which files (name to SHA-256)."""

    subjects: Mapping[str, bytes]
    predicate_type: str
    predicate: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """RFC 8785 canonical JSON of the in-toto Statement."""
        return rfc8785.dumps(
            {
                "_type": STATEMENT_TYPE,
                "subject": [
                    {"name": name, "digest": {"sha256": self.subjects[name].hex()}} for name in sorted(self.subjects)
                ],
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Statement":
        """Read a Statement. Raises `AttestationRefused`."""
        try:
            fields = json.loads(payload)
            if fields["_type"] != STATEMENT_TYPE:
                raise AttestationRefused("not an in-toto Statement v1")
            names = [subject["name"] for subject in fields["subject"]]
            digests = [bytes.fromhex(subject["digest"]["sha256"]) for subject in fields["subject"]]
            statement = cls(dict(zip(names, digests, strict=True)), fields["predicateType"], fields["predicate"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AttestationRefused("the payload is no statement") from None
        if len(statement.subjects) != len(names) or not all(len(digest) == 32 for digest in digests):
            raise AttestationRefused("subjects have distinct names and a SHA-256 each")
        return statement


def _signer(key: IdentityKey) -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(key.to_seed()))


def _public(key: bytes) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key))


def sign_statement(statement: Statement, keys: Sequence[IdentityKey]) -> bytes:
    """The DSSE envelope as canonical JSON, one signature per key."""
    envelope = Envelope(statement.to_bytes(), PAYLOAD_TYPE, {})
    for key in keys:
        envelope.sign(_signer(key))
    return rfc8785.dumps(envelope.to_dict())


def add_signature(envelope: bytes, key: IdentityKey) -> bytes:
    """The envelope with one more signature, such as a governance officer's beside the aggregator's. Read the statement
    before: this signs what is in the envelope."""
    opened = _read(envelope)
    opened.sign(_signer(key))
    return rfc8785.dumps(opened.to_dict())


def verify_statement(envelope: bytes, public_keys: Sequence[bytes], threshold: int) -> Statement:
    """The statement, if at least `threshold` distinct keys of `public_keys` signed it. Raises `AttestationRefused`.

    The files' digests are the caller's to compare with `subjects`, and to compare before the files are read.
    """
    opened = _read(envelope)
    if opened.payload_type != PAYLOAD_TYPE:
        raise AttestationRefused("not an in-toto payload")
    try:
        opened.verify([_public(key) for key in dict.fromkeys(public_keys)], threshold)
    except (SecureSystemsError, ValueError):
        raise AttestationRefused(f"fewer than {threshold} of the expected keys signed") from None
    return Statement.parse(opened.payload)


def signers_of(envelope: bytes, public_keys: Sequence[bytes]) -> frozenset[bytes]:
    """Which of these keys signed the envelope. Raises `AttestationRefused` for what is no envelope."""
    opened = _read(envelope)
    return frozenset(key for key in public_keys if _signed(opened, key))


def gather(envelopes: Sequence[bytes], public_keys: Sequence[bytes]) -> bytes:
    """One envelope with every signature of these keys that holds, out of envelopes of one statement, each key's once.

    Raises `AttestationRefused` where they hold different statements.
    """
    opened = [_read(envelope) for envelope in envelopes]
    if len({(one.payload, one.payload_type) for one in opened}) != 1:
        raise AttestationRefused("the envelopes hold different statements")
    signatures = {}
    for one in opened:
        for key in public_keys:
            if _signed(one, key):
                name = _public(key).keyid
                signatures[name] = one.signatures[name]
    return rfc8785.dumps(Envelope(opened[0].payload, opened[0].payload_type, signatures).to_dict())


def _signed(envelope: Envelope, key: bytes) -> bool:
    try:
        envelope.verify([_public(key)], 1)
    except (SecureSystemsError, ValueError):
        return False
    return True


def _read(envelope: bytes) -> Envelope:
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise AttestationRefused("the envelope is too large")
    try:
        return Envelope.from_dict(json.loads(envelope))
    except (SecureSystemsError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise AttestationRefused("not a DSSE envelope") from None
