"""How a platform service starts: `run`, `migrate` and `check-config`, the same for each."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from fastapi import FastAPI

from cohortium_kit import runtime
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Bus
from cohortium_kit.db import Database
from cohortium_kit.errors import CohortiumError, ConfigurationError
from cohortium_kit.http import serve
from cohortium_kit.logging import configure_logging
from cohortium_kit.migrate import migrate, pending
from cohortium_kit.runtime import ServiceApp
from cohortium_kit.settings import Settings

S = TypeVar("S", bound=Settings)


class Runnable(Protocol):
    """A built service."""

    async def run(self, stop: asyncio.Event) -> None: ...


def open_database(settings: Settings) -> Database:
    """The service's database, in its own schema or file."""
    return Database(settings.database_url, schema=settings.db_schema)


def open_bus(settings: Settings, name: str) -> Bus:
    """The service's connection to RabbitMQ; it dials when the service runs."""
    return RabbitBus(settings.amqp_url, settings.namespace, connection_name=f"cohortium-{name}")


def offer_http(service: ServiceApp, http: FastAPI, settings: Settings) -> None:
    """Serve the application while the service runs, if the settings name a port; else it is for this process only."""
    port = settings.http_port
    if port is None:
        return

    async def serve_http(stop: asyncio.Event) -> None:
        await serve(http, settings.http_host, port, stop)

    service.part(serve_http)


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
        await (await build(settings)).run(stop)

    return runtime.main(run)


async def _migrate(settings: Settings, package: str) -> None:
    db = open_database(settings)
    try:
        applied = await migrate(db, package)
    finally:
        await db.close()
    sys.stdout.write("".join(f"applied {one}\n" for one in applied) or "nothing to apply\n")
