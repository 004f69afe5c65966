"""Consent's settings: those of every platform service, and what officers agreed on."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cohortium_platform.identity import PlatformSettings

Url = Annotated[str, Field(pattern=r"^(https://[^\s/?#@]+|http://(localhost|127\.0\.0\.1)(:[0-9]+)?)(/[^\s?#]*)?$")]
"""With TLS, or on this machine."""


class OidcProvider(BaseModel):
    """One identity provider, usually a hospital's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    issuer: Url
    client_id: Annotated[str, Field(min_length=1, max_length=255)]
    client_secret_file: Path
    acr: tuple[str, ...] = ()
    """Values of `acr` that say a second factor was shown; they are asked for."""
    amr: frozenset[str] = frozenset({"mfa", "otp", "hwk", "swk", "fpt", "face"})
    """Values of `amr` (RFC 8176) of which one says so."""


class ConsentSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    site_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """Most ε that the federation's private studies together may cost any site's patients, as far as hospitals tell.
    Left out: every hospital's own ledger alone decides."""
    site_delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-6
    withdrawal_stopped_s: Annotated[float, Field(gt=0, le=60)] = 60.0
    """Deadlines of withdrawals, from the receipt on. They can be shortened, and not lengthened."""
    withdrawal_effective_s: Annotated[float, Field(gt=0, le=300)] = 300.0
    withdrawal_patients_s: Annotated[float, Field(gt=0, le=86_400)] = 86_400.0
    withdrawal_decided_working_days: Annotated[int, Field(ge=0, le=10)] = 10
    withdrawal_started_days: Annotated[int, Field(ge=0, le=30)] = 30
    withdrawal_answered_days: Annotated[int, Field(ge=0, le=30)] = 30
    deadline_look_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """How often they are looked at."""

    require_mfa: bool = False
    """People need a second factor: an authenticator, or what their identity provider says of it."""
    public_url: Url | None = None
    """Where browsers find this service; identity providers send people back there."""
    oidc: Annotated[tuple[OidcProvider, ...], Field(max_length=200)] = ()

    @model_validator(mode="after")
    def _providers_can_send_people_back(self) -> Self:
        names = [provider.name for provider in self.oidc]
        if self.oidc and self.public_url is None:
            raise ValueError("oidc needs public_url, where identity providers send people back to")
        if len(set(names)) != len(names):
            raise ValueError("two providers of oidc have one name")
        return self
