"""Model versions on their way here, and those that have arrived."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from cohortium_connector.store.tables import model, retired_model
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId
from cohortium_messages.runs import ModelOffered
from cohortium_messages.secure_sum import ModelRef

ModelState = Literal["WANTED", "OFFERED", "COMPLETE"]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """`have` marks chunks that are on disk, synced (LSB first); `seal_key` opens the version's content key."""

    run_id: RunId
    ref: ModelRef
    state: ModelState
    offer: ModelOffered | None
    seal_key: bytes
    have: bytes

    def __repr__(self) -> str:
        return f"ModelRecord({self.run_id}, {self.ref.version}, {self.state})"


_MODEL = (
    model.c.run_id,
    model.c.version,
    model.c.model_hash,
    model.c.state,
    model.c.offer_json,
    model.c.seal_key,
    model.c.have,
)


_MINE = (model.c.run_id == sa.bindparam("of_run"), model.c.version == sa.bindparam("of_version"))


_WRITTEN = ("updated_at", "updated_by")


def _change(*names: str) -> sa.Update:
    return sa.update(model).where(*_MINE).values({name: sa.bindparam(name) for name in (*names, *_WRITTEN)})


# Statements of every round, built once.
_FIND, _ALL = sa.select(*_MODEL).where(*_MINE), sa.select(*_MODEL).order_by(model.c.run_id, model.c.version)
_WANT, _FORGET = sa.insert(model), sa.delete(model).where(*_MINE)
_OFFERED, _HAVE, _COMPLETE = _change("state", "offer_json", "have"), _change("have"), _change("state", "seal_key")


def _at(run_id: RunId, version: int) -> dict[str, Any]:
    return {"of_run": run_id, "of_version": version}


def _model(row: sa.Row[Any]) -> ModelRecord:
    message = None if row.offer_json is None else ModelOffered.model_validate_json(row.offer_json)
    ref = ModelRef(version=row.version, model_hash=row.model_hash)
    return ModelRecord(RunId(row.run_id), ref, row.state, message, row.seal_key, row.have)


def _is(run_id: RunId, version: int) -> sa.ColumnElement[bool]:
    return sa.and_(model.c.run_id == run_id, model.c.version == version)


async def want_model(tx: Tx, run_id: RunId, ref: ModelRef, seal_key: bytes, *, by: str) -> ModelRecord:
    """Write down that this version is needed, or return what is known of it already."""
    known = await find_model(tx, run_id, ref.version)
    if known is not None and known.ref == ref:
        return known
    await tx.execute(_FORGET, _at(run_id, ref.version))
    record = ModelRecord(run_id, ref, "WANTED", None, seal_key, b"")
    values = {"run_id": run_id, "version": ref.version, "model_hash": ref.model_hash, "state": "WANTED"}
    await tx.execute(_WANT, {**values, "seal_key": seal_key, "have": b"", "updated_at": tx.now, "updated_by": by})
    return record


async def find_model(tx: Tx, run_id: RunId, version: int) -> ModelRecord | None:
    row = await tx.row(_FIND, _at(run_id, version))
    return None if row is None else _model(row)


async def models(tx: Tx) -> tuple[ModelRecord, ...]:
    return tuple(_model(row) for row in await tx.rows(_ALL))


async def save_offer(tx: Tx, run_id: RunId, offer: ModelOffered, have: bytes, *, by: str) -> None:
    """The aggregator said what the version is made of."""
    values = {"state": "OFFERED", "offer_json": offer.model_dump_json(), "have": have}
    await tx.execute(_OFFERED, {**_at(run_id, offer.version), **values, "updated_at": tx.now, "updated_by": by})


async def save_have(tx: Tx, run_id: RunId, version: int, have: bytes, *, by: str) -> None:
    await tx.execute(_HAVE, {**_at(run_id, version), "have": have, "updated_at": tx.now, "updated_by": by})


async def complete(tx: Tx, run_id: RunId, version: int, *, by: str) -> None:
    """All chunks are here and fit the version's digest; the key is not needed any more."""
    values = {"state": "COMPLETE", "seal_key": b"", "updated_at": tx.now, "updated_by": by}
    await tx.execute(_COMPLETE, {**_at(run_id, version), **values})


async def start_over(tx: Tx, run_id: RunId, version: int, seal_key: bytes, *, by: str) -> None:
    """What arrived is gone, or did not fit its digest: ask for all of it again, under a new key."""
    values = {"state": "WANTED", "offer_json": None, "have": b"", "seal_key": seal_key}
    changed = sa.update(model).where(_is(run_id, version))
    await tx.execute(changed.values(**values, updated_at=tx.now, updated_by=by))


async def delete_models(tx: Tx, run_id: RunId) -> None:
    """Forget all of the run's versions; their files are swept."""
    await tx.execute(sa.delete(model).where(model.c.run_id == run_id))


async def delete_model(tx: Tx, run_id: RunId, version: int) -> None:
    await tx.execute(_FORGET, _at(run_id, version))


async def retire(tx: Tx, run_id: RunId, ref: ModelRef, withdrawal: bytes) -> None:
    """No work starts from this model any more. Twice is once."""
    if not await retired(tx, [ref]):
        row = {"model_hash": ref.model_hash, "run_id": run_id, "withdrawal": withdrawal}
        await tx.execute(sa.insert(retired_model).values(row))
        await delete_model(tx, run_id, ref.version)


async def retired(tx: Tx, refs: Sequence[ModelRef]) -> bool:
    """Whether one of these is retired."""
    query = sa.select(retired_model.c.run_id).where(retired_model.c.model_hash.in_([ref.model_hash for ref in refs]))
    return bool(refs) and bool(await tx.rows(query.limit(1)))
