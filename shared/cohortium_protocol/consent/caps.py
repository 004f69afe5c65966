"""The cap on a study's privacy loss that a grant's documents agree."""

from collections.abc import Mapping
from dataclasses import dataclass

from cohortium_messages.consent import ConsentFile, DataUseTerms, Document, GrantBasis, PrivacyCap
from cohortium_messages.governance import SiteGrant
from cohortium_protocol.consent.authorise import name_of
from cohortium_protocol.consent.signing import record_digest


class PapersMissing(LookupError):
    """A document that a grant rests on is not here. The text says which."""


@dataclass(frozen=True, slots=True)
class NamedCap:
    """A cap, and how the document that says it is called."""

    cap: PrivacyCap
    document: str


def caps_of(grant: SiteGrant, file: ConsentFile) -> tuple[NamedCap, ...]:
    """What the approval under a grant, and the data-use terms under that, allow the study in all its runs; each holds.

    Nothing for a grant without an approval, or documents without a cap. Raises `PapersMissing`.
    """
    if grant.basis is None:
        return ()
    documents = {record_digest(one.document): one.document for one in file.records}
    basis = _found(documents, grant.basis, "approval")
    if not isinstance(basis, GrantBasis):
        raise PapersMissing("the grant names another document as its approval")
    terms = _found(documents, basis.terms, "data-use terms")
    if not isinstance(terms, DataUseTerms):
        raise PapersMissing("the approval names another document as its data-use terms")
    caps = ((basis.privacy_cap, basis), (terms.privacy_cap, terms))
    return tuple(NamedCap(cap, name_of(document)) for cap, document in caps if cap is not None)


def _found(documents: Mapping[bytes, Document], digest: bytes, kind: str) -> Document:
    document = documents.get(digest)
    if document is None:
        raise PapersMissing(f"{kind} {digest.hex()[:12]} is not here")
    return document
