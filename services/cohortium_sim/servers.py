"""Whether the real servers that a plan names are there, asked before a federation is built on them."""

import asyncio

from cohortium_kit.amqp import RabbitBus
from cohortium_kit.db import Database
from cohortium_kit.errors import AccessRefused, BusError, DatabaseError
from cohortium_sim.plan import Plan, PlanError

TIMEOUT_S = 10.0


async def check_servers(plan: Plan) -> None:
    """Raise `PlanError` naming the option whose server does not answer; no address is shown, it may hold a password."""
    if plan.amqp_url:
        await _check_broker(plan.amqp_url)
    if plan.database_url:
        await _check_database(plan.database_url)


async def _check_broker(url: str) -> None:
    bus = RabbitBus(url, "simulate", connection_name="cohortium-simulate-check")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await bus.connect()
    except AccessRefused:
        raise PlanError("--amqp: RabbitMQ refuses this user, password or virtual host; correct the address") from None
    except (BusError, TimeoutError):
        raise PlanError("--amqp: no RabbitMQ answers there; start it, or correct the address") from None
    finally:
        await bus.close()


async def _check_database(url: str) -> None:
    db = Database(url, schema="public")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await db.ping()
    except (DatabaseError, TimeoutError):
        raise PlanError(
            "--database: no PostgreSQL answers there to this user; start it, or correct the address"
        ) from None
    finally:
        await db.close()
