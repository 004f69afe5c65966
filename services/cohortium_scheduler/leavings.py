"""Withdrawals on the scheduler's record. Rows go in and out as domain objects."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final

import sqlalchemy as sa
from pydantic import TypeAdapter

from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId, SiteId
from cohortium_messages.withdrawals import EffectOrdered, WithdrawalNoticed
from cohortium_scheduler.store import metadata

withdrawal_table = sa.Table(
    "withdrawal",
    metadata,
    sa.Column("withdrawal", sa.LargeBinary, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("record_json", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)


LATER_THAN_ALL: Final = datetime.max.replace(tzinfo=UTC)
"""Of a record from before this was kept: no run is younger."""


class Phase(StrEnum):
    WAITING = "WAITING"
    """A window that the site is in has not ended yet."""
    TRACED = "TRACED"
    """Consent knows what it touches; officers decide."""
    RETRAINING = "RETRAINING"
    """A run without the site is under way."""
    RETIRING = "RETIRING"
    """The aggregator retires models; `awaited` are the runs it has not answered for."""
    DONE = "DONE"


FOLLOWED: Final = (Phase.TRACED, Phase.RETRAINING, Phase.RETIRING, Phase.DONE)
"""Consent has a list of models, which models that are made from now on may belong to."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """One withdrawal as far as the scheduler is concerned. `order`: what officers decided, as consent said it.

    `tainted`: runs with a model in whose lineage who left is; each later model of them is another one. `refused`: sites
    that refuse their part in `retrain_run`, each with its code.
    """

    notice: WithdrawalNoticed
    noticed_at: datetime = LATER_THAN_ALL
    phase: Phase = Phase.WAITING
    order: EffectOrdered | None = None
    retrain_run: RunId | None = None
    awaited: tuple[RunId, ...] = ()
    tainted: tuple[RunId, ...] = ()
    refused: tuple[tuple[SiteId, str], ...] = ()

    @property
    def withdrawal(self) -> bytes:
        digest: bytes = self.notice.withdrawal
        return digest


_RECORD: TypeAdapter[Leaving] = TypeAdapter(Leaving)


async def save_leaving(tx: Tx, leaving: Leaving, at: float) -> None:
    """Insert or replace a withdrawal."""
    row = {
        "withdrawal": leaving.withdrawal,
        "study_id": leaving.notice.study_id,
        "phase": leaving.phase.value,
        "record_json": _RECORD.dump_json(leaving).decode(),
        "updated_at": at,
        "updated_by": tx.name,
    }
    query = sa.update(withdrawal_table).where(withdrawal_table.c.withdrawal == leaving.withdrawal).values(row)
    if (await tx.execute(query)).rowcount == 0:
        await tx.execute(sa.insert(withdrawal_table).values(row))


async def find_leaving(tx: Tx, withdrawal: bytes) -> Leaving | None:
    """The withdrawal, or None."""
    query = sa.select(withdrawal_table.c.record_json).where(withdrawal_table.c.withdrawal == withdrawal)
    text = await tx.scalar(query)
    return None if text is None else _RECORD.validate_json(text)


async def leavings_in(tx: Tx, *phases: Phase) -> list[Leaving]:
    """Withdrawals in these phases."""
    return [_RECORD.validate_json(row[0]) for row in await tx.rows(_in_phases(phases))]


@lru_cache(maxsize=16)
def _in_phases(phases: tuple[Phase, ...]) -> sa.Select[tuple[str]]:
    # Constants in the text: the timer asks for the same few again and again.
    named: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{one.value}'") for one in phases]
    query = sa.select(withdrawal_table.c.record_json).where(withdrawal_table.c.phase.in_(named))
    return query.order_by(withdrawal_table.c.withdrawal)
