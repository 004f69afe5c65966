"""The audit service dies at every write, every commit and every publish of an append, once each.

It is started again, and the broker hands over again what was not acknowledged: then the log is proven, the stream has
all of it, and nothing that was acknowledged is missing.
"""

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.sql.dml import UpdateBase

from cohortium_audit.app import App
from cohortium_audit.feed import Feed
from cohortium_audit.settings import AuditSettings
from cohortium_audit.store.tables import leaf_table
from cohortium_kit.bus import Ack, Delivery, Disposition, Outgoing
from cohortium_kit.db import Database, Tx
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.migrate import drop_schema
from cohortium_messages.entries import INDEX_HEADER
from cohortium_messages.topology import ENTRIES_STREAM, inbox, platform_topology
from cohortium_verify.verification import verify_bundle
from governance_stage import Stage, delivery
from study_story import audit_app, fetch_bundle, signed, study_lines

EVENTS = 8
"""A manifest, a study, four grants, a run, and the authorisation of a window."""


class Died(BaseException):
    """`kill -9`: nothing in the program may catch it."""


@dataclass
class Steps:
    """What a life of the service does to the world outside, in order. It ends at step `last`, and does nothing more."""

    last: int | None = None
    done: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        if self.last is not None and len(self.done) >= self.last:
            raise Died(name)
        self.done.append(name)


class MortalBus(MemoryBus):
    def __init__(self, broker: MemoryBroker, steps: Steps) -> None:
        super().__init__(broker, "test")
        self._steps = steps

    async def publish(self, outgoing: Outgoing, *, timeout_s: float = 10.0) -> None:
        self._steps.step(f"publish {outgoing.type}")
        await super().publish(outgoing, timeout_s=timeout_s)
        self._steps.step(f"confirm {outgoing.type}")


@dataclass
class World:
    """One history: the broker, the database, and which events the service has acknowledged."""

    stage: Stage
    database: str
    schema: str
    events: list[Outgoing]
    broker: MemoryBroker
    acknowledged: set[str] = field(default_factory=set)

    async def life(self, monkeypatch: pytest.MonkeyPatch, steps: Steps, folder: Path | None = None) -> None:
        """Start, take what waits, sign a checkpoint, feed the stream, write the bundle; unless it dies before."""
        bus = MortalBus(self.broker, steps)
        await bus.declare(platform_topology())
        values = {**self.stage.settings("audit"), "database_url": self.database, "schema": self.schema}
        db = Database(self.database, schema=self.schema, clock=self.stage.clock)
        app = await App.build(AuditSettings.model_validate(values), bus=bus, database=db, clock=self.stage.clock)
        async with db.reading("reload") as tx:
            await app.directory.reload(tx)
        recorded = await self.recorded(app)
        assert self.acknowledged <= recorded, "what was acknowledged is in the log at once, not when it comes again"
        recording = asyncio.create_task(app.consumer.appender.run(asyncio.Event()))
        working = asyncio.create_task(self.work(app, bus))
        with monkeypatch.context() as patch:
            mortal(patch, steps)
            await asyncio.wait({recording, working}, return_when=asyncio.FIRST_COMPLETED)
        if folder is not None:
            await working
            await fetch_bundle(self.stage, app, folder)
        for task in (recording, working):
            task.cancel()
        ends = await asyncio.gather(recording, working, return_exceptions=True)
        assert all(end is None or isinstance(end, Died | asyncio.CancelledError) for end in ends), ends
        await bus.abort()
        await db.close()

    async def work(self, app: App, bus: MortalBus) -> None:
        waiting = [one for one in self.events if one.message_id not in self.acknowledged]
        for part in (waiting[:1], waiting[1:]):  # one alone, the others in one batch
            await asyncio.gather(*[self.handle(app, one) for one in part])
        await app.db.run("checkpoint", app.handlers.checkpoint_all)
        await Feed(bus, app.db, self.stage.clock, asyncio.Event()).feed()

    async def handle(self, app: App, one: Outgoing) -> None:
        assert await app.consumer.handle(delivery(one, inbox("audit"))) == Ack()
        self.acknowledged.add(one.message_id)

    async def recorded(self, app: App) -> set[str]:
        async with app.db.reading("recorded") as tx:
            rows = await tx.rows(leaf_table.select())
        return {row.event_id for row in rows}

    async def streamed(self) -> list[int]:
        """What an integrator has of the stream who takes the next entry only."""
        bus, taken = MemoryBus(self.broker, "test"), []

        async def take(one: Delivery) -> Disposition:
            if int(one.headers[INDEX_HEADER]) == len(taken):
                taken.append(len(taken))
            return Ack()

        subscription = await bus.consume(ENTRIES_STREAM, take, prefetch=1000, start="first")
        await asyncio.sleep(0)
        await subscription.cancel()
        return taken


def mortal(patch: pytest.MonkeyPatch, steps: Steps) -> None:
    """Each write of the database is a step, and each commit of a transaction that wrote."""
    execute, committed = Tx.execute, Tx.committed
    wrote: set[Tx] = set()  # themselves, not their ids: those are used again

    async def counted(tx: Tx, statement: Any, parameters: Any = None) -> Any:
        if isinstance(statement, UpdateBase):
            steps.step(f"{tx.name}: {statement.__visit_name__} {statement.table.name}")
            wrote.add(tx)
        return await execute(tx, statement, parameters)

    def after(tx: Tx, metrics: Any) -> None:
        if tx in wrote:
            steps.step(f"{tx.name}: committed")
        committed(tx, metrics)

    patch.setattr(Tx, "execute", counted)
    patch.setattr(Tx, "committed", after)


async def known(stage: Stage) -> list[Outgoing]:
    """Make the service's database, which knows the hospitals and the manifest; returns the events to come."""
    app = await audit_app(stage)
    await app.db.close()
    return [signed(stage, line) for line in study_lines(stage)[:EVENTS]]


async def proven(world: World, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """After a life to the end: every event is in the log once, the bundle is verified, the stream has it all."""
    await world.life(monkeypatch, Steps(), folder)
    assert world.acknowledged == {one.message_id for one in world.events}
    report = verify_bundle(folder, [officer.public for officer in world.stage.files.officers], quorum=0)
    assert report.verified, report.text()
    assert report.tree_size == EVENTS
    assert await world.streamed() == list(range(EVENTS))


async def test_dead_at_every_step_on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage.at(tmp_path)
    events, settings = await known(stage), stage.settings("audit")
    pristine = Path(settings["database_url"].removeprefix("sqlite:///").replace("{schema}", settings["schema"]))

    def world(name: str) -> World:
        copy = shutil.copy(pristine, tmp_path / f"{name}.db")
        return World(stage, f"sqlite:///{copy}", "audit", events, MemoryBroker(stage.clock))

    whole = Steps()
    await world("whole").life(monkeypatch, whole)
    assert len([one for one in whole.done if one.startswith("publish")]) >= EVENTS
    tables = {one.rpartition(" ")[2] for one in whole.done if ": insert" in one}
    assert tables >= {"log", "leaf", "node", "checkpoint", "outbox", "streamed"}, "among them a proof for the scheduler"
    for last in range(len(whole.done)):
        history, steps = world(f"dead-{last}"), Steps(last)
        await history.life(monkeypatch, steps)
        assert steps.done == whole.done[:last], "the same steps each time, or not each of them was tried"
        await proven(history, monkeypatch, tmp_path / f"bundle-{last}")


@pytest.mark.real
@pytest.mark.parametrize("last", [2, 4, 6])
async def test_dead_at_a_few_steps_on_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str, namespace: str, last: int
) -> None:
    """In the first event's transaction; after a commit whose acknowledgement is lost; in the batch's transaction."""
    stage = Stage.real(tmp_path, "memory://", postgres_url, namespace)
    events, settings = await known(stage), stage.settings("audit")
    world = World(stage, settings["database_url"], settings["schema"], events, stage.broker)
    try:
        steps = Steps(last)
        await world.life(monkeypatch, steps)
        assert len(steps.done) == last
        await proven(world, monkeypatch, tmp_path / "bundle")
    finally:
        db = await stage.database("audit")
        await drop_schema(db)
        await db.close()
