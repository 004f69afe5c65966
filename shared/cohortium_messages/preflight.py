"""A hospital's trial before its first study: what its connector found, and a few messages there and back that measure
the line. Codes and numbers about machine and network only; nothing here depends on a record."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from cohortium_messages.governance import Reason
from cohortium_messages.ids import Bytes16, SiteIdField, Wire
from cohortium_messages.registry import Message

PADDING = 128 << 10
"""The most bytes of padding in a probe; as hexadecimal text it is twice as long on the wire."""
MOST_PROBES = 16
PROBE_ROWS, PROBE_FEATURES, PROBE_HIDDEN = 4000, 20, (64, 32)
PROBE_TEST, PROBE_PASSES, PROBE_MODELS = 0.2, 5, 2
"""The training probe: made-up rows and features, the widths of its network, the share of rows that only test, passes
over the others, and how often it is trained (the baselines' pooled model and the site's own)."""


def _parameters(widths: tuple[int, ...]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))


PROBE_UPDATES = (
    PROBE_ROWS * (1 - PROBE_TEST) * PROBE_PASSES * PROBE_MODELS * _parameters((PROBE_FEATURES, *PROBE_HIDDEN, 1))
)
"""Rows times passes times parameters: what a round's training is compared with."""

CheckName = Literal[
    "settings",
    "identity",
    "name",
    "proxy",
    "connection",
    "tls",
    "certificate",
    "login",
    "queues",
    "rights",
    "line",
    "clock",
    "processor",
    "memory",
    "gpu",
    "disk",
    "isolation",
    "training",
    "data",
]
CheckState = Literal["ok", "warning", "failed", "skipped"]


class PreflightProbe(Message, type_name="cohortium.site.preflight_probe.v1"):
    """Site to enrolment: send this back. `padding` is hexadecimal text of zeros; enrolment answers with as much."""

    site_id: SiteIdField
    nonce: Bytes16
    sequence: Annotated[int, Field(ge=0, lt=MOST_PROBES)]
    padding: Annotated[str, Field(max_length=2 * PADDING, pattern=r"^0*$")] = ""


class PreflightEcho(Message, type_name="cohortium.site.preflight_echo.v1"):
    """Enrolment to the site's queue of results, which nothing else uses while its connector stands still."""

    nonce: Bytes16
    sequence: Annotated[int, Field(ge=0, lt=MOST_PROBES)]
    received_at: AwareDatetime
    padding: Annotated[str, Field(max_length=2 * PADDING, pattern=r"^0*$")] = ""


class PreflightCheck(Wire):
    """One check. `code` says what a warning or a failure is; the hospital's own report has the details."""

    name: CheckName
    state: CheckState
    code: Reason | None = None


class Capacity(Wire):
    """What a site has, as it says itself. None: not measured. Rates are in Mbit/s, over one connection."""

    cpus: Annotated[int, Field(ge=1, le=4096)]
    memory_mb: Annotated[int, Field(ge=0, le=1 << 28)]
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    disk_free_mb: Annotated[int, Field(ge=0, le=1 << 40)] | None = None
    fsync_ms: Annotated[float, Field(ge=0, le=60_000)] | None = None
    up_mbit_s: Annotated[float, Field(ge=0, le=1e6)] | None = None
    down_mbit_s: Annotated[float, Field(ge=0, le=1e6)] | None = None
    round_trip_ms: Annotated[float, Field(ge=0, le=600_000)] | None = None
    clock_offset_s: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    """The platform's clock minus this site's."""
    training_s: Annotated[float, Field(ge=0, le=86_400)] | None = None
    """The training probe: the same made-up table and recipe everywhere, so that sites compare."""


class PreflightReport(Message, type_name="cohortium.site.preflight.v1"):
    """Site to enrolment and to the scheduler: the trial's outcome. The newest one counts."""

    site_id: SiteIdField
    made_at: AwareDatetime
    connector: Annotated[str, Field(max_length=32, pattern=r"^[0-9A-Za-z.+-]+$")]
    checks: Annotated[tuple[PreflightCheck, ...], Field(min_length=1, max_length=32)]
    capacity: Capacity
