"""A site's login at the broker: the password is a short statement that the site makes itself (decision 0013).

There is no secret to deliver and none to store: the statement is signed with the site's identity key, or, before that
key is registered, authenticated under the one-time token of its invitation. It names a time within which it is good,
and it is bound to one federation, one namespace on the broker and one site, so it is of no use anywhere else.
"""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass

from cohortium_messages.ids import SiteId
from cohortium_protocol import labels
from cohortium_protocol.encoding import le64, pae, site_bytes
from cohortium_protocol.errors import BadSignature, DocumentRefused
from cohortium_protocol.signing import SIGNATURE_BYTES, IdentityKey, verify

NONCE_BYTES = 16
MAC_BYTES = 32
PREFIX = "cl1."
_HEAD_BYTES = 8 + 8 + NONCE_BYTES
_BYTES = _HEAD_BYTES + SIGNATURE_BYTES + MAC_BYTES
PASSWORD_CHARACTERS = len(PREFIX) + (_BYTES * 4 + 2) // 3
_TEXT = re.compile(rf"{re.escape(PREFIX)}[A-Za-z0-9_-]{{{PASSWORD_CHARACTERS - len(PREFIX)}}}", re.ASCII)
NO_MAC = bytes(MAC_BYTES)


@dataclass(frozen=True, slots=True)
class Audience:
    """What a login is for: a federation, by its trust document, and its namespace at the broker."""

    federation: str
    namespace: str


@dataclass(frozen=True, slots=True)
class LoginStatement:
    """`issued_at` and `ends_at` are whole seconds since 1970, by the site's clock. Without a token `mac` is zeros."""

    issued_at: int
    ends_at: int
    nonce: bytes
    signature: bytes
    mac: bytes

    def password(self) -> str:
        """The statement as text: letters, digits, `.`, `-` and `_` only, so it needs no escaping in an address."""
        whole = le64(self.issued_at) + le64(self.ends_at) + self.nonce + self.signature + self.mac
        return PREFIX + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def make_login(
    audience: Audience,
    site: SiteId,
    key: IdentityKey,
    *,
    issued_at: int,
    ends_at: int,
    nonce: bytes,
    token: str | None = None,
) -> LoginStatement:
    """A login of this site. Give the invitation's token until the key is registered: till then it is what counts."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    bound = _bound(audience, site, issued_at, ends_at, nonce)
    signature = key.sign(pae(labels.BROKER_LOGIN, *bound))
    mac = NO_MAC if token is None else _mac(token, bound)
    return LoginStatement(issued_at, ends_at, nonce, signature, mac)


def read_login(password: str) -> LoginStatement:
    """The statement in a password; raises `DocumentRefused` for any text that `password()` does not make."""
    if len(password) != PASSWORD_CHARACTERS or not _TEXT.fullmatch(password):
        raise DocumentRefused("not a login statement")
    text = password[len(PREFIX) :]
    try:
        whole = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise DocumentRefused("not a login statement") from None
    statement = LoginStatement(
        issued_at=int.from_bytes(whole[:8], "little"),
        ends_at=int.from_bytes(whole[8:16], "little"),
        nonce=whole[16:_HEAD_BYTES],
        signature=whole[_HEAD_BYTES : _HEAD_BYTES + SIGNATURE_BYTES],
        mac=whole[_HEAD_BYTES + SIGNATURE_BYTES :],
    )
    if statement.password() != password:
        # Base64 has spare bits in its last character: one statement must have one text.
        raise DocumentRefused("not a login statement")
    return statement


def verify_login(statement: LoginStatement, audience: Audience, site: SiteId, identity_pk: bytes) -> None:
    """The holder of the site's identity key made this login; raises `BadSignature`. Times are the caller's to judge."""
    bound = _bound(audience, site, statement.issued_at, statement.ends_at, statement.nonce)
    verify(identity_pk, pae(labels.BROKER_LOGIN, *bound), statement.signature)


def verify_invited_login(statement: LoginStatement, audience: Audience, site: SiteId, token: str) -> None:
    """The holder of the invitation's token made this login; raises `BadSignature`. Compared in constant time."""
    bound = _bound(audience, site, statement.issued_at, statement.ends_at, statement.nonce)
    if statement.mac == NO_MAC or not hmac.compare_digest(_mac(token, bound), statement.mac):
        raise BadSignature


def _bound(audience: Audience, site: SiteId, issued_at: int, ends_at: int, nonce: bytes) -> tuple[bytes, ...]:
    names = audience.federation.encode(), audience.namespace.encode()
    return (*names, site_bytes(site), le64(issued_at), le64(ends_at), nonce)


def _mac(token: str, bound: tuple[bytes, ...]) -> bytes:
    return hmac.new(token.encode(), pae(labels.BROKER_INVITED, *bound), hashlib.sha256).digest()
