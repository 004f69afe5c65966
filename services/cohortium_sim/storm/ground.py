"""The ground that federations start from: services migrated, hospitals enrolled; made once, then copied.

Settings name full paths, so every federation lives in the same folder, one after the other.
"""

import asyncio
import contextlib
import hashlib
import importlib
import itertools
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from cohortium_cli.federation import ConnectorSpec, FederationFiles, FederationSpec, create_connector, create_federation
from cohortium_cli.operator import Operator
from cohortium_connector import upkeep
from cohortium_enrolment import api as enrolment_api
from cohortium_kit import outbox
from cohortium_kit.bus import Bus
from cohortium_kit.clock import Clock, SystemClock
from cohortium_kit.db import Database
from cohortium_kit.memory import MemoryBroker, MemoryBus
from cohortium_kit.testing.clock import START
from cohortium_sim.storm.flocks import locks_of_the_living
from cohortium_sim.storm.loop import buried, virtual_loop
from cohortium_sim.storm.operations import SERVICES
from cohortium_sim.storm.parts import NAMESPACE, PartClock, Trainer
from cohortium_sim.storm.quiet import errors_to
from cohortium_sim.storm.replacing import replaced
from cohortium_sim.storm.sqlite import Store, sqlite_of_lives
from cohortium_sim.worlds import load_settings, migrate_service

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, and a folder of our own in it
POLL_S = 4.0
FEW = 20
"""Sites from which on everything that each of them does again and again is done less often."""


def settings_of_services(pace: float) -> dict[str, dict[str, Any]]:
    """Ticks cost time, real time, so they are rarer than in production."""
    return {
        "scheduler": {"tick_s": 1.0, "presence_lapse_s": 25.0 * pace, "recruiting_grace_s": 10.0},
        "aggregator": {"tick_s": 1.0, "workers": 1},
        "audit": {"checkpoint_s": 20.0 * pace},
    }


def settings_of_sites(pace: float) -> dict[str, Any]:
    """Of every connector."""
    return {
        "policy": {"approvals": "listed", "approved_studies": ["*"], "approvers": ["storm"]},
        "trainer": {"isolation": "warn"},
        "presence_s": 10.0 * pace,
        "poll_s": min(60.0, 20.0 * pace),
        "receipt_silence_s": 3.0,
        "model_silence_s": 3.0,
    }


@dataclass
class Ground:
    """`with Ground(6) as ground:` a folder in memory where there is one, gone at the end."""

    sites: int
    files: FederationFiles = field(init=False)
    site_ids: tuple[str, ...] = field(init=False, default=())
    _root: Path = field(init=False)
    _settings: dict[str, Any] = field(init=False, default_factory=dict)

    def __enter__(self) -> Self:
        where = MEMORY if MEMORY.is_dir() else None
        self._root = Path(tempfile.mkdtemp(prefix="cohortium-storm-", dir=where))
        try:
            self._make()
        except BaseException:
            shutil.rmtree(self._root, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    def pace(self) -> float:
        """How many times as rare as with few sites is what each site does again and again."""
        return max(1.0, self.sites / FEW)

    @property
    def live(self) -> Path:
        return self._root / "live"

    def settings(self, name: str) -> Any:
        """Of a service by its role, of a site by `site-<number>`."""
        return self._settings[name]

    def restore(self) -> None:
        """Everything as it was when the last site had enrolled."""
        shutil.rmtree(self.live, ignore_errors=True)
        shutil.copytree(self._root / "made", self.live)

    def _make(self) -> None:
        async def point(_: str) -> None:
            return

        store = Store(point)
        world = (
            sqlite_of_lives(store),
            locks_of_the_living(),
            system_time(PartClock()),
            errors_to(lambda _: None),
            rare_polls(self.pace),
            replaced(enrolment_api, uuid4=partial(next, _site_ids())),
        )
        with buried(), virtual_loop(point) as loop, contextlib.ExitStack() as stack:
            for one in world:
                stack.enter_context(one)
            loop.run_until_complete(self._enrol())
        shutil.copytree(self.live, self._root / "made")

    async def _enrol(self) -> None:
        clock = PartClock()
        name = secrets.token_hex(4)
        settings = settings_of_services(self.pace)
        spec = FederationSpec(self.live, f"storm-{name}.example", "memory://", NAMESPACE, START, settings=settings)
        self.live.mkdir(mode=0o700)
        self.files = create_federation(spec)
        broker, stop, tasks, apps = MemoryBroker(clock), asyncio.Event(), [], {}
        for role in SERVICES:
            settings = self._settings[role] = load_settings(role, self.files.configs[role])
            await migrate_service(settings, f"cohortium_{role}")
            app_type = importlib.import_module(f"cohortium_{role}.app").App
            app = await app_type.build(settings, bus=MemoryBus(broker, NAMESPACE), clock=clock)
            apps[role] = app.http
            tasks.append(asyncio.create_task(app.run(stop)))
        operator = Operator.within(apps, self.files.operator_token)
        await asyncio.sleep(1)
        for number in range(1, self.sites + 1):
            invitation = await operator.invite(f"site-{number}")
            more = settings_of_sites(self.pace)
            folder = self.live / "sites" / f"site-{number}"
            config = create_connector(ConnectorSpec(folder, invitation, "memory://", NAMESPACE, {}, more))
            settings = self._settings[f"site-{number}"] = load_settings("connector", config)
            app_type = importlib.import_module("cohortium_connector.app").App
            bus = MemoryBus(broker, NAMESPACE)
            app = await app_type.build(settings, bus=bus, clock=clock, make_runner=lambda _: Trainer(lambda: 0.0))
            tasks.append(asyncio.create_task(app.run(stop)))
        await self._all_active(operator)
        await asyncio.sleep(60)
        stop.set()
        await asyncio.gather(*tasks)

    async def _all_active(self, operator: Operator) -> None:
        for _ in range(600):
            sites = [site for site in await operator.sites() if site.get("identity_pk")]
            if len(sites) == self.sites:
                named = {site["name"]: site["site_id"] for site in sites}
                self.site_ids = tuple(named[f"site-{number}"] for number in range(1, self.sites + 1))
                return
            await asyncio.sleep(0.5 * self.pace)
        raise RuntimeError("the sites did not enrol")


def _site_ids() -> Iterator[UUID]:
    """The same in every ground: the order of their ids is the order of sites in a roster."""
    for number in itertools.count(1):
        yield UUID(bytes=hashlib.sha256(b"storm-site-%d" % number).digest()[:16], version=4)


@contextmanager
def rare_polls(pace: float = 1.0) -> Iterator[None]:
    """What is only a second way, for when nobody rings, comes less often: it costs most of a quiet time."""
    usual = outbox.RelaySettings()

    class SlowRelay(outbox.Relay):
        def __init__(
            self, db: Database, bus: Bus, clock: Clock, settings: outbox.RelaySettings = usual, *, holder: str = ""
        ) -> None:
            super().__init__(db, bus, clock, replace(settings, poll_s=POLL_S * pace), holder=holder)

    users = [importlib.import_module(f"cohortium_{role}.app") for role in (*SERVICES, "connector")]
    with contextlib.ExitStack() as stack:
        for module in users:
            stack.enter_context(replaced(module, Relay=SlowRelay))
        stack.enter_context(replaced(upkeep, SWEEP_S=POLL_S * pace))
        yield


@contextmanager
def system_time(clock: PartClock) -> Iterator[None]:
    """`SystemClock` goes by this clock: some parts make their own."""
    with replaced(SystemClock, now=lambda _: clock.now(), monotonic=lambda _: clock.monotonic()):
        yield
