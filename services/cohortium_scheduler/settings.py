"""The scheduler's settings. Times carry their unit."""

from typing import Annotated

from pydantic import AfterValidator, Field

from cohortium_kit.settings import SecretText
from cohortium_platform.identity import PlatformSettings


class SchedulerSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    redis_url: Annotated[str, AfterValidator(SecretText)] | None = None
    tick_s: Annotated[float, Field(gt=0, le=10)] = 0.1
    presence_lapse_s: Annotated[float, Field(gt=0)] = 20.0
    recruiting_grace_s: Annotated[float, Field(ge=0)] = 60.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    retry_pause_s: Annotated[float, Field(ge=0)] = 1.0
