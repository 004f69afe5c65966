"""Enrolment's settings. Times carry their unit."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cohortium_kit.settings import SecretText
from cohortium_platform.identity import PlatformSettings


class EnrolmentSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    token_key_file: Path
    invitation_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 24.0
    sweep_s: Annotated[float, Field(gt=0)] = 60.0
    broker_auth_host: str = "127.0.0.1"
    broker_auth_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Where the broker asks about sites' logins and rights. Only the broker may reach it."""
    broker_auth_cert_file: Path | None = None
    """With `broker_auth_key_file`: the certificate that the broker is shown there; without, it asks in the clear."""
    broker_auth_key_file: Path | None = None
    management_url: (
        Annotated[str, Field(pattern=r"^https?://[^/@]+:[^/@]+@[^/@]+/?$"), AfterValidator(SecretText)] | None
    ) = None
    """The broker's management interface with an administrator's login: connections that are over are closed there."""
    management_ca_file: Path | None = None
    credential_s: Annotated[float, Field(ge=10, le=86400)] = 3600.0
    """A site's login statement lasts at most so long."""
    overlap_s: Annotated[float, Field(ge=1, le=600)] = 60.0
    """So long after a newer login the older one's connection may stay: the connector moves over in that time."""
    reap_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    most_connections: Annotated[int, Field(ge=4, le=64)] = 8
