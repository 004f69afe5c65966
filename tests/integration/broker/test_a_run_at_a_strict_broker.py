"""A whole run where nobody has a right too many: five services and four hospitals, each its own process, TLS, strict.

A right that somebody lacks would stop the run; `test_start_check.py` has the rights that are too many.
"""

from pathlib import Path

import pytest
import yaml
from broker_world import FEDERATION, NAMESPACE, GuardedBroker
from tests.integration.simulation.noise import check_sums, noise_plan, noise_study, started

from cohortium_cli.federation import FederationFiles, FederationSpec, create_federation
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.db import Database
from cohortium_kit.migrate import drop_schema
from cohortium_messages.governance import Invitation
from cohortium_messages.topology import SERVICE_NAMES, Topology, site_topology
from cohortium_sim.plan import SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_sim.worlds import free_ports

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(420)]


class StrictSimulation(Simulation):
    """The simulator's federation, with each service's own login, and hospitals that make their own."""

    broker: GuardedBroker
    prefix: str

    def _create(self, work: Path) -> FederationFiles:
        self.namespace = NAMESPACE
        logins = {role: {"amqp_url": self.broker.user(role)} for role in SERVICE_NAMES}
        logins["enrolment"] |= self.broker.gate_settings
        logins["scheduler"] |= {"tick_s": 0.2, "presence_lapse_s": 4.0, "recruiting_grace_s": 2.0}  # type: ignore[dict-item]
        return create_federation(
            FederationSpec(
                directory=work,
                name=FEDERATION,
                amqp_url=self.broker.url(),
                namespace=NAMESPACE,
                now=self.clock.now(),
                database_url=self.plan.database_url,
                schema_prefix=f"{self.prefix}_",
                ports=free_ports(SERVICE_NAMES),
                settings=logins,
                broker_check="strict",
            )
        )

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        path = super()._connector_config(site, invitation)
        values = yaml.safe_load(path.read_text()) | {"amqp_url": self.broker.url(), "broker_check": "strict"}
        path.write_text(yaml.safe_dump(values | {"credential_s": 20}))
        return path

    async def _clear_broker(self) -> None:
        bus = RabbitBus(self.broker.user("enrolment"), NAMESPACE, connection_name="test-clear")
        await bus.connect()
        for invitation in self.sites.values():
            await bus.delete(Topology((), site_topology(invitation.site_id).queues))
        await bus.close()

    async def _clear_database(self) -> None:
        assert self.plan.database_url is not None
        for role in SERVICE_NAMES:
            db = Database(self.plan.database_url, schema=f"{self.prefix}_{role}")
            await drop_schema(db)
            await db.close()


async def test_a_run_ends_well_with_the_least_rights_and_logins_that_are_renewed(
    tmp_path: Path, guarded_broker: GuardedBroker, postgres_url: str, namespace: str
) -> None:
    StrictSimulation.broker, StrictSimulation.prefix = guarded_broker, namespace
    servers = {"amqp_url": guarded_broker.url(), "database_url": postgres_url}
    async with started(noise_plan(tmp_path, noise_study(3), processes=True, **servers), StrictSimulation) as simulation:
        run_id = await simulation.submit()
        await check_sums(simulation, run_id, await simulation.watch(run_id, None))
