"""Signers for tests: quick, and honest about being no security at all."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from cohortium_kit.envelopes import BadSignature


@dataclass(frozen=True, slots=True)
class HmacSigner:
    """Signs with a shared secret, so that a test needs no key pair."""

    key_id: str
    secret: bytes = b"test secret"

    def sign(self, body: bytes) -> bytes:
        return _tag(self.key_id, self.secret, body)


@dataclass(frozen=True, slots=True)
class HmacVerifier:
    """Knows the secrets of some key ids."""

    secrets: Mapping[str, bytes]

    @classmethod
    def of(cls, *signers: HmacSigner) -> "HmacVerifier":
        return cls({signer.key_id: signer.secret for signer in signers})

    def verify(self, key_id: str, body: bytes, signature: bytes) -> None:
        secret = self.secrets.get(key_id)
        if secret is None or not hmac.compare_digest(_tag(key_id, secret, body), signature):
            raise BadSignature(f"{key_id} did not sign this: use a key that is enrolled")


def _tag(key_id: str, secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, key_id.encode() + b"\0" + body, hashlib.sha256)
