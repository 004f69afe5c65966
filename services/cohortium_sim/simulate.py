"""A simulation from its plan to its result: set up, run, watch, fetch, verify, compare, write."""

import asyncio
import json
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import structlog

from cohortium_cli.federation import (
    ConnectorSpec,
    FederationFiles,
    FederationSpec,
    create_connector,
    create_federation,
)
from cohortium_connector.training.jobs import BaselinesDone, DataSource, NamedSource, TrainBaselines
from cohortium_connector.training.runner import TrainingRunner
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Bus
from cohortium_kit.clock import SystemClock
from cohortium_kit.db import Database
from cohortium_kit.logging import configure_logging
from cohortium_kit.migrate import drop_schema
from cohortium_messages.governance import Invitation, Manifest
from cohortium_messages.ids import SiteId
from cohortium_messages.privacy import NoPrivacy
from cohortium_messages.result import Result
from cohortium_messages.status import RunStatus
from cohortium_messages.study import Study
from cohortium_messages.topology import platform_topology, site_topology
from cohortium_protocol.documents import sign_manifest
from cohortium_protocol.witness import quorum
from cohortium_sim.live import LiveView
from cohortium_sim.outcome import Facts, Stopwatch, make_result
from cohortium_sim.plan import Plan, PlanError, SiteTable
from cohortium_sim.report import render_report
from cohortium_sim.shared_trainers import SharedTrainers
from cohortium_sim.table import print_result
from cohortium_sim.worlds import SERVICES, ManyProcesses, OneProcess, World, free_ports, memory_buses
from cohortium_verify.verification import verify_bundle

log = structlog.get_logger(__name__)
WATCH_S = 0.4
QUIET_WATCH_S = 1.0
"""How often the run is looked at where nobody watches: each look costs the scheduler some work."""
QUORUM_WAIT_S, LONGEST_WAIT_S = 20.0, 60.0
EVENTS_A_SECOND = 10.0
"""Sites whose last events reach the log in a second, on a machine that does much else."""
ENROL_TIMEOUT_S, ENROL_ONE_S = 60.0, 5.0
OWN_TRAINERS = 16
"""Up to so many hospitals in one process each have a training process of their own; more share some."""
MOST_EPSILON, CAP_FACTOR, CAP_DELTA = 100.0, 4.0, 1e-7
"""A simulated hospital's ledger: most ε of a setting, ε over the study's, and a δ for a million patients."""
FINAL = ("FINISHED", "FAILED", "STOPPED")
Look = Callable[[World, RunStatus], None]
"""Told how the run stands, and where it lives."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a simulation. `surprises` says in words what did not go as planned."""

    result: Result
    out: Path
    surprises: tuple[str, ...]

    @property
    def as_planned(self) -> bool:
        return not self.surprises

    def print_table(self) -> None:
        print_result(self.result, self.out, self.surprises)


def ledger_caps(study: Study) -> dict[str, Any]:
    """Settings of a simulated hospital's ledger with room for this study, whatever order and δ it is charged at; none
    for a study without privacy. A hospital chooses its own."""
    if isinstance(study.privacy, NoPrivacy):
        return {}
    epsilon_max = min(MOST_EPSILON, CAP_FACTOR * study.privacy.epsilon)
    return {"privacy": {"epsilon_max": epsilon_max, "delta": min(CAP_DELTA, study.privacy.delta)}}


class Simulation:
    """One federation, made for one run and taken down after it."""

    def __init__(self, plan: Plan, work: Path) -> None:
        self.plan = plan
        self.clock = SystemClock()
        self.stopwatch = Stopwatch(self.clock.monotonic)
        self.namespace = f"sim-{secrets.token_hex(4)}"
        self.sites: dict[str, Invitation] = {}
        self.collusion = 0
        self.files = self._create(work)
        self.world: World = self._make_world()
        self.look: Look | None = None

    def _create(self, work: Path) -> FederationFiles:
        plan = self.plan
        quick = {"tick_s": 0.2, "presence_lapse_s": 4 * self._pace_s, "recruiting_grace_s": 2.0}
        return create_federation(
            FederationSpec(
                directory=work,
                name="simulation.example",
                amqp_url=plan.amqp_url or "memory://",
                namespace=self.namespace,
                now=self.clock.now(),
                database_url=plan.database_url,
                schema_prefix=f"{self.namespace.replace('-', '_')}_",
                redis_url=plan.redis_url,
                ports=free_ports(SERVICES) if plan.processes else {},
                settings={"scheduler": quick, "audit": {"checkpoint_s": self._pace_s}},
            )
        )

    @property
    def _pace_s(self) -> float:
        """How often a hospital says that it is there and looks for what it was not told of, and how often all of them
        have a checkpoint to cosign. Fifty doing so every second would leave one process no time for anything else."""
        sites = len(self.plan.sites)
        return self.plan.pace_s or (1.0 if sites <= OWN_TRAINERS else min(60.0, sites / 4))

    def _make_world(self) -> World:
        url = self.plan.amqp_url
        if self.plan.processes:
            return ManyProcesses(self.files, self.clock)
        trainers = None
        if len(self.plan.sites) > OWN_TRAINERS and not self.plan.slow:
            trainers = SharedTrainers(self.files.directory / "trainers")
        if url is None:
            in_memory = memory_buses(self.clock, self.namespace)
            return OneProcess(self.files, self.clock, self._buses(in_memory), trainers)

        def rabbit(name: str) -> RabbitBus:
            return RabbitBus(url, self.namespace, connection_name=f"cohortium-{name}")

        return OneProcess(self.files, self.clock, self._buses(rabbit), trainers)

    def _buses(self, make: Callable[[str], Bus]) -> Callable[[str], Bus]:
        """How the parts of one process, by name, get their connections."""
        return make

    # Setting up

    async def start(self) -> None:
        """Services, then one connector a site, enrolled."""
        await self.world.start_services()
        for site in self.plan.sites:
            self.sites[site.name] = await self.world.operator.invite(site.name)
            config = self._connector_config(site, self.sites[site.name])
            if isinstance(self.world, ManyProcesses) and any(drop.site == site.name for drop in self.plan.drops):
                self.world.may_vanish(site.name)
            await self.world.start_connector(site.name, config)
        await self._wait_enrolled()

    def _source(self, site: SiteTable) -> dict[str, Any]:
        """Where a hospital's rows are."""
        source = {"path": str(site.path)}
        if site.column is not None and site.value is not None:
            source |= {"site_column": site.column, "site_value": site.value}
        return source

    def _policy(self) -> dict[str, Any]:
        """What a hospital lets happen."""
        return {
            "approvals": "listed",
            "approved_studies": [self.plan.study.digest().hex()],
            "approvers": ["simulated hospital"],
            # With four hospitals every single loss makes two cohorts differ by one; a simulation has no patients.
            "refuse_cohort_differing_by_one": False,
        }

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        more: dict[str, Any] = {
            "policy": self._policy(),
            **ledger_caps(self.plan.study),
            "trainer": {"isolation": "warn", "artificial_delay_s": self.plan.slow.get(site.name, 0.0)},
            "presence_s": self._pace_s,
            "poll_s": self._pace_s,
        }
        for drop in self.plan.drops:
            if drop.site == site.name:
                trees = max(1, self.plan.study.boosting_rounds // 2)
                more["vanish"] = {"round": drop.round, "when": drop.when, "trees": trees}
        return create_connector(
            ConnectorSpec(
                directory=self.files.directory / "sites" / invitation.site_id,
                invitation=invitation,
                amqp_url=self.plan.amqp_url or "memory://",
                namespace=self.namespace,
                datasets={"*": self._source(site)},
                more=more,
            )
        )

    async def _wait_enrolled(self) -> None:
        timeout_s = max(ENROL_TIMEOUT_S, ENROL_ONE_S * len(self.sites))
        deadline = self.clock.monotonic() + timeout_s
        while True:
            self.world.check()
            active = {site["name"]: site for site in await self.world.operator.sites() if site.get("identity_pk")}
            if all(name in active for name in self.sites):
                return
            if self.clock.monotonic() > deadline:
                missing = ", ".join(name for name in self.sites if name not in active)
                raise PlanError(f"these sites did not enrol within {timeout_s:g} s: {missing}")
            await self.clock.sleep(WATCH_S)

    # Running

    async def submit(self) -> str:
        """Submit the study and have the officers sign the sites in; the run's id."""
        text = json.dumps(self.plan.study.model_dump(mode="json"))
        run = await self.world.operator.submit(text)
        await self.world.operator.publish_manifest(await self._manifest())
        return str(run.run_id)

    async def _manifest(self) -> Manifest:
        study = self.plan.study
        site_ids = [invitation.site_id for invitation in self.sites.values()]
        manifest = await self.world.operator.draft_manifest(
            study.name, study.digest(), site_ids, study.federation.collusion
        )
        self.collusion = manifest.collusion
        for officer in self.files.officers:
            manifest = sign_manifest(manifest, officer)
        return manifest

    async def watch(self, run_id: str, view: LiveView | None) -> RunStatus:
        """Follow the run to its end, or to the plan's time limit; then it is stopped."""
        begun = self.clock.monotonic()
        while True:
            self.world.check()
            status = await self.world.operator.run(run_id)
            if view is not None:
                view.update(status, self.clock.monotonic() - begun)
            if self.look is not None:
                self.look(self.world, status)
            if status.state in FINAL:
                return status
            if self.clock.monotonic() - begun > self.plan.timeout_s:
                await self.world.operator.stop(run_id)
                return await self.world.operator.run(run_id)
            await self.clock.sleep(WATCH_S if view is not None else QUIET_WATCH_S)

    # Fetching

    async def fetch(self, run_id: str, status: RunStatus) -> None:
        """The signed model and the audit bundle, unpacked into the result's folder."""
        if status.state == "FINISHED":
            _unpack(await self._when_ready(run_id), self.plan.out / "model")
        # Events are still on their way to the log for a moment after the run has ended.
        await self.clock.sleep(max(1.0, len(self.sites) / EVENTS_A_SECOND))
        # The last checkpoint comes at the pace of checkpoints, and cosignatures after it.
        wait_s = 1.0 if self.world.vanished() else min(LONGEST_WAIT_S, QUORUM_WAIT_S + 2 * self._pace_s)
        bundle = await self.world.operator.audit_bundle(self.plan.study.name, wait_s=wait_s)
        _unpack(bundle, self.plan.out / "audit")

    def quorum(self) -> int | None:
        """How many sites must have cosigned the log: what the study asks for, of those that are still there."""
        lost = len(self.world.vanished())
        least = quorum(len(self.sites), self.collusion)
        return min(least, len(self.sites) - lost) if lost else None

    async def _when_ready(self, run_id: str) -> bytes:
        from cohortium_cli.operator import OperatorError

        deadline = self.clock.monotonic() + ENROL_TIMEOUT_S
        while True:
            try:
                return await self.world.operator.model_bundle(run_id)
            except OperatorError:
                if self.clock.monotonic() > deadline:
                    raise
            await self.clock.sleep(WATCH_S)

    async def compare(self) -> BaselinesDone:
        """The same recipe trained pooled, and at each site alone."""
        sources = tuple(
            NamedSource(
                name=site.name,
                source=DataSource(path=str(site.path), site_column=site.column, site_value=site.value),
            )
            for site in self.plan.sites
        )
        job = TrainBaselines(study=self.plan.study, sites=sources, seed=self.plan.study.federation.seed)
        async with TrainingRunner(work_dir=self.files.directory / "compare", isolation="warn") as runner:
            return await runner.run(job)

    async def clear(self) -> None:
        """Take down what the simulation made outside its folder: queues, exchanges, schemas."""
        await self.world.close()
        try:
            await self._clear_broker()
        finally:
            await self._clear_database()

    async def _clear_broker(self) -> None:
        if self.plan.amqp_url:
            bus = RabbitBus(self.plan.amqp_url, self.namespace, connection_name="cohortium-simulate")
            await bus.connect()
            for invitation in self.sites.values():
                await bus.delete(site_topology(SiteId(invitation.site_id)))
            await bus.delete(platform_topology())
            await bus.close()

    async def _clear_database(self) -> None:
        if self.plan.database_url:
            for role in SERVICES:
                db = Database(self.plan.database_url, schema=f"{self.namespace.replace('-', '_')}_{role}")
                await drop_schema(db)
                await db.close()


async def run_plan(plan: Plan, *, live: bool, view: LiveView | None = None, look: Look | None = None) -> Outcome:
    """Carry out a plan and write its result; the folder `plan.out` has everything afterwards.

    `live` shows the run on standard output; `view` shows it there instead. `look` is called at each look at the run.
    """
    view = view or (LiveView(plan.study) if live else None)
    plan.out.mkdir(parents=True, exist_ok=True)
    with (plan.out / "log.jsonl").open("w", encoding="utf-8") as stream:
        configure_logging(level="info", output="json", service="simulation", stream=stream)
        try:
            with ended_by_sigterm():
                async with _simulation(plan) as simulation:
                    simulation.look = look
                    return await _carry_out(simulation, view)
        finally:
            configure_logging(stream=sys.stderr)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a simulation as Ctrl-C does: all that it made is taken down before `KeyboardInterrupt` is raised."""
    loop, task, told = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def end() -> None:
        if task is not None and not told.is_set():
            told.set()
            task.cancel()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield
    except asyncio.CancelledError:
        if told.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


@asynccontextmanager
async def _simulation(plan: Plan) -> AsyncIterator[Simulation]:
    work = plan.out / "federation" if plan.keep else Path(tempfile.mkdtemp(prefix="cohortium-"))
    if plan.keep and work.exists():
        shutil.rmtree(work)
    work.mkdir(mode=0o700, exist_ok=True)
    simulation: Simulation | None = None
    try:
        simulation = Simulation(plan, work)
        yield simulation
    finally:
        if simulation is not None:
            await simulation.clear()
        if not plan.keep:
            shutil.rmtree(work, ignore_errors=True)


async def _carry_out(simulation: Simulation, view: LiveView | None) -> Outcome:
    plan, watch = simulation.plan, simulation.stopwatch
    with watch.time("setup"):
        await simulation.start()
    with watch.time("run"):
        if view is None:
            run_id = await simulation.submit()
            status = await simulation.watch(run_id, None)
        else:
            with view:
                run_id = await simulation.submit()
                status = await simulation.watch(run_id, view)
    await simulation.fetch(run_id, status)
    baselines = None
    if plan.compare:
        with watch.time("compare"):
            baselines = await simulation.compare()
    with watch.time("verify"):
        verification = await asyncio.to_thread(
            verify_bundle,
            plan.out / "audit",
            list(simulation.files.trust.governance_keys),
            quorum=simulation.quorum(),
        )
    facts = Facts(
        plan=plan,
        status=status,
        verification=verification,
        baselines=baselines,
        vanished=simulation.world.vanished(),
        peaks_mb=simulation.world.peaks_mb(),
        versions={name: version(name) for name in _libraries(plan.study)},
    )
    result, surprises = make_result(facts, watch)
    (plan.out / "result.json").write_text(result.to_json(), encoding="utf-8")
    (plan.out / "report.html").write_text(render_report(result, status), encoding="utf-8", newline="\n")
    return Outcome(result, plan.out, surprises)


def _libraries(study: Study) -> tuple[str, ...]:
    """Distributions that shape what comes of a study."""
    shared = ("cohortium", "numpy", "aio-pika", "cryptography")
    return (*shared, "lightgbm") if study.objective is not None else shared


def _unpack(archive: bytes, folder: Path) -> None:
    """Replace `folder` with the archive's files; a name that would leave the folder is refused."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    root = folder.resolve()
    with zipfile.ZipFile(BytesIO(archive)) as bundle:
        for name in bundle.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise PlanError(f"the archive has a file {name} outside of its folder")
        bundle.extractall(root)
