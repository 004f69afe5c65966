"""Consent's settings: those of every platform service, and what officers agreed on."""

from typing import Annotated

from pydantic import Field

from cohortium_platform.identity import PlatformSettings


class ConsentSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    site_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """Most ε that the federation's private studies together may cost any site's patients, as far as hospitals tell.
    Left out: every hospital's own ledger alone decides."""
    site_delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-6
