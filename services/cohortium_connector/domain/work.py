"""What an open window still needs from this site: its work, a model, or nothing but an answer."""

from dataclasses import dataclass
from enum import StrEnum

from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import ModelRef, NoiseSpec, Purpose, WindowParams
from cohortium_protocol.window import NO_BASE


class ProductState(StrEnum):
    FREE = "FREE"
    """Finished, and in no window."""
    RESERVED = "RESERVED"
    """In one window: rule R3, at most one window per update."""


@dataclass(frozen=True, slots=True)
class Product:
    """Finished work in the spool. Of most purposes it is a vector: int64, or float32 for an update of averaging; `rows`
    is its weight, 1 in private studies. For a strict session (`training`) it is only that the table was read and fits:
    there is no file, and `data_digest` says what the training would see. `noise` is what was done to it for privacy."""

    product_id: str
    run_id: RunId
    purpose: Purpose
    base: ModelRef | None
    rows: int
    state: ProductState
    data_digest: bytes | None = None
    noise: NoiseSpec | None = None

    @property
    def base_model_hash(self) -> bytes:
        return NO_BASE if self.base is None else self.base.model_hash


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work: which run, what for, from which model. Equal jobs give the same vector."""

    run_id: RunId
    purpose: Purpose
    base: ModelRef | None


@dataclass(frozen=True, slots=True)
class UseProduct:
    """Answer with this finished vector."""

    product: Product


@dataclass(frozen=True, slots=True)
class DoJob:
    """Work, from the newest model that the window allows. `stale` are finished vectors that no window will take."""

    job: Job
    stale: tuple[Product, ...] = ()


def newest(params: WindowParams) -> ModelRef | None:
    """The newest base that the window allows, None for statistics."""
    return max(params.bases, key=lambda base: base.version, default=None)


def staleness(params: WindowParams, base: ModelRef | None) -> int:
    """τ: how many versions behind the newest allowed one the vector's base is."""
    latest = newest(params)
    return 0 if latest is None or base is None else max(0, latest.version - base.version)


def next_work(params: WindowParams, products: tuple[Product, ...]) -> UseProduct | DoJob:
    """What this window needs. A finished vector whose base is still allowed is used at once, however old, unless the
    window asks for other noise."""
    mine = [product for product in products if product.run_id == params.run_id and product.purpose == params.purpose]
    free = [product for product in mine if product.state is ProductState.FREE]
    for product in free:
        allowed = product.base in params.bases or (product.base is None and not params.bases)
        if allowed and product.noise == params.noise:
            return UseProduct(product)
    return DoJob(Job(params.run_id, params.purpose, newest(params)), tuple(free))


def still_wanted(job: Job, params: WindowParams) -> bool:
    """Whether a running job's vector could answer this window; if not, it is stopped and begun from a newer model."""
    if (job.run_id, job.purpose) != (params.run_id, params.purpose):
        return False
    return job.base in params.bases or (job.base is None and not params.bases)
