"""A service's identity: the federation's trust document, its own key, and the keys of everybody it hears."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from cohortium_kit.clock import Clock
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import Settings, read_secret_file
from cohortium_messages.governance import TrustDocument
from cohortium_protocol.documents import GovernancePin, verify_trust
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, service_key_id

ROLES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
HexKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PlatformSettings(Settings):
    """Settings of every platform service: the trust document, the officers' keys it is checked with, its own key."""

    trust_file: Path
    governance_keys: Annotated[tuple[HexKey, ...], Field(min_length=1)]
    governance_threshold: Annotated[int, Field(ge=1)]
    signing_key_file: Path
    metrics_token_file: Path | None = None
    """Who scrapes `/metrics` must send this token. Without it, who reaches the port may read."""
    probe_limit_s: Annotated[float, Field(ge=1, le=600)] = 15.0
    """Ready is who sent a probe through its own queue within this time and found it again."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`keyring` knows the services' keys from the start; sites' keys are added as enrolment announces them."""

    role: str
    trust: TrustDocument
    governance: GovernancePin
    key: IdentityKey
    keyring: Keyring
    sender: Sender


def load_identity(settings: PlatformSettings, role: str, clock: Clock) -> Identity:
    """Read and check the files that settings name.

    Raises `ConfigurationError` if the trust document is not signed by enough of the pinned officers, or if it names
    another key for this role than the one in `signing_key_file`.
    """
    pin = GovernancePin(
        frozenset(bytes.fromhex(key) for key in settings.governance_keys), settings.governance_threshold
    )
    trust = _read_trust(settings.trust_file, pin)
    key = read_key(settings.signing_key_file)
    if key.public != getattr(trust.services, role):
        raise ConfigurationError(
            f"signing_key_file {settings.signing_key_file} is not the {role} key of the trust document "
            f"{settings.trust_file}; use the key that the officers signed, or have them sign a new document"
        )
    keyring = Keyring({service_key_id(name): getattr(trust.services, name) for name in ROLES})
    sender = Sender(f"/{role}", EnvelopeSigner(service_key_id(role), key), clock)
    return Identity(role, trust, pin, key, keyring, sender)


def read_key(path: Path) -> IdentityKey:
    """The Ed25519 key in a file of 64 hexadecimal digits; raises `ConfigurationError`."""
    try:
        return IdentityKey.from_seed(bytes.fromhex(read_secret_file(path)))
    except ValueError:
        raise ConfigurationError(f"secret file {path} must hold a 32-byte key as 64 hexadecimal digits") from None


def _read_trust(path: Path, pin: GovernancePin) -> TrustDocument:
    try:
        trust = TrustDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"trust_file {path}: {error.strerror}; get it from the governance officers") from None
    except ValidationError as error:
        raise ConfigurationError(f"trust_file {path} is not a trust document: {error.error_count()} faults") from None
    try:
        verify_trust(trust, pin)
    except RemoteFault as fault:
        raise ConfigurationError(f"trust_file {path} is not signed by enough of the pinned officers: {fault}") from None
    return trust
