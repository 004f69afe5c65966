"""Keys of one window and everything derived from them (section 1.6 of the protocol).

A site makes a fresh `WindowKeys` for every window and deletes it when the window ends. Each derivation binds the roster
(as HKDF salt) and the step, so the same two sites never share a mask twice.
"""

from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from cohortium_messages.secure_sum import Ready
from cohortium_protocol import labels
from cohortium_protocol.encoding import H, le32, pae, site_bytes
from cohortium_protocol.errors import WeakKey

SEED_BYTES = 31
"""A seed is below 2^248, so that it is one element of the Shamir field."""

MaskKind = Literal["pair", "self"]

_PROBE = X25519PrivateKey.from_private_bytes(b"\x01" * 32)


class SealKey:
    """The private half of an X25519 sealing key (libsodium sealed boxes). Its `repr` shows nothing."""

    __slots__ = ("_key",)

    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "SealKey":
        """A new key from the operating system's randomness."""
        return cls(PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> "SealKey":
        """The key of 32 secret bytes, as `to_bytes` gave them."""
        return cls(PrivateKey(secret))

    def to_bytes(self) -> bytes:
        """The 32 secret bytes, for the key file."""
        return bytes(self._key)

    @property
    def public(self) -> bytes:
        """The 32-byte public key that others seal to."""
        return bytes(self._key.public_key)

    def open(self, sealed: bytes) -> bytes:
        """The content of a sealed box made for this key. Raises `ValueError` if it does not open."""
        try:
            return SealedBox(self._key).decrypt(sealed)
        except (CryptoError, TypeError):
            raise ValueError("the sealed box does not open") from None

    def __repr__(self) -> str:
        return "SealKey(***)"


def seal(public_key: bytes, content: bytes) -> bytes:
    """Seal `content` to `public_key`: 48 bytes longer, no sender, no associated data (so put the context in
    `content`)."""
    return SealedBox(PublicKey(public_key)).encrypt(content)


@dataclass(frozen=True, slots=True)
class WindowKeys:
    """A site's two fresh X25519 keys of one window: one to agree on masks, one that recovery boxes are sealed to."""

    mask: X25519PrivateKey = field(repr=False)
    seal: SealKey

    @classmethod
    def generate(cls) -> "WindowKeys":
        """New keys from the operating system's randomness. Never use them for two windows."""
        return cls(X25519PrivateKey.generate(), SealKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> "WindowKeys":
        """The keys of the 64 secret bytes that `to_bytes` gave."""
        if len(secret) != 64:
            raise ValueError("window keys have 64 bytes")
        return cls(X25519PrivateKey.from_private_bytes(secret[:32]), SealKey.from_bytes(secret[32:]))

    def to_bytes(self) -> bytes:
        """64 secret bytes, for the encrypted spool only."""
        return self.mask.private_bytes_raw() + self.seal.to_bytes()

    @property
    def mask_pk(self) -> bytes:
        """Public half of the mask key, as `Ready.mask_pk`."""
        return self.mask.public_key().public_bytes_raw()

    @property
    def seal_pk(self) -> bytes:
        """Public half of the seal key, as `Ready.seal_pk`."""
        return self.seal.public


def check_exchange_key(public_key: bytes) -> None:
    """Raise `WeakKey` if this X25519 key is of small order (RFC 7748, 6.1): any shared secret with it would be zero."""
    agree(_PROBE, public_key)


def agree(own: X25519PrivateKey, peer: bytes) -> bytes:
    """The X25519 shared secret. Raises `WeakKey` if it is all zero."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise WeakKey("exchange key") from None


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), length, salt, info).derive(ikm)


def pair_seed(own: X25519PrivateKey, lower: Ready, higher: Ready, roster_hash: bytes, step: int) -> bytes:
    """s_uv, 31 bytes: what two sites share for one step. `lower` and `higher` are their entries in roster order.

    Binds the roster (salt), the step, both site ids and both public keys. The owner of `own` must be one of the two.
    """
    return seed_of_pair(pair_secret(own, lower, higher), pair_identities(lower, higher), roster_hash, step)


def pair_secret(own: X25519PrivateKey, lower: Ready, higher: Ready) -> bytes:
    """The X25519 shared secret of two sites' mask keys, from which the seeds of all their steps come."""
    own_pk = own.public_key().public_bytes_raw()
    return agree(own, higher.mask_pk if own_pk == lower.mask_pk else lower.mask_pk)


def pair_identities(lower: Ready, higher: Ready) -> tuple[bytes, ...]:
    """What a pair's seeds are bound to, besides roster and step: both site ids and both public keys."""
    return site_bytes(lower.site_id), site_bytes(higher.site_id), lower.mask_pk, higher.mask_pk


def seed_of_pair(secret: bytes, identities: tuple[bytes, ...], roster_hash: bytes, step: int) -> bytes:
    """s_uv, 31 bytes, of `pair_secret` and `pair_identities`: for a session, which computes those once."""
    return hkdf(secret, roster_hash, pae(labels.PAIR, le32(step), *identities), SEED_BYTES)


def prg_key(seed: bytes, kind: MaskKind, roster_hash: bytes, step: int) -> bytes:
    """K(seed, kind), 32 bytes: the AES-256 key of one mask. Binds the roster (salt), the step and the kind of mask."""
    return hkdf(seed, roster_hash, pae(labels.PRG, kind.encode(), le32(step)), 32)


def self_commit(roster_hash: bytes, step: int, index: int, seed: bytes) -> bytes:
    """Commitment of site `index` to its self seed b_u. Hides, as the seed has 248 random bits."""
    return H(labels.COMMIT_SELF, roster_hash, le32(step), le32(index), seed)


def edge_commit(roster_hash: bytes, step: int, pair: tuple[int, int], seed: bytes) -> bytes:
    """Commitment to s_uv of the pair of indices, in either order: both ends send the same value, so a server sees two
    keys that do not match before anything is opened."""
    low, high = sorted(pair)
    return H(labels.COMMIT_PAIR, roster_hash, le32(step), le32(low), le32(high), seed)
