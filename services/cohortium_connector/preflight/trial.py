"""The trial from start to end: every check in its order, the signed report, and sending it."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import structlog

from cohortium_connector.app import open_bus, open_site
from cohortium_connector.desk import Desk
from cohortium_connector.local_log import LocalLog
from cohortium_connector.preflight import broker, machine, network, training
from cohortium_connector.preflight.findings import Finding, ok, skipped
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store import site
from cohortium_connector.training.runner import TrainingRunner
from cohortium_kit.bus import Bus, Outgoing
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database
from cohortium_kit.errors import BusError
from cohortium_kit.tracing import package_version
from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER
from cohortium_messages.preflight import Capacity, CheckName, PreflightReport
from cohortium_messages.topology import UPLINK, uplink_key

log = structlog.get_logger(__name__)

RECEIVERS = ("enrolment", "scheduler")
NEEDED: tuple[CheckName, ...] = ("identity", "line", "clock")
SEND_S = 15.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it. `signed`: the report as it was signed for the platform; `sent`: who took it."""

    site: str
    federation: str
    findings: tuple[Finding, ...]
    report: PreflightReport
    signed: Outgoing
    sent: tuple[str, ...]

    @property
    def untried(self) -> tuple[CheckName, ...]:
        """What no study does without and was not tried: before enrolment there is nobody to try it with."""
        return tuple(one.name for one in self.findings if one.state == "skipped" and one.name in NEEDED)

    @property
    def passed(self) -> bool:
        """Whether all that a study needs was tried, and nothing failed. A warning is for people to judge."""
        return not self.untried and all(finding.state != "failed" for finding in self.findings)

    def as_json(self) -> str:
        """The hospital's own report: facts and advice, and the signed bytes that the platform got."""
        whole: dict[str, Any] = {
            "site": self.site,
            "federation": self.federation,
            "passed": self.passed,
            "findings": [finding.as_json() for finding in self.findings],
            "capacity": self.report.capacity.model_dump(mode="json"),
            "sent_to": list(self.sent),
            "signed": {
                "body": self.signed.body.decode(),
                "key_id": self.signed.headers[KEY_ID_HEADER],
                "signature": self.signed.headers[SIGNATURE_HEADER],
            },
        }
        return json.dumps(whole, indent=2, ensure_ascii=False)


async def carry_out(
    settings: ConnectorSettings,
    *,
    send: bool = True,
    clock: Clock | None = None,
    bus: Bus | None = None,
) -> Trial:
    """Try everything. The connector must stand still: the trial takes its spool, its login and its queue of results.

    Raises `ConfigurationError` where there is nothing to try yet: wrong settings, no invitation, a connector that runs.
    """
    clock = clock or SystemClock()
    desk, db = await open_site(settings, clock)
    try:
        with desk.spool.only_here():
            bus = bus or open_bus(settings, desk.identity, clock)
            try:
                return await _try(desk, db, bus, send=send)
            finally:
                await bus.close()
    finally:
        await db.close()


async def _try(desk: Desk, db: Database, bus: Bus, *, send: bool) -> Trial:
    settings, identity = desk.settings, desk.identity
    async with db.reading("preflight_site") as tx:
        record = await site.find_site(tx)
    registered = record is not None and record.registered
    found: list[Finding] = [ok("settings"), ok("identity", site=identity.site_id)]
    if not registered:
        found[-1] = skipped("identity", "NOT_ENROLLED", site=identity.site_id)
    found += [network.proxy(), *await network.way(settings.amqp_url)]
    line = broker.Line()
    reached = await broker.look(bus, identity, settings, registered=registered)
    found += reached
    can_talk = registered and all(one.state != "failed" for one in reached)
    if can_talk:
        with contextlib.suppress(BusError):
            line = await broker.measure(bus, identity, desk.clock)
        found += broker.line_findings(line)
    else:
        found += [skipped("line"), skipped("clock")]
    cpus, memory_mb, gpus = machine.processors(), machine.memory_mb(), machine.graphics()
    disk, free_mb, fsync_ms = machine.disk(desk.spool.root)
    found += [ok("processor", cpus=cpus), machine.memory(memory_mb), ok("gpu", gpus=gpus), disk]
    runner = TrainingRunner(
        work_dir=desk.spool.work / "preflight",
        isolation=settings.trainer.isolation,
        threads=settings.trainer.threads,
        say=LocalLog(desk.spool.root / "training.log", desk.clock).say,
    )
    try:
        trained, seconds = await training.try_training(runner, desk.spool.work)
    finally:
        await runner.aclose()
    found += [*trained, training.data(settings)]
    report = PreflightReport(
        site_id=identity.site_id,
        made_at=desk.clock.now(),
        connector=package_version(),
        checks=tuple(finding.told() for finding in found),
        capacity=Capacity(
            cpus=cpus,
            memory_mb=memory_mb,
            gpus=gpus,
            disk_free_mb=free_mb,
            fsync_ms=round(fsync_ms, 1),
            up_mbit_s=_rounded(line.up_mbit_s),
            down_mbit_s=_rounded(line.down_mbit_s),
            round_trip_ms=_rounded(line.round_trip_ms),
            clock_offset_s=None if line.clock_offset_s is None else round(line.clock_offset_s, 3),
            training_s=None if seconds is None else round(seconds, 3),
        ),
    )
    signed, sent = await _send(desk, bus, report, send=send and can_talk)
    return Trial(identity.site_id, identity.trust.federation, tuple(found), report, signed, sent)


async def _send(desk: Desk, bus: Bus, report: PreflightReport, *, send: bool) -> tuple[Outgoing, tuple[str, ...]]:
    """One signed envelope; each receiver gets it under its own key. Not sent, it is signed all the same."""
    identity = desk.identity
    sent = []
    key = uplink_key(identity.site_id, RECEIVERS[0])
    signed = identity.sender.outgoing(UPLINK.name, key, report)
    for receiver in RECEIVERS if send else ():
        own = identity.sender.outgoing(
            UPLINK.name, uplink_key(identity.site_id, receiver), report, message_id=signed.message_id
        )
        try:
            await bus.publish(own, timeout_s=SEND_S)
        except BusError as error:
            log.warning("preflight_not_sent", error=type(error).__name__, name=receiver)
        else:
            sent.append(receiver)
    return signed, tuple(sent)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
