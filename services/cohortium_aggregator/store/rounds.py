"""The boosting rounds of a run that stand, and the keys of strict sessions."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from cohortium_aggregator.store.tables import boosting_round, strict_key
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId

HEADER = 0
"""The place of the model's header among the rounds, which count from 1."""


@dataclass(frozen=True, slots=True)
class Round:
    """What all sites of a session agreed to. `content`: the text of the round's trees, or the header's.

    `chain`: the hash chain over all results up to this agreement.
    """

    number: int
    content: bytes
    chain: bytes


async def save_round(tx: Tx, run_id: RunId, window_id: bytes, made: Round) -> None:
    """Keep a round, in place of one of this number that an earlier session grew."""
    await tx.execute(sa.delete(boosting_round).where(*_this(run_id), boosting_round.c.round == made.number))
    row = {
        "run_id": run_id,
        "round": made.number,
        "window_id": window_id,
        "content": made.content,
        "chain": made.chain,
        "updated_at": tx.now,
        "updated_by": tx.name,
    }
    await tx.execute(sa.insert(boosting_round).values(row))


async def chain_after(tx: Tx, run_id: RunId, number: int) -> bytes | None:
    """The hash chain after a round; None if that round does not stand."""
    found = await tx.scalar(sa.select(boosting_round.c.chain).where(*_this(run_id), boosting_round.c.round == number))
    return None if found is None else bytes(found)


async def round_count(tx: Tx, run_id: RunId) -> int:
    """How many rounds are kept."""
    return int(await tx.scalar(sa.select(sa.func.max(boosting_round.c.round)).where(*_this(run_id))) or 0)


async def drop_rounds_after(tx: Tx, run_id: RunId, number: int) -> None:
    """Forget rounds that the next session does not go on from."""
    await tx.execute(sa.delete(boosting_round).where(*_this(run_id), boosting_round.c.round > number))


async def rounds_up_to(tx: Tx, run_id: RunId, number: int) -> Sequence[bytes]:
    """The header and the first `number` rounds, in order; fewer if not all of them are kept."""
    query = sa.select(boosting_round.c.content).where(*_this(run_id), boosting_round.c.round <= number)
    return [bytes(row.content) for row in await tx.rows(query.order_by(boosting_round.c.round))]


def _this(run_id: RunId) -> tuple[sa.ColumnElement[bool]]:
    return (boosting_round.c.run_id == run_id,)


async def insert_key(tx: Tx, window_id: bytes, secret: bytes) -> None:
    """Keep the secret that this session's results are encrypted with."""
    await tx.execute(sa.insert(strict_key).values({"window_id": window_id, "secret": secret}))


async def find_key(tx: Tx, window_id: bytes) -> bytes | None:
    found = await tx.scalar(sa.select(strict_key.c.secret).where(strict_key.c.window_id == window_id))
    return None if found is None else bytes(found)


async def wipe_key(tx: Tx, window_id: bytes) -> None:
    """Forget the secret of a session that is over."""
    await tx.execute(sa.delete(strict_key).where(strict_key.c.window_id == window_id))
