"""The aggregator's settings. Times carry their unit."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cohortium_platform.identity import PlatformSettings


class AggregatorSettings(PlatformSettings):
    """Read from a YAML file; see the service's README for what each does."""

    seal_key_file: Path
    data_dir: Path
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    keep_every: Annotated[int, Field(ge=0, le=100_000)] = 1
    tick_s: Annotated[float, Field(gt=0, le=10)] = 0.1
    intake_prefetch: Annotated[int, Field(ge=1, le=256)] = 2
    intake_batch: Annotated[int, Field(ge=1, le=256)] = 8
    intake_gather_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    model_frames_in_flight: Annotated[int, Field(ge=1, le=64)] = 8
    model_frame_ttl_s: Annotated[float, Field(gt=0)] = 600.0
    model_send_s: Annotated[float, Field(gt=0)] = 600.0
    steps_prefetch: Annotated[int, Field(ge=1, le=1024)] = 64
    session_lease_s: Annotated[float, Field(ge=1, le=600)] = 10.0
