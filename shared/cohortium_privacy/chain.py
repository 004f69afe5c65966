"""The ledger's entries as bytes: canonical, signed, each naming the one before; and statements about them.

An entry's hash covers its signature. So the hash can be told outside (it is in every statement) without saying anything
of the entry: to guess at it, one would need the site's key.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import rfc8785
from pydantic import ValidationError

from cohortium_messages.ids import SiteId
from cohortium_messages.ledger import LedgerEntry, LedgerFact, LedgerStatement
from cohortium_messages.secure_sum import AbortCert, EchoCert
from cohortium_privacy.ledger_state import EntryRefused, LedgerState, follow
from cohortium_protocol import labels
from cohortium_protocol.documents import UNSIGNED, canonical
from cohortium_protocol.encoding import H, pae, sha256
from cohortium_protocol.errors import BadSignature, DocumentRefused
from cohortium_protocol.signing import IdentityKey, verify


@dataclass(frozen=True, slots=True)
class SealedEntry:
    """One row. `text` is the entry's RFC 8785 canonical JSON, which `sig` covers; `entry_hash` covers both."""

    entry: LedgerEntry
    text: bytes
    sig: bytes
    entry_hash: bytes


def entry_bytes(text: bytes) -> bytes:
    """What the site signs of an entry."""
    return pae(labels.LEDGER_ENTRY, text)


def entry_hash(text: bytes, sig: bytes) -> bytes:
    """The name of an entry, which the next one holds."""
    return H(labels.LEDGER_LINK, text, sig)


def seal(entry: LedgerEntry, key: IdentityKey) -> SealedEntry:
    """The entry as a row."""
    text = rfc8785.dumps(entry.model_dump(mode="json"))
    sig = key.sign(entry_bytes(text))
    return SealedEntry(entry, text, sig, entry_hash(text, sig))


def unseal(text: bytes, sig: bytes, public_key: bytes) -> SealedEntry:
    """The row as an entry: the signature first, then the content. Raises `BadSignature` or `EntryRefused`."""
    verify(public_key, entry_bytes(text), sig)
    try:
        entry = LedgerEntry.model_validate_json(text)
    except ValidationError:
        raise EntryRefused("an entry is well signed, but no entry of this version") from None
    return SealedEntry(entry, text, sig, entry_hash(text, sig))


def extend(
    state: LedgerState, facts: Iterable[LedgerFact], site_id: SiteId, key: IdentityKey, now: datetime
) -> tuple[LedgerState, tuple[SealedEntry, ...]]:
    """Rows for these facts, and the state after them. Raises `EntryRefused` where one cannot follow."""
    rows = []
    for fact in facts:
        entry = LedgerEntry(
            sequence=state.head.sequence + 1,
            site_id=site_id,
            recorded_at=now,
            prev_hash=state.head.entry_hash,
            fact=fact,
        )
        row = seal(entry, key)
        state = follow(state, entry, row.entry_hash, site_id)
        rows.append(row)
    return state, tuple(rows)


def replay(
    state: LedgerState, text: bytes, sig: bytes, site_id: SiteId, public_key: bytes
) -> tuple[SealedEntry, LedgerState]:
    """One stored row behind `state`, and the state after it, everything checked: signature, place, content.

    Raises `EntryRefused`, naming the row.
    """
    place = state.head.sequence + 1
    try:
        row = unseal(text, sig, public_key)
        return row, follow(state, row.entry, row.entry_hash, site_id)
    except BadSignature:
        raise EntryRefused(f"entry {place} is not signed by this site's key") from None
    except EntryRefused as error:
        raise EntryRefused(f"entry {place}: {error}") from None


def statement_bytes(statement: LedgerStatement) -> bytes:
    """What the site signs of a statement."""
    return pae(labels.LEDGER_STATEMENT, canonical(statement, "sig"))


def sign_statement(statement: LedgerStatement, key: IdentityKey) -> LedgerStatement:
    """The statement (made with `sig=UNSIGNED`) with the site's signature."""
    return statement.model_copy(update={"sig": key.sign(statement_bytes(statement))})


def verify_statement(statement: LedgerStatement, identity_pk: bytes) -> None:
    """The site's key signed this statement. Raises `BadSignature`."""
    verify(identity_pk, statement_bytes(statement), statement.sig)


def proof_digest(cert: AbortCert | EchoCert) -> bytes:
    """The name of a certificate in the row that it justifies."""
    try:
        return sha256(pae(labels.LEDGER_PROOF, cert.type_name.encode(), rfc8785.dumps(cert.model_dump(mode="json"))))
    except rfc8785.CanonicalizationError:
        raise DocumentRefused("the certificate has no canonical JSON") from None


__all__ = [
    "UNSIGNED",
    "SealedEntry",
    "entry_bytes",
    "entry_hash",
    "extend",
    "proof_digest",
    "replay",
    "seal",
    "sign_statement",
    "statement_bytes",
    "unseal",
    "verify_statement",
]
