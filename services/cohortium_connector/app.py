"""The connector put together. The only place that makes adapters."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import structlog
from sqlalchemy import event

from cohortium_connector.approving import Approving
from cohortium_connector.desk import Desk
from cohortium_connector.downloads import Downloads
from cohortium_connector.handlers.consent import ConsentHandlers
from cohortium_connector.handlers.membership import MembershipHandlers
from cohortium_connector.handlers.models import ModelHandlers
from cohortium_connector.handlers.routes import connect
from cohortium_connector.handlers.sessions import SessionHandlers
from cohortium_connector.handlers.windows import WindowHandlers
from cohortium_connector.handlers.witness import WitnessHandlers
from cohortium_connector.identity import Identity, Joined, load_identity, read_invitation
from cohortium_connector.intake import ControlConsumer, Intake
from cohortium_connector.local_log import LocalLog
from cohortium_connector.log_watch import LogWatch
from cohortium_connector.login import broker_address
from cohortium_connector.looking import Looking
from cohortium_connector.measures import Shown
from cohortium_connector.sessions import Sessions, leave_old_sessions
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.simulation import VanishingBus, kill_this_process
from cohortium_connector.spool import Spool
from cohortium_connector.store import site
from cohortium_connector.trainers import MakeRunner, Runner, RunTrainers
from cohortium_connector.training.runner import TrainingRunner
from cohortium_connector.upkeep import Presences, Registration, Upkeep, abandon_if_restored
from cohortium_connector.uploads import Uploads
from cohortium_connector.waiting import Bell
from cohortium_connector.workshop import Workshop
from cohortium_kit.addresses import login_of
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.broker_check import Expected, check_address
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database, Tx
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.migrate import migrate
from cohortium_kit.outbox import Relay, RelaySettings
from cohortium_kit.runtime import ServiceApp
from cohortium_messages.rights import NOBODY, NOBODYS_KEY
from cohortium_messages.topology import UPLINK, control_queue

log = structlog.get_logger(__name__)
PACKAGE = "cohortium_connector"


class App:
    """The connector of one hospital. It opens no port: `http` is None."""

    http = None

    def __init__(self, desk: Desk, db: Database, bus: Bus, make_runner: MakeRunner) -> None:
        self.desk = desk
        self.db = db
        self._bus = bus
        bell = Bell()
        self._downloads = Downloads(desk, db, bell)
        run_trainers = RunTrainers(make_runner, desk.spool.work)
        self._workshop = Workshop(desk, db, self._downloads, bell, make_runner, run_trainers)
        self._sessions = Sessions(desk, db, bus, self._downloads, bell, run_trainers)
        self._uploads = Uploads(desk, db, bus, bell)
        lookers = (self._uploads, self._sessions, self._workshop)
        self._looking = Looking(db, bell, desk.clock, desk.settings.poll_s, lookers)
        self._consumer = ControlConsumer(desk, bus, db, bell)
        handlers = (
            MembershipHandlers(desk),
            WindowHandlers(desk, self._downloads.expect),
            SessionHandlers(desk),
            ModelHandlers(),
            WitnessHandlers(desk),
            ConsentHandlers(desk),
        )
        connect(self._consumer, *handlers, self._consumer.fault)
        self._intake = Intake(desk, bus, self._consumer, self._downloads, self._sessions)
        self._registration = Registration(desk, db, bell)
        self._presences = Presences(desk, db, bus, self._workshop, self._uploads, self._sessions)
        self._approving = Approving(desk, db, bell, make_runner)
        self._upkeep = Upkeep(desk, db, bell, self._workshop)
        self.log_watch = LogWatch(desk, db)
        self._shown = Shown(
            db,
            bus,
            desk.clock,
            spool=desk.spool,
            workshop=self._workshop,
            uploads=self._uploads,
            sessions=self._sessions,
            log_watch=self.log_watch,
        )

    @property
    def busy(self) -> bool:
        """Whether statistics, training or evaluation is being worked on, or a session played."""
        return bool(self._workshop.jobs or self._sessions.live)

    @classmethod
    async def build(
        cls,
        settings: ConnectorSettings,
        *,
        bus: Bus | None = None,
        clock: Clock | None = None,
        make_runner: MakeRunner | None = None,
        vanish: Callable[[], None] | None = None,
    ) -> "App":
        """Make the spool, the identity and the parts; nothing is dialled before `run`.

        `vanish` is what a simulated connector does at the point that `settings.vanish` names. Raises
        `ConfigurationError` where the settings, the invitation or the spool cannot be used.
        """
        clock = clock or SystemClock()
        desk, db = await open_site(settings, clock)
        if bus is None:
            bus = open_bus(settings, desk.identity, clock)
        if settings.vanish is not None:
            log.warning("connector_will_vanish", round=settings.vanish.round)
            bus = cast("Bus", VanishingBus(bus, settings.vanish, vanish or kill_this_process))
        local_log = LocalLog(desk.spool.root / "training.log", clock)
        return cls(desk, db, bus, make_runner or training_runner(settings, local_log))

    async def run(self, stop: asyncio.Event) -> None:
        """Take part until `stop` is set. What a run before this one left unfinished goes on from the spool."""
        try:
            with self.desk.spool.only_here():
                await self._prepare()
                await self._service().run(stop)
        finally:
            await self._bus.close()
            await self.db.close()

    async def _look(self, stop: asyncio.Event) -> None:
        await self._looking.run(stop, self._sessions.leave)

    async def _prepare(self) -> None:
        self.desk.spool.clear_work()
        await abandon_if_restored(self.desk, self.db)
        await leave_old_sessions(self.desk, self.db)
        await self.db.run("forget_refusal", lambda tx: site.forget_refusal(tx, by="start"))
        await self.desk.charges.open(self.db)
        await self.desk.note_promises(self.db, unsure=True)

    def _service(self) -> ServiceApp:
        # The spool has one connector. The holder's name is the site's, so that a restart need not wait for its own
        # lease to end.
        holder = f"connector:{self.desk.identity.site_id}"
        relaying = RelaySettings(lease_s=60.0, poll_s=self.desk.settings.poll_s)
        relay = Relay(self.db, self._bus, self.desk.clock, relaying, holder=holder)
        service = ServiceApp(self._bus, self.db, relay)
        for part in (
            self._intake.control,
            self._intake.bulk,
            self._intake.results,
            self._registration.run,
            self._approving.run,
            self._look,
            self._presences.run,
            self._upkeep.run,
            self.log_watch.run,
        ):
            service.part(part)
        if (port := self.desk.settings.metrics_port) is not None:
            for shown in self._shown.parts(port):
                service.part(shown)
        return service


def open_bus(settings: ConnectorSettings, identity: Identity, clock: Clock) -> Bus:
    """The connection to the broker, by this site's own login. With `broker_check: strict` it refuses a broker that is
    open wider than it must be. Raises `ConfigurationError`."""
    check_address(settings.amqp_url, settings.broker_check)
    address = broker_address(settings, identity, clock)
    expected = Expected((control_queue(NOBODY),), foreign_keys=((UPLINK.name, NOBODYS_KEY),))
    return RabbitBus(
        address,
        settings.namespace,
        connection_name=f"cohortium-connector-{identity.site_id}",
        user_id=login_of(address) if isinstance(address, str) else identity.site_id,
        strict=expected if settings.broker_check == "strict" else None,
    )


async def open_site(settings: ConnectorSettings, clock: Clock) -> tuple[Desk, Database]:
    """The spool with its database, migrated, and who this site is. For the service and for local commands."""
    spool = Spool(settings.spool_dir)
    spool.prepare()
    db = open_database(settings, clock)
    try:
        await migrate(db, PACKAGE)
        spool.prepare()
        joined = await _joined(settings, db)
        identity = load_identity(settings, spool, joined, clock)
    except BaseException:
        await db.close()
        raise
    return Desk(identity, settings, spool, clock), db


def open_database(settings: ConnectorSettings, clock: Clock | None = None) -> Database:
    """The spool's SQLite file. What is deleted from it is overwritten: keys of windows are deleted at their end."""
    db = Database(settings.database_url, schema=settings.db_schema, clock=clock)

    @event.listens_for(db.engine.sync_engine, "connect")
    def _overwrite_deleted(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    return db


async def _joined(settings: ConnectorSettings, db: Database) -> Joined:
    """Which site the spool belongs to; at the first start, what the invitation says."""
    async with db.reading("find_site") as tx:
        record = await site.find_site(tx)
    if record is not None:
        return Joined(record.site_id, record.name)
    invitation = read_invitation(settings)
    if invitation is None:
        raise ConfigurationError("this connector has not joined a federation: set invitation_file to its invitation")

    async def create(tx: Tx) -> None:
        await site.create_site(tx, invitation.site_id, invitation.name, invitation.trust.federation, by="first_start")

    await db.run("first_start", create)
    return Joined(invitation.site_id, invitation.name)


def training_runner(settings: ConnectorSettings, local_log: LocalLog) -> MakeRunner:
    """Child processes without network, as the settings say; what they write stays in the hospital's own log."""
    trainer = settings.trainer

    def make(work_dir: Path) -> Runner:
        return TrainingRunner(
            work_dir=work_dir,
            isolation=trainer.isolation,
            threads=trainer.threads,
            artificial_delay_s=trainer.artificial_delay_s,
            say=local_log.say,
        )

    return make


async def migrate_spool(settings: ConnectorSettings) -> list[str]:
    """Bring the spool's database up to date; `run` does it too. Returns what was applied."""
    Spool(settings.spool_dir).prepare()
    db = open_database(settings)
    try:
        return await migrate(db, PACKAGE)
    finally:
        await db.close()
