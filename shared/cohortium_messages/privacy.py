"""The `privacy:` part of a study file: what is promised to a patient, and by which mechanism.

Modes: `none`, the secure sum alone; `local`, every site adds all of the noise at every training step and nobody need be
trusted; `distributed`, every site adds a share inside the secure sum, so that the sum as a whole
is private; `site`, the unit is a whole hospital.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from cohortium_messages.ids import Wire

Epsilon = Annotated[float, Field(gt=0, le=100)]
Delta = Annotated[float, Field(gt=0, lt=1e-2)]
NoiseMultiplier = Annotated[float, Field(gt=0, le=10_000)]
Patients = Annotated[int, Field(ge=10, le=1 << 40)]


_BATCH: Final = (
    "Patients in a step on average, of the public `patients` and at most all of them: in place of `sampling_rate`, "
    "which is then batch_size / patients."
)


def _rate_of_batch(values: Any) -> Any:
    """`batch_size` may stand in place of `sampling_rate`: patients in a step on average, of the public `patients`. The
    study then has the rate, and no site's own count has a part in it."""
    if not isinstance(values, dict) or "batch_size" not in values:
        return values
    size, patients = values["batch_size"], values.get("patients")
    if "sampling_rate" in values:
        raise ValueError("batch_size stands beside sampling_rate, which says the same: q = batch_size / patients")
    if not (isinstance(size, int) and isinstance(patients, int)) or not 1 <= size <= patients:
        raise ValueError(f"batch_size is {size!r}; it is a whole number from 1 to patients, which is {patients!r}")
    return {name: value for name, value in values.items() if name != "batch_size"} | {"sampling_rate": size / patients}


class _SampledPrivacy(Wire):
    """What has a sampling rate, for which people may write a batch size."""

    _batch = model_validator(mode="before")(_rate_of_batch)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """As people write it, `batch_size` may stand in place of `sampling_rate`. Programs write the rate alone."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        if handler.mode == "serialization":
            return schema
        size = {"type": "integer", "minimum": 1, "description": _BATCH}
        schema["properties"] = {**schema["properties"], "batch_size": size}
        schema["not"] = {"required": ["batch_size", "sampling_rate"]}
        if "sampling_rate" in schema["required"]:
            schema["required"] = [name for name in schema["required"] if name != "sampling_rate"]
            schema["anyOf"] = [{"required": ["sampling_rate"]}, {"required": ["batch_size"]}]
        return schema


class NoPrivacy(Wire):
    """The secure sum alone: confidential between hospitals, no formal guarantee about the published model."""

    mode: Literal["none"] = "none"


class LocalPrivacy(_SampledPrivacy):
    """M1: DP-SGD at each site (Abadi et al. 2016). The guarantee holds against everybody outside the hospital.

    `noise_multiplier` left out: the least one that keeps the whole plan within `epsilon`. `patients` is the public
    number of training patients of the smallest site that may take part; `overlap` (κ) the most sites that one patient
    may be a patient of.
    """

    mode: Literal["local"]
    epsilon: Epsilon
    delta: Delta
    clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """L2 norm that each patient's gradient is clipped to."""
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    """Probability with which each patient takes part in one step (Poisson sampling). A study file may say `batch_size`
    in its place."""
    noise_multiplier: NoiseMultiplier | None = None
    patients: Patients
    overlap: Annotated[int, Field(ge=1, le=10)] = 1
    evaluation_epsilon: Epsilon | None = None
    """What the last model's evaluation may cost the test patients, in all; left out: nothing is evaluated."""


class DistributedPrivacy(_SampledPrivacy):
    """M2: one noisy sum per step, the noise made of all sites' shares inside the secure sum.

    The guarantee holds against the operator with up to `colluding` sites, and against users of the model. `patients` is
    the public number of training patients over all sites.
    """

    mode: Literal["distributed"]
    epsilon: Epsilon
    delta: Delta
    clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    noise_multiplier: NoiseMultiplier | None = None
    patients: Patients
    colluding: Annotated[int, Field(ge=0, le=198)] | None = None
    """Sites whose noise does not count, c_dp; left out: the manifest's collusion bound."""
    overlap: Annotated[int, Field(ge=1, le=10)] = 1
    evaluation_epsilon: Epsilon | None = None


class SitePrivacy(Wire):
    """M3: the unit is a hospital: a model says (ε, δ)-little about whether one took part at all. For 50 sites or
    more."""

    mode: Literal["site"]
    epsilon: Epsilon
    delta: Delta
    clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """L2 norm that each site's update is clipped to."""
    noise_multiplier: NoiseMultiplier | None = None
    sites: Annotated[int, Field(ge=50, le=200)]
    """Sites that are expected in each round: δ is held against it."""
    colluding: Annotated[int, Field(ge=0, le=198)] | None = None


Privacy = Annotated[NoPrivacy | LocalPrivacy | DistributedPrivacy | SitePrivacy, Field(discriminator="mode")]


class PrivacyStatement(Wire):
    """What a run promises, as its result, its model card and the log carry it. In `mode: none` only the sentences.

    `epsilon` is the study's bound, which the hospitals' ledgers hold to by Rényi accounting (`accountant`);
    `epsilon_rdp` and `epsilon_pld` are what the plan costs, by Rényi and by privacy-loss distributions, all at `delta`.
    `steps`: noisy sums at one site. `relies_on`: whom one has to trust for it.
    """

    mode: Literal["none", "local", "distributed", "site"]
    unit: Literal["patient", "hospital"] | None = None
    mechanism: Annotated[str, Field(max_length=200)] | None = None
    accountant: Literal["rdp"] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    epsilon_rdp: Annotated[float, Field(ge=0)] | None = None
    epsilon_pld: Annotated[float, Field(ge=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    overlap: Annotated[int, Field(ge=1, le=10)] | None = None
    evaluation_epsilon: Annotated[float, Field(ge=0)] | None = None
    relies_on: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=8)] = ()
    sentences: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], Field(min_length=1, max_length=16)]
