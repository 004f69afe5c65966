"""Who this connector is and whom it believes: the site's own key, and the services' keys that governance signed."""

from dataclasses import dataclass

from pydantic import ValidationError

from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import Spool, own_key, write_synced
from cohortium_kit.clock import Clock
from cohortium_kit.envelopes import Sender
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.governance import Invitation, TrustDocument
from cohortium_messages.ids import SiteId
from cohortium_messages.topology import SERVICE_NAMES
from cohortium_protocol.documents import GovernancePin, verify_trust
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, service_key_id, site_key_id


@dataclass(frozen=True, slots=True)
class Identity:
    """This site, its key, and the federation as governance signed it. `keyring` knows the services and nobody else."""

    site_id: SiteId
    name: str
    key: IdentityKey
    pin: GovernancePin
    trust: TrustDocument
    keyring: Keyring
    sender: Sender

    @property
    def scheduler_pk(self) -> bytes:
        return bytes(self.trust.services.scheduler)

    @property
    def aggregator_pk(self) -> bytes:
        return bytes(self.trust.services.aggregator)

    @property
    def aggregator_seal_pk(self) -> bytes:
        return bytes(self.trust.services.aggregator_seal)


@dataclass(frozen=True, slots=True)
class Joined:
    """Which site this spool belongs to; written at the first start."""

    site_id: SiteId
    name: str


def pin_of(settings: ConnectorSettings) -> GovernancePin:
    """The officers' keys that the hospital pinned when it installed the connector."""
    return GovernancePin(frozenset(settings.governance_keys), settings.governance_threshold)


def read_invitation(settings: ConnectorSettings) -> Invitation | None:
    """The invitation that the settings name, with its trust document checked; None if they name none.

    Raises `ConfigurationError` if it cannot be read or its trust document is not signed by enough pinned officers.
    """
    path = settings.invitation_file
    if path is None:
        return None
    try:
        invitation = Invitation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"invitation_file {path}: {error.strerror}; ask the operator for it") from None
    except ValidationError as error:
        raise ConfigurationError(f"invitation_file {path} is no invitation: {error.error_count()} fault(s)") from None
    _check_trust(invitation.trust, pin_of(settings), f"invitation_file {path}")
    return invitation


def load_identity(settings: ConnectorSettings, spool: Spool, joined: Joined, clock: Clock) -> Identity:
    """Everything that the connector signs and verifies with. Makes the identity key if there is none.

    The trust document is the spool's own copy, checked against the pinned keys at every start; a newer one in the
    invitation takes its place.
    """
    pin = pin_of(settings)
    trust = _newest_trust(settings, spool, pin)
    key = own_key(settings.key_file)
    services = {service_key_id(role): getattr(trust.services, role) for role in SERVICE_NAMES}
    sender = Sender(f"/site/{joined.site_id}", EnvelopeSigner(site_key_id(joined.site_id), key), clock)
    return Identity(joined.site_id, joined.name, key, pin, trust, Keyring(services), sender)


def _newest_trust(settings: ConnectorSettings, spool: Spool, pin: GovernancePin) -> TrustDocument:
    kept_file = spool.root / "trust.json"
    kept: TrustDocument | None = None
    if kept_file.exists():
        try:
            kept = TrustDocument.model_validate_json(kept_file.read_bytes())
        except ValidationError:
            raise ConfigurationError(f"{kept_file} is damaged; restore it from the invitation") from None
        _check_trust(kept, pin, str(kept_file))
    invitation = read_invitation(settings) if settings.invitation_file and settings.invitation_file.exists() else None
    offered = invitation.trust if invitation is not None else None
    if offered is not None and (kept is None or offered.version > kept.version):
        if kept is not None and offered.federation != kept.federation:
            raise ConfigurationError("the invitation is for another federation: give it a spool_dir of its own")
        write_synced(kept_file, offered.model_dump_json().encode())
        return offered
    if kept is None:
        raise ConfigurationError("there is no trust document yet: set invitation_file to the operator's invitation")
    return kept


def _check_trust(trust: TrustDocument, pin: GovernancePin, where: str) -> None:
    try:
        verify_trust(trust, pin)
    except RemoteFault as fault:
        raise ConfigurationError(
            f"{where}: the trust document is not signed by {pin.threshold} of the pinned governance_keys"
            f" ({fault.code}); compare the keys with the governance officers"
        ) from None
