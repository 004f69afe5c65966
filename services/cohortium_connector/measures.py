"""What a connector shows on its own machine, if `metrics_port` is set: to the hospital's monitoring, never further."""

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from typing import get_args

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from cohortium_connector.domain.log_alarms import AlarmCode
from cohortium_connector.log_watch import LogWatch
from cohortium_connector.sessions import Sessions
from cohortium_connector.spool import Spool
from cohortium_connector.uploads import Uploads
from cohortium_connector.witness import DAMAGED
from cohortium_connector.workshop import Workshop
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock
from cohortium_kit.db import Database
from cohortium_kit.plain_http import Page, serve_plain
from cohortium_kit.runtime import Part
from cohortium_kit.sampling import LoopWatch, Sampler
from cohortium_kit.tracing import package_version
from cohortium_protocol.witness import LogForked

UNSENT_S = 60.0
"""A message that has waited for longer than this is told of at `/readyz`."""


class Shown:
    """The connector's instruments, and the pages that show them."""

    def __init__(
        self,
        db: Database,
        bus: Bus,
        clock: Clock,
        *,
        spool: Spool,
        workshop: Workshop,
        uploads: Uploads,
        sessions: Sessions,
        log_watch: LogWatch,
    ) -> None:
        metrics = db.metrics
        metrics.build.labels("connector", package_version()).set(1)
        self._registry = metrics.registry
        self._bus = bus
        self._db = db
        self._log_watch = log_watch
        self._watch = LoopWatch(db)
        self._sampler = Sampler(db, bus, clock, ())
        values: dict[str, tuple[str, Callable[[], float]]] = {
            "cohortium_connector_jobs": ("Work in training processes now.", lambda: len(workshop.jobs)),
            "cohortium_connector_sessions": ("Strict sessions in this process.", lambda: len(sessions.live)),
            "cohortium_connector_uploading": ("1 while an upload is on its way.", lambda: float(uploads.sending)),
            "cohortium_broker_connected": ("1 while the broker can be spoken to.", lambda: float(bus.connected)),
            "cohortium_spool_free_bytes": ("Free on the spool's disk.", lambda: shutil.disk_usage(spool.root).free),
        }
        for name, (told, read) in values.items():
            metrics.gauge(name, told).set_function(read)
        told = "Studies about whose audit log this hospital has an alarm, by its code."
        gauge = metrics.gauge("cohortium_connector_log_alarms", told, "code")
        for code in (LogForked.code, DAMAGED, *get_args(AlarmCode)):
            gauge.labels(code).set_function(partial(self._alarms, code))

    def _alarms(self, code: str) -> float:
        return sum(one == code for _, one in self._log_watch.standing)

    def parts(self, port: int) -> tuple[Part, ...]:
        """What the service runs beside its other parts."""

        async def serve(stop: asyncio.Event) -> None:
            await serve_plain(port, self.pages(), stop)

        return serve, self._watch.run

    def pages(self) -> dict[str, Page]:
        """By path. Ready is who is connected and whose records can be read: a site may not write to its own queue. It
        says so, too, where its messages are not taken, or a study's log is not to be trusted."""
        return {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._ready}

    async def _metrics(self) -> tuple[int, str, bytes]:
        await self._sampler.refresh()
        return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)

    async def _health(self) -> tuple[int, str, bytes]:
        return 200, "text/plain", b"alive\n"

    async def _ready(self) -> tuple[int, str, bytes]:
        if not self._bus.connected:
            return 503, "text/plain", b"the broker is away\n"
        await self._db.ping()
        waits_for = await self._sampler.unsent(UNSENT_S)
        wrong = [f"{code} in {study}" for study, code in self._log_watch.standing]
        wrong += [] if waits_for is None else [waits_for]
        return 200, "text/plain", f"degraded: {', '.join(wrong)}\n".encode() if wrong else b"ready\n"
