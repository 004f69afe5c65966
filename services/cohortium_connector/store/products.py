"""Finished vectors: which work they came of, and which window has them."""

from typing import Any

import sqlalchemy as sa

from cohortium_connector.domain.work import Product, ProductState
from cohortium_connector.store.tables import product
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId, StudyId
from cohortium_messages.secure_sum import ModelRef, NoiseSpec

# Statements of every window and every look, built once.
_PRODUCT = sa.select(
    product.c.product_id,
    product.c.run_id,
    product.c.purpose,
    product.c.base_version,
    product.c.base_model_hash,
    product.c.row_count,
    product.c.state,
    product.c.data_digest,
    product.c.noise_json,
)
_OF_RUN = _PRODUCT.where(product.c.run_id == sa.bindparam("run")).order_by(product.c.updated_at)
_FIND = _PRODUCT.where(product.c.product_id == sa.bindparam("product"))
_OF_WINDOW = _PRODUCT.where(product.c.window_id == sa.bindparam("window"))
_IDS = sa.select(product.c.product_id)
_ADD = sa.insert(product)
_DELETE = sa.delete(product).where(product.c.product_id == sa.bindparam("product"))


def _product(row: sa.Row[Any]) -> Product:
    base = None
    if row.base_version is not None:
        base = ModelRef(version=row.base_version, model_hash=row.base_model_hash)
    state, digest = ProductState(row.state), row.data_digest
    noise = None if row.noise_json is None else NoiseSpec.model_validate_json(row.noise_json)
    return Product(row.product_id, RunId(row.run_id), row.purpose, base, row.row_count, state, digest, noise)


async def add_product(tx: Tx, made: Product, study_id: StudyId, *, by: str) -> None:
    row = {
        "product_id": made.product_id,
        "study_id": study_id,
        "run_id": made.run_id,
        "purpose": made.purpose,
        "base_version": None if made.base is None else made.base.version,
        "base_model_hash": made.base_model_hash,
        "row_count": made.rows,
        "state": made.state.value,
        "window_id": None,
        "data_digest": made.data_digest,
        "noise_json": None if made.noise is None else made.noise.model_dump_json(),
        "updated_at": tx.now,
        "updated_by": by,
    }
    await tx.execute(_ADD, row)


async def products_of_run(tx: Tx, run_id: RunId) -> tuple[Product, ...]:
    return tuple(_product(row) for row in await tx.rows(_OF_RUN, {"run": run_id}))


async def free_products(tx: Tx, run_id: RunId) -> tuple[Product, ...]:
    return tuple(made for made in await products_of_run(tx, run_id) if made.state is ProductState.FREE)


async def all_product_ids(tx: Tx) -> frozenset[str]:
    return frozenset(row.product_id for row in await tx.rows(_IDS))


async def find_product(tx: Tx, product_id: str) -> Product | None:
    row = await tx.row(_FIND, {"product": product_id})
    return None if row is None else _product(row)


async def product_of_window(tx: Tx, window_id: bytes) -> Product | None:
    row = await tx.row(_OF_WINDOW, {"window": window_id})
    return None if row is None else _product(row)


async def reserve(tx: Tx, product_id: str, window_id: bytes, *, by: str) -> None:
    """Give a free vector to one window; raises `LookupError` if it is not free (rule R3)."""
    free = sa.update(product).where(product.c.product_id == product_id, product.c.state == ProductState.FREE.value)
    values = {"state": ProductState.RESERVED.value, "window_id": window_id}
    done = await tx.execute(free.values(**values, updated_at=tx.now, updated_by=by))
    if done.rowcount != 1:
        raise LookupError(f"product {product_id} is not free")


async def release(tx: Tx, window_id: bytes, *, by: str) -> None:
    """The window's vector, if it has one, is free again."""
    mine = sa.update(product).where(product.c.window_id == window_id)
    values = {"state": ProductState.FREE.value, "window_id": None}
    await tx.execute(mine.values(**values, updated_at=tx.now, updated_by=by))


async def delete_product(tx: Tx, product_id: str) -> None:
    """Forget a vector; its file is deleted after the commit."""
    await tx.execute(_DELETE, {"product": product_id})
