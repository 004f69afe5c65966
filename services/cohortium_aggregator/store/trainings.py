"""How a run's model was grown: what its strict sessions add up to."""

from dataclasses import dataclass
from itertools import pairwise

import sqlalchemy as sa

from cohortium_aggregator.domain.states import CODES, Ended
from cohortium_aggregator.store import windows
from cohortium_aggregator.store.tables import sum_window
from cohortium_aggregator.store.windows import Sessions
from cohortium_kit.db import Tx
from cohortium_messages.ids import RunId


@dataclass(frozen=True, slots=True)
class Training:
    """`sessions` that opened at least one sum; `cohort_changes` among them; their roster at the end."""

    sessions: int
    cohort_changes: int
    steps: int
    sums: int
    n: int
    c: int

    def facts(self) -> dict[str, int]:
        return {
            "sessions": self.sessions,
            "cohort_changes": self.cohort_changes,
            "steps": self.steps,
            "sums": self.sums,
            "n": self.n,
            "c": self.c,
            "ring_bits": 64,
        }


async def training_of(tx: Tx, sessions: Sessions, run_id: RunId) -> Training | None:
    """What is known of a run's strict sessions, in the order in which they ended; None if none opened a sum."""
    query = sa.select(sum_window.c.window_id).where(
        sum_window.c.run_id == run_id, sum_window.c.purpose == "training", sum_window.c.state == CODES[Ended]
    )
    views, steps, sums = [], 0, 0
    for row in await tx.rows(query.order_by(sum_window.c.updated_at)):
        window = await windows.find_window(tx, sessions, bytes(row.window_id))
        if window is None or not isinstance(window.state, Ended) or window.state.progress is None:
            continue
        steps, sums = steps + window.state.progress.steps, sums + window.state.progress.sums
        if window.state.progress.sums:
            views.append(window.session)
    if not views:
        return None
    changes = sum(before.sites != after.sites for before, after in pairwise(views))
    return Training(len(views), changes, steps, sums, views[-1].view.n, views[-1].view.collusion)
