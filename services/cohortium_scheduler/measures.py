"""What the scheduler counts: how rounds end, how long they take, what is open, who is there."""

from functools import partial

from cohortium_kit import telemetry
from cohortium_kit.db import Tx
from cohortium_kit.metrics import SLOW_S, Metrics
from cohortium_kit.sampling import Sampler, count_by
from cohortium_scheduler import store
from cohortium_scheduler.domain.windows import Ended, Phase, Window


class Measures:
    """The scheduler's instruments. A round is one window, whatever its purpose; its end is one of `WindowEnd`."""

    def __init__(self, metrics: Metrics) -> None:
        self.rounds = metrics.counter(
            "cohortium_rounds", "Windows that ended, by how and why.", "purpose", "outcome", "reason"
        )
        self.round_seconds = metrics.histogram(
            "cohortium_round_seconds", "From a window's opening to its end.", SLOW_S, "purpose", "outcome"
        )
        self.sites_dropped = metrics.counter(
            "cohortium_sites_dropped", "Sites of a cohort that the sum did not wait for.", "purpose"
        )
        self.windows = metrics.gauge("cohortium_windows", "Windows that have not ended, by phase.", "phase")
        self.runs = metrics.gauge("cohortium_runs", "Runs, by state.", "state")
        self.present = metrics.gauge("cohortium_sites_present", "Sites heard within the presence's lapse.")


def window_ended(tx: Tx, window: Window) -> None:
    """Count the end of a window when it is committed, and close its trace."""
    tx.after_commit(partial(_count, window=window))


def add_samples(sampler: Sampler, metrics: Metrics) -> None:
    measures = metrics.of(Measures)

    async def read(tx: Tx) -> None:
        table = store.window_table
        await count_by(tx, measures.windows, table.c.phase, table.c.phase != Phase.ENDED.value)
        await count_by(tx, measures.runs, store.run_table.c.state)

    sampler.add("runs", read, measures.windows, measures.runs)


def _count(metrics: Metrics, window: Window) -> None:
    ended = window.state
    if not isinstance(ended, Ended):
        return
    measures = metrics.of(Measures)
    measures.rounds.labels(window.purpose, ended.state, ended.reason).inc()
    if ended.closed is not None:
        measures.sites_dropped.labels(window.purpose).inc(len(ended.closed.dropped))
    if ended.opened_at is not None:
        seconds = (ended.ended_at - ended.opened_at).total_seconds()
        measures.round_seconds.labels(window.purpose, ended.state).observe(max(0.0, seconds))
        telemetry.window_span(
            "window",
            window.window_id,
            ended.opened_at,
            ended.ended_at,
            purpose=window.purpose,
            outcome=ended.state,
            reason=ended.reason,
            round=window.round,
        )
