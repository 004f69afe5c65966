"""Consent's settings: those of every platform service. Policies that officers choose will be added here."""

from cohortium_platform.identity import PlatformSettings


class ConsentSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""
