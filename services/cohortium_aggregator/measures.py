"""What the aggregator counts: chunks, and windows and sessions in work. Sums and models are counted by their events:
`cohortium_messages_published_total{exchange="events"}`."""

from collections.abc import Callable

from cohortium_aggregator.domain.states import CODES, Ended
from cohortium_aggregator.store.tables import sum_window
from cohortium_kit.db import Tx
from cohortium_kit.metrics import Metrics, reason_label
from cohortium_kit.sampling import Sampler, count_by


class Measures:
    """The aggregator's instruments."""

    def __init__(self, metrics: Metrics) -> None:
        self.chunks = metrics.counter("cohortium_chunks_stored", "Chunks of updates that are on disk and on record.")
        self.chunk_bytes = metrics.counter("cohortium_chunk_bytes", "Bytes of these chunks as they came.")
        self.refused = metrics.counter("cohortium_frames_refused", "Chunks and steps parked as faulty.", "reason")
        self.sums = metrics.gauge("cohortium_sums", "Sums that have not ended, by state.", "state")
        self.sessions = metrics.gauge("cohortium_sessions", "Strict sessions held in this process.")
        self.queues = metrics.gauge("cohortium_chunk_queues", "Intake queues of chunks that this process takes.")


def chunks_stored(tx: Tx, count: int, size: int) -> None:
    """Count chunks when they are committed."""

    def stored(metrics: Metrics) -> None:
        measures = metrics.of(Measures)
        measures.chunks.inc(count)
        measures.chunk_bytes.inc(size)

    tx.after_commit(stored)


def frame_refused(metrics: Metrics, reason: str) -> None:
    metrics.of(Measures).refused.labels(reason_label(reason)).inc()


def add_samples(sampler: Sampler, metrics: Metrics, sessions: Callable[[], int], queues: Callable[[], int]) -> None:
    measures = metrics.of(Measures)
    measures.sessions.set_function(sessions)
    measures.queues.set_function(queues)

    async def read(tx: Tx) -> None:
        await count_by(tx, measures.sums, sum_window.c.state, sum_window.c.state != CODES[Ended])

    sampler.add("sums", read, measures.sums)
