"""Documents signed by people and by sites: trust document, membership manifest, grants, registration (section 1.3).

A signature covers the pre-authentication encoding of a label and the RFC 8785 canonical JSON of the document without
its signature fields. So layout does not matter, and a document of one kind is never taken for one of another.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import rfc8785

from cohortium_messages.governance import (
    MAX_ROSTER,
    GovernanceSignature,
    GrantWithdrawn,
    Manifest,
    RegisterSite,
    SiteGrant,
    TrustDocument,
)
from cohortium_messages.ids import SiteId, Wire
from cohortium_protocol import labels
from cohortium_protocol.encoding import pae, sha256, site_bytes
from cohortium_protocol.errors import BadSignature, DocumentRefused, TooFewSignatures
from cohortium_protocol.signing import IdentityKey, check_public_key, verify

UNSIGNED = bytes(64)
"""Placeholder for the `sig` of a grant or withdrawal that is about to be signed."""
FIRST = bytes(32)
"""`prev_hash` of a study's first manifest."""


@dataclass(frozen=True, slots=True)
class GovernancePin:
    """The governance keys that a party trusts, and how many of them must agree.

    The threshold is pinned with the keys: were it read from the document that is being checked, one stolen key could
    sign a document that asks for one signature.
    """

    keys: frozenset[bytes]
    threshold: int

    @classmethod
    def of(cls, trust: TrustDocument) -> "GovernancePin":
        """The pin that this document (verified, or installed by hand) sets for what comes after it."""
        return cls(frozenset(trust.governance_keys), trust.threshold)


def canonical(document: Wire, *without: str) -> bytes:
    """RFC 8785 bytes of a document without these fields. Raises `DocumentRefused` if there are none."""
    try:
        return rfc8785.dumps(document.model_dump(mode="json", exclude=set(without)))
    except rfc8785.CanonicalizationError:
        raise DocumentRefused("the document has no canonical JSON") from None


def trust_bytes(document: TrustDocument) -> bytes:
    """What a governance officer signs of a trust document: everything but the signatures."""
    return pae(labels.TRUST, canonical(document, "signatures"))


def sign_trust(document: TrustDocument, key: IdentityKey) -> TrustDocument:
    """The document with one more officer's signature; an earlier one of the same key is replaced."""
    return document.model_copy(update={"signatures": _add(document.signatures, trust_bytes(document), key)})


def verify_trust(document: TrustDocument, pin: GovernancePin) -> None:
    """Enough pinned officers signed it, and its own keys are usable. Raises `TooFewSignatures` or `DocumentRefused`.

    The new document may name other officers: that is how they are replaced, by the old ones. The caller refuses a
    version below the one it has.
    """
    _check_signatures(document.signatures, trust_bytes(document), pin)
    if len(set(document.governance_keys)) != len(document.governance_keys):
        raise DocumentRefused("a governance key is there twice")
    if document.threshold > len(document.governance_keys):
        raise DocumentRefused("the threshold exceeds the number of governance keys")


def default_collusion(members: int) -> int:
    """The largest number of colluding sites assumed where a study names none: max(1, floor((M - 1) / 3)), and for more
    members than a roster holds as for so many, since else no roster could be large enough."""
    return max(1, (min(members, MAX_ROSTER) - 1) // 3)


@lru_cache(maxsize=8)
def manifest_bytes(manifest: Manifest) -> bytes:
    """What a governance officer signs of a manifest: everything but the signatures. Remembered: with a thousand
    members it takes a tenth of a second, and every window and every readiness needs it."""
    return pae(labels.MANIFEST, canonical(manifest, "signatures"))


def manifest_hash(manifest: Manifest) -> bytes:
    """SHA-256 of `manifest_bytes`: the name of this membership in windows and in the next manifest."""
    return sha256(manifest_bytes(manifest))


def sign_manifest(manifest: Manifest, key: IdentityKey) -> Manifest:
    """The manifest with one more officer's signature; an earlier one of the same key is replaced."""
    return manifest.model_copy(update={"signatures": _add(manifest.signatures, manifest_bytes(manifest), key)})


def verify_manifest(manifest: Manifest, pin: GovernancePin) -> None:
    """At least `pin.threshold` officers signed it; members are sorted, distinct and have usable keys; a window of all
    members could open. Raises `TooFewSignatures`, `WeakKey` or `DocumentRefused`."""
    _check_signatures(manifest.signatures, manifest_bytes(manifest), pin)
    ids = [site_bytes(member.site_id) for member in manifest.members]
    if any(low >= high for low, high in pairwise(ids)):
        raise DocumentRefused("members are not sorted by site id, or one is there twice")
    keys = [member.identity_pk for member in manifest.members]
    if len(set(keys)) != len(keys):
        raise DocumentRefused("an identity key is there twice")
    for key in keys:
        check_public_key(key)
    if max(3, manifest.collusion + 2, manifest.k_min_floor) > min(len(keys), MAX_ROSTER):
        raise DocumentRefused("collusion or k_min_floor is out of reach of this many members")


def verify_successor(manifest: Manifest, previous: Manifest) -> None:
    """`manifest` is the next version after `previous` in its study's chain. Raises `DocumentRefused`."""
    if manifest.study_id != previous.study_id:
        raise DocumentRefused("the manifest is of another study")
    if manifest.version != previous.version + 1 or manifest.prev_hash != manifest_hash(previous):
        raise DocumentRefused(f"version {manifest.version} does not follow version {previous.version}")


def verify_manifest_chain(manifests: Sequence[Manifest], pin: GovernancePin) -> None:
    """A whole chain from version 1 on, every link signed. Raises as `verify_manifest` and `verify_successor`."""
    if not manifests or manifests[0].version != 1 or manifests[0].prev_hash != FIRST:
        raise DocumentRefused("a chain begins with version 1")
    for manifest in manifests:
        verify_manifest(manifest, pin)
    for previous, manifest in pairwise(manifests):
        verify_successor(manifest, previous)


def _add(signatures: Iterable[GovernanceSignature], signed: bytes, key: IdentityKey) -> tuple[GovernanceSignature, ...]:
    others = tuple(signature for signature in signatures if signature.key != key.public)
    return (*others, GovernanceSignature(key=key.public, sig=key.sign(signed)))


def _check_signatures(signatures: Iterable[GovernanceSignature], signed: bytes, pin: GovernancePin) -> None:
    good: set[bytes] = set()
    for signature in signatures:
        if signature.key not in pin.keys or signature.key in good:
            continue
        try:
            verify(signature.key, signed, signature.sig)
        except BadSignature:
            continue
        good.add(signature.key)
    if len(good) < max(1, pin.threshold):
        raise TooFewSignatures(f"{len(good)} of {pin.threshold} pinned governance keys signed")


def grant_bytes(grant: SiteGrant) -> bytes:
    """What a hospital signs of a grant. One that names no approval has no such field, as before there was one."""
    absent = ("basis",) if grant.basis is None else ()
    return pae(labels.GRANT, canonical(grant, "sig", *absent))


def grant_digest(grant: SiteGrant) -> bytes:
    """SHA-256 of `grant_bytes`: the grant's name on record."""
    return sha256(grant_bytes(grant))


def sign_grant(grant: SiteGrant, key: IdentityKey) -> SiteGrant:
    """The grant (made with `sig=UNSIGNED`) with the site's signature."""
    return grant.model_copy(update={"sig": key.sign(grant_bytes(grant))})


def verify_grant(grant: SiteGrant, identity_pk: bytes) -> None:
    """The site's key signed this grant, and it ends after it begins. Raises `BadSignature` or `DocumentRefused`."""
    verify(identity_pk, grant_bytes(grant), grant.sig)
    if grant.not_before >= grant.not_after:
        raise DocumentRefused("the grant ends before it begins")


def withdrawal_bytes(withdrawal: GrantWithdrawn) -> bytes:
    """What a hospital signs of a withdrawal."""
    return pae(labels.GRANT_WITHDRAWN, canonical(withdrawal, "sig"))


def withdrawal_digest(withdrawal: GrantWithdrawn) -> bytes:
    """What a hospital's withdrawal is called from then on."""
    return sha256(withdrawal_bytes(withdrawal))


def sign_withdrawal(withdrawal: GrantWithdrawn, key: IdentityKey) -> GrantWithdrawn:
    """The withdrawal (made with `sig=UNSIGNED`) with the site's signature."""
    return withdrawal.model_copy(update={"sig": key.sign(withdrawal_bytes(withdrawal))})


def verify_withdrawal(withdrawal: GrantWithdrawn, identity_pk: bytes) -> None:
    """The site's key signed this withdrawal. Raises `BadSignature`."""
    verify(identity_pk, withdrawal_bytes(withdrawal), withdrawal.sig)


def token_mac(token: str, federation: str, site_id: SiteId, identity_pk: bytes) -> bytes:
    """HMAC-SHA256 under the invitation's one-time token: binds federation, site and identity key, so the token itself
    never travels and an observer cannot use it for a key of his own."""
    message = pae(labels.TOKEN, federation.encode(), site_bytes(site_id), identity_pk)
    return hmac.new(token.encode(), message, hashlib.sha256).digest()


def _proof_bytes(federation: str, site_id: SiteId, identity_pk: bytes, mac: bytes) -> bytes:
    return pae(labels.REGISTRATION, federation.encode(), site_bytes(site_id), identity_pk, mac)


def make_registration(token: str, federation: str, site_id: SiteId, identity: IdentityKey) -> RegisterSite:
    """A site's registration: proof that it holds the identity key, and that it holds the token."""
    mac = token_mac(token, federation, site_id, identity.public)
    proof = identity.sign(_proof_bytes(federation, site_id, identity.public, mac))
    return RegisterSite(site_id=site_id, identity_pk=identity.public, token_mac=mac, proof=proof)


def verify_registration(message: RegisterSite, token: str, federation: str) -> None:
    """The sender holds the private key and knew the token of this site. The MAC is compared in constant time.

    Raises `WeakKey`, `BadSignature` or `DocumentRefused`. The caller uses a token once.
    """
    check_public_key(message.identity_pk)
    signed = _proof_bytes(federation, message.site_id, message.identity_pk, message.token_mac)
    verify(message.identity_pk, signed, message.proof)
    expected = token_mac(token, federation, message.site_id, message.identity_pk)
    if not hmac.compare_digest(expected, message.token_mac):
        raise DocumentRefused("the token is not the one of this invitation")
