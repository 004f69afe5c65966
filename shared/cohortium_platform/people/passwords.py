"""What people know or carry: passwords (Argon2id), one-time set-up tokens, and codes of an authenticator (RFC 6238)."""

import hashlib
import hmac
import secrets
import struct
import unicodedata
from base64 import b32encode
from typing import Final
from urllib.parse import quote, urlencode

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from cohortium_kit.errors import CohortiumError

SHORTEST, LONGEST = 12, 128
TOKEN_BYTES: Final = 32
TOTP_BYTES: Final = 20
TOTP_STEP_S: Final = 30
TOTP_DIGITS: Final = 6
_OPS: Final = 3
_MEMORY: Final = 64 << 20
"""RFC 9106's second choice of memory and passes; libsodium has one lane."""


class PasswordRefused(CohortiumError):
    """A new password that will not do."""


def check_password(password: str, person: str) -> None:
    """Raise `PasswordRefused` for a password that is too short, too long, or the person's own id."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise PasswordRefused(f"a password has {SHORTEST} to {LONGEST} characters; a sentence is easy to remember")
    if person in password.lower() or len(set(password)) < 5:
        raise PasswordRefused("the password is too easy to guess; choose one that is not made of your id")


def hashed(password: str, *, ops: int = _OPS, memory: int = _MEMORY) -> str:
    """The Argon2id hash as it is kept, with its salt and its cost. Takes a moment: not for the event loop."""
    return argon2id.str(_bytes(password), opslimit=ops, memlimit=memory).decode()


def matches(kept: str | None, password: str) -> bool:
    """Whether it is the password of this hash. Without one it takes as long, and is false."""
    try:
        right = argon2id.verify((kept or _NOBODY).encode(), _bytes(password))
    except CryptoError:
        return False
    return right and kept is not None


def new_token() -> str:
    """256 bits from the operating system, as 43 characters."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> bytes:
    """What is kept of a token that has 256 bits of its own: no slow hash is needed."""
    return hashlib.sha256(token.encode()).digest()


def totp_code(secret: bytes, step: int) -> str:
    """The authenticator's code of one step of 30 seconds (RFC 6238, SHA-1, six digits)."""
    mac = hmac.digest(secret, struct.pack(">Q", step), "sha1")
    place = mac[-1] & 15
    number = struct.unpack(">I", mac[place : place + 4])[0] & 0x7FFFFFFF
    return f"{number % 10**TOTP_DIGITS:0{TOTP_DIGITS}d}"


def totp_step(secret: bytes, code: str, now: float, last: int) -> int | None:
    """The step whose code this is, if it is the current one or next to it, and later than the `last` one used."""
    current = int(now) // TOTP_STEP_S
    found = None
    for step in (current - 1, current, current + 1):
        if hmac.compare_digest(totp_code(secret, step).encode(), code.encode()) and step > last:
            found = step
    return found


def totp_address(secret: bytes, person: str, federation: str) -> str:
    """What an authenticator reads, usually as a QR code."""
    values = {"secret": b32encode(secret).decode().rstrip("="), "issuer": federation}
    return f"otpauth://totp/{quote(f'{federation}:{person}')}?{urlencode(values)}"


def _bytes(password: str) -> bytes:
    # The same characters typed on another keyboard must be the same bytes.
    return unicodedata.normalize("NFKC", password).encode()


_NOBODY: Final = "$argon2id$v=19$m=65536,t=3,p=1$" + "A" * 22 + "$" + "A" * 43
"""Costs what a real one costs, and nobody knows its password."""
