"""How a platform service starts: `run`, `migrate` and `check-config`, the same for each."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from fastapi import FastAPI

from cohortium_kit import runtime
from cohortium_kit.addresses import login_of
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.broker_check import Expected, check_address
from cohortium_kit.bus import Bus
from cohortium_kit.db import Database
from cohortium_kit.errors import CohortiumError, ConfigurationError
from cohortium_kit.http import add_metrics, add_ping, add_worry, serve
from cohortium_kit.logging import configure_logging
from cohortium_kit.migrate import migrate, pending
from cohortium_kit.probe import NotSubscribed, Prober
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.sampling import LoopWatch, Sampler
from cohortium_kit.settings import Settings, read_secret_file
from cohortium_kit.tracing import exporting, package_version
from cohortium_messages.rights import CHECK_NAME, NOBODYS_KEY, foreign_exchanges, watched_queues
from cohortium_messages.topology import DEAD, SERVICE_NAMES, UPLINK, inbox
from cohortium_platform.identity import PlatformSettings

S = TypeVar("S", bound=Settings)

PROBES_WITHIN_LIMIT = 3


class Runnable(Protocol):
    """A built service."""

    async def run(self, stop: asyncio.Event) -> None: ...


def open_database(settings: Settings) -> Database:
    """The service's database, in its own schema or file."""
    return Database(settings.database_url, schema=settings.db_schema)


def open_bus(settings: Settings, name: str) -> Bus:
    """The service's connection to RabbitMQ; it dials when the service runs. Raises `ConfigurationError`.

    With `broker_check: strict` it refuses a broker that is open wider than it must be, at its first connection.
    """
    url = settings.amqp_url
    check_address(url, settings.broker_check)
    others = tuple(inbox(role) for role in SERVICE_NAMES if role != name)
    keys = (DEAD.name, CHECK_NAME), (UPLINK.name, NOBODYS_KEY)
    expected = Expected(others, foreign_exchanges(name), keys, own_queues=watched_queues(name))
    return RabbitBus(
        url,
        settings.namespace,
        connection_name=f"cohortium-{name}",
        user_id=login_of(url),
        strict=expected if settings.broker_check == "strict" else None,
    )


def offer_http(service: ServiceApp, http: FastAPI, settings: PlatformSettings, role: str) -> Sampler:
    """Serve the application while the service runs, if the settings name a port; else it is for this process only.

    Adds `/metrics`, and with a port the probes that readiness asks for. Returns the sampler, for the service's own
    gauges.
    """
    service.db.metrics.build.labels(role, package_version()).set(1)
    sampler = Sampler(service.db, service.bus, service.db.clock, watched_queues(role))
    limit_s = settings.probe_limit_s
    add_worry(http, "outbox", lambda: sampler.unsent(limit_s))
    token = read_secret_file(settings.metrics_token_file) if settings.metrics_token_file else None
    add_metrics(http, service.db.metrics, sampler.refresh, token)
    port = settings.http_port
    if port is None:
        return sampler

    async def consuming() -> None:
        if not service.consuming:
            raise NotSubscribed("a consumer of this instance is not subscribed: look at the broker and at the log")

    prober = Prober(service.db, service.db.clock, role, every_s=limit_s / PROBES_WITHIN_LIMIT, limit_s=limit_s)
    add_ping(http, "traffic", prober.ping)
    add_ping(http, "consumers", consuming)
    service.part(prober.run)
    service.part(LoopWatch(service.db).run)

    async def serve_http(stop: asyncio.Event) -> None:
        await serve(http, settings.http_host, port, stop)

    service.part(serve_http)
    return sampler


async def require_migrated(db: Database, name: str) -> None:
    """Raise `ConfigurationError` unless every migration of the service was applied to this database."""
    missing = await pending(db, f"cohortium_{name}")
    if missing:
        raise ConfigurationError(
            f"the database of {name} lacks {', '.join(missing)}; run `cohortium migrate {name} --config FILE` first"
        )


def service_main(
    name: str, settings_type: type[S], build: Callable[[S], Awaitable[Runnable]], argv: Sequence[str] | None = None
) -> int:
    """The command line of one service. Exit codes: 0 clean, 1 failed, 2 configuration."""
    parser = argparse.ArgumentParser(prog=f"cohortium-{name}", description=f"The {name} service of Cohortium.")
    parser.add_argument("command", choices=("run", "migrate", "check-config"))
    parser.add_argument("--config", type=Path, required=True, help="settings, a YAML file")
    options = parser.parse_args(argv)
    try:
        settings = settings_type.load(options.config)
        if options.command == "check-config":
            sys.stdout.write(f"{options.config}: no errors\n")
            return runtime.EXIT_CLEAN
        configure_logging(level=settings.log_level, output=settings.log_format, service=name)
        if options.command == "migrate":
            asyncio.run(_migrate(settings, f"cohortium_{name}"))
            return runtime.EXIT_CLEAN
    except CohortiumError as error:
        sys.stderr.write(f"{error}\n")
        return runtime.EXIT_CONFIGURATION

    async def run(stop: asyncio.Event) -> None:
        with exporting(settings, name):
            await (await build(settings)).run(stop)

    return runtime.main(run)


async def _migrate(settings: Settings, package: str) -> None:
    db = open_database(settings)
    try:
        applied = await migrate(db, package)
    finally:
        await db.close()
    sys.stdout.write("".join(f"applied {one}\n" for one in applied) or "nothing to apply\n")
