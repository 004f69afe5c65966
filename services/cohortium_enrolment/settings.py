"""Enrolment's settings. Times carry their unit."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cohortium_platform.identity import PlatformSettings


class EnrolmentSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    token_key_file: Path
    invitation_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 24.0
    sweep_s: Annotated[float, Field(gt=0)] = 60.0
