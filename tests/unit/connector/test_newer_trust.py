"""Officers exchange a service's key: a hospital takes the newer trust document from its invitation, no older one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cohortium_connector.identity import Joined, load_identity
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import Spool
from cohortium_kit.clock import SystemClock
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.governance import Invitation, TrustDocument
from cohortium_messages.ids import SiteId
from cohortium_protocol.documents import sign_trust
from cohortium_protocol.signing import IdentityKey
from governance_stage import Stage

SITE = SiteId("00000000-0000-4000-8000-00000000000a")


def exchanged(stage: Stage, version: int, officers: tuple[IdentityKey, ...] | None = None) -> TrustDocument:
    """The trust document with another scheduler key, of this version."""
    services = stage.files.trust.services.model_copy(update={"scheduler": IdentityKey.generate().public})
    trust = stage.files.trust.model_copy(update={"version": version, "services": services, "signatures": ()})
    for officer in officers or stage.files.officers:
        trust = sign_trust(trust, officer)
    return trust


def test_a_hospital_takes_the_newer_trust_document_that_its_officers_signed(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path)
    settings = ConnectorSettings.model_validate(
        {
            "amqp_url": "memory://",
            "spool_dir": tmp_path / "spool",
            "invitation_file": tmp_path / "invitation.json",
            "governance_keys": [officer.public.hex() for officer in stage.files.officers],
            "governance_threshold": 2,
        }
    )
    spool = Spool(settings.spool_dir)
    spool.prepare()

    def scheduler_by(trust: TrustDocument) -> bytes:
        """Whom the hospital takes for the scheduler at a start with this invitation."""
        expires = datetime.now(UTC) + timedelta(days=1)
        invitation = Invitation(site_id=SITE, name="Hospital", token="t" * 43, expires_at=expires, trust=trust)
        (tmp_path / "invitation.json").write_text(invitation.model_dump_json())
        return load_identity(settings, spool, Joined(SITE, "Hospital"), SystemClock()).scheduler_pk

    first, newer, older = stage.files.trust, exchanged(stage, 2), exchanged(stage, 1)
    assert scheduler_by(first) == first.services.scheduler
    assert scheduler_by(newer) == newer.services.scheduler
    assert scheduler_by(older) == newer.services.scheduler, "what is kept is newer"
    with pytest.raises(ConfigurationError, match="not signed by 2 of the pinned"):
        scheduler_by(exchanged(stage, 3, stage.files.officers[:1]))
