"""Ready means that a message came through: a dead line makes a service not ready, though every connection is open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest

from cohortium_aggregator.app import App as Aggregator
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_audit.app import App
from cohortium_audit.settings import AuditSettings
from cohortium_consent.app import App as Consent
from cohortium_consent.settings import ConsentSettings
from cohortium_enrolment.app import App as Enrolment
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_kit.testing.proxy import CuttingProxy
from cohortium_messages.topology import dead_letters
from cohortium_platform.identity import PlatformSettings
from cohortium_scheduler.app import App as Scheduler
from cohortium_scheduler.settings import SchedulerSettings
from governance_stage import Stage, real_stage, running

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 3.0
PATIENCE_S = 120.0


@contextlib.asynccontextmanager
async def behind_proxy(url: str, port: int) -> AsyncIterator[tuple[CuttingProxy, str]]:
    parts = urlsplit(url)
    proxy = CuttingProxy(parts.hostname or "127.0.0.1", parts.port or port)
    await proxy.start()
    login = parts.netloc.rpartition("@")
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{login[0]}{login[1]}127.0.0.1:{proxy.port}"))
    finally:
        await proxy.close()


async def becomes(client: httpx.AsyncClient, status: int, traffic: str | None = None) -> dict[str, str]:
    """Ask until the service says so, and says that of its probes; returns its checks."""
    for _ in range(int(PATIENCE_S / 0.3)):
        answer = await client.get("/readyz")
        checks: dict[str, str] = answer.json()["checks"]  # of its probes only once it runs
        if answer.status_code == status and traffic in {None, checks.get("traffic")}:
            return checks
        await asyncio.sleep(0.3)
    raise AssertionError(f"never {status}, {traffic}: {answer.text}")


SERVICES: dict[str, tuple[type[Any], type[PlatformSettings]]] = {
    "aggregator": (Aggregator, AggregatorSettings),
    "audit": (App, AuditSettings),
    "consent": (Consent, ConsentSettings),
    "enrolment": (Enrolment, EnrolmentSettings),
    "scheduler": (Scheduler, SchedulerSettings),
}


def with_port(stage: Stage, amqp_url: str, database_url: str) -> AuditSettings:
    addresses = {"amqp_url": amqp_url, "database_url": database_url}
    given = {**stage.settings("audit"), **addresses, "http_port": 0, "probe_limit_s": LIMIT_S}
    return AuditSettings.model_validate(given)


async def test_a_service_is_ready_while_its_probes_come_back(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with (
        real_stage(tmp_path, amqp_url, postgres_url, namespace, "audit") as (stage, bus),
        behind_proxy(amqp_url, 5672) as (broker, broker_url),
        behind_proxy(postgres_url, 5432) as (database, database_url),
    ):
        app = await App.build(with_port(stage, broker_url, database_url))
        async with stage.client(app) as client:
            before = await client.get("/readyz")
            assert before.json()["checks"]["traffic"] == "ProbeMissing", "nothing has come back yet"
            async with running(app):
                assert await becomes(client, 200) == dict.fromkeys(
                    ("database", "broker", "traffic", "consumers"), "ready"
                )

                broker.freeze()
                assert (await becomes(client, 503, "ProbeMissing"))["database"] == "ready"
                assert (await client.get("/healthz")).status_code == 200, "the process itself lives"
                broker.thaw()
                await becomes(client, 200)

                database.block()
                assert (await becomes(client, 503))["database"] != "ready"
                database.unblock()
                await becomes(client, 200)

                text = (await client.get("/metrics")).text
                assert "cohortium_probe_seconds_count" in text
        assert await bus.queue_depth(dead_letters("audit")) == 0, "a probe is never a dead letter"


@pytest.mark.parametrize("role", SERVICES)
async def test_a_service_whose_consumer_is_frozen_says_so(
    role: str, tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    """Broker and database answer and the subscription stands, and still nothing is handled."""
    kind, settings = SERVICES[role]
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, role) as (stage, bus):
        given = {**stage.settings(role), "http_port": 0, "probe_limit_s": LIMIT_S}
        app = await kind.build(settings.model_validate(given))
        async with stage.client(app) as client, running(app):
            await becomes(client, 200, "ready")
            # Every handler has the consumer's turn while it works: one that never returns keeps it.
            async with app.consumer._turn:
                checks = await becomes(client, 503, "ProbeMissing")
                assert checks["database"] == checks["consumers"] == checks.get("broker", "ready") == "ready"
                assert (await client.get("/healthz")).status_code == 200
            await becomes(client, 200, "ready")
        assert await bus.queue_depth(dead_letters(role)) == 0
