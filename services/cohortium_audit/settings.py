"""The audit service's settings. Times carry their unit."""

from typing import Annotated

from pydantic import Field

from cohortium_platform.identity import PlatformSettings


class AuditSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    checkpoint_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    platform_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600.0
    append_batch: Annotated[int, Field(ge=1, le=2000)] = 256
    append_gather_s: Annotated[float, Field(ge=0, le=10)] = 0.2
    prefetch: Annotated[int, Field(ge=1, le=5000)] = 512
