"""Ed25519 signatures (RFC 8032) through libsodium, which refuses keys and points of small order."""

from dataclasses import dataclass, field
from functools import lru_cache

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from cohortium_protocol.encoding import pae
from cohortium_protocol.errors import BadSignature, WeakKey
from cohortium_protocol.labels import ENVELOPE

SIGNATURE_BYTES = 64


class IdentityKey:
    """The private half of a party's Ed25519 identity. It never leaves its machine; its `repr` shows nothing."""

    __slots__ = ("_key", "_public")

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._public = bytes(key.verify_key)

    @classmethod
    def generate(cls) -> "IdentityKey":
        """A new key from the operating system's randomness."""
        return cls(SigningKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "IdentityKey":
        """The key of a 32-byte seed, as `to_seed` gave it. Raises `ValueError` for another length."""
        return cls(SigningKey(seed))

    def to_seed(self) -> bytes:
        """The 32 secret bytes, for the key file."""
        return bytes(self._key)

    @property
    def public(self) -> bytes:
        """The 32-byte public key."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature. Give it pre-authentication encoded bytes that begin with a label."""
        return self._key.sign(message).signature

    def __repr__(self) -> str:
        return "IdentityKey(***)"


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Return if `public_key` made `signature` over `message`; raise `BadSignature` otherwise."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except (CryptoError, ValueError, TypeError):
        raise BadSignature from None


@lru_cache(maxsize=4096)
def check_public_key(public_key: bytes) -> None:
    """Raise `WeakKey` unless this is a canonical Ed25519 point of the prime-order group.

    With a key of small order one signature fits many messages, so a site that enrolled one could deny what it signed.
    """
    if len(public_key) != 32 or not crypto_core_ed25519_is_valid_point(public_key):
        raise WeakKey("identity key")


def envelope_bytes(key_id: str, body: bytes) -> bytes:
    """What an envelope's signature covers: the label, the key id and the exact bytes of the body."""
    return pae(ENVELOPE, key_id.encode(), body)


@dataclass(frozen=True, slots=True)
class EnvelopeSigner:
    """Signs envelopes in the name of `key_id`: `site:<uuid>` or `service:<role>`."""

    key_id: str
    key: IdentityKey

    def sign(self, body: bytes) -> bytes:
        """The signature that goes in the envelope's header."""
        return self.key.sign(envelope_bytes(self.key_id, body))


@dataclass(slots=True)
class Keyring:
    """Which public key speaks for which key id. A removed key is as unknown as one that never was."""

    keys: dict[str, bytes] = field(default_factory=dict)

    def add(self, key_id: str, public_key: bytes) -> None:
        """Trust this key for this id from now on, in place of any earlier one."""
        check_public_key(public_key)
        self.keys[key_id] = public_key

    def remove(self, key_id: str) -> None:
        """Trust no key for this id any more. Calling it twice changes nothing."""
        self.keys.pop(key_id, None)

    def verify(self, key_id: str, body: bytes, signature: bytes) -> None:
        """Return if the key of `key_id` signed this body; raise `BadSignature` otherwise."""
        public_key = self.keys.get(key_id)
        if public_key is None:
            raise BadSignature("unknown key")
        verify(public_key, envelope_bytes(key_id, body), signature)


def site_key_id(site_id: str) -> str:
    """`site:<uuid>`."""
    return f"site:{site_id}"


def service_key_id(role: str) -> str:
    """`service:<role>`."""
    return f"service:{role}"
