"""Invitation tokens at rest. The token must come back to check a registration's MAC, so a digest of it would not do:
it is kept encrypted under a key outside the database, and only until it is used or has expired."""

import secrets
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from cohortium_kit.errors import CohortiumError, ConfigurationError
from cohortium_kit.settings import read_secret_file

TOKEN_BYTES = 32


class TokenUnreadable(CohortiumError):
    """A stored token was sealed under another key. Restore `token_key_file`, or invite the site again."""


class TokenVault:
    """Seals and opens tokens. Its `repr` shows nothing."""

    def __init__(self, key: bytes) -> None:
        self._box = SecretBox(key)

    @classmethod
    def from_file(cls, path: Path) -> "TokenVault":
        """The vault whose key is in this file, as 64 hexadecimal digits; raises `ConfigurationError`."""
        try:
            return cls(bytes.fromhex(read_secret_file(path)))
        except ValueError:
            raise ConfigurationError(
                f"token_key_file {path} must hold a 32-byte key as 64 hexadecimal digits"
            ) from None

    def seal(self, token: str) -> bytes:
        """The token, encrypted and authenticated under a fresh nonce."""
        return bytes(self._box.encrypt(token.encode()))

    def open(self, sealed: bytes) -> str:
        """The token. Raises `TokenUnreadable`."""
        try:
            return self._box.decrypt(sealed).decode()
        except CryptoError:
            raise TokenUnreadable("a stored token does not open; check token_key_file") from None

    def __repr__(self) -> str:
        return "TokenVault(***)"


def new_token() -> str:
    """A fresh one-time token: 256 bits from the operating system, as 43 characters."""
    return secrets.token_urlsafe(TOKEN_BYTES)
