"""`python -m cohortium_connector run|migrate|check-config --config FILE`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from cohortium_connector.app import App, migrate_spool
from cohortium_connector.settings import ConnectorSettings
from cohortium_kit import runtime
from cohortium_kit.errors import CohortiumError
from cohortium_kit.logging import configure_logging
from cohortium_kit.tracing import exporting


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 clean, 1 failed, 2 configuration."""
    parser = argparse.ArgumentParser(prog="cohortium-connector", description="Cohortium in the hospital.")
    parser.add_argument("command", choices=("run", "migrate", "check-config"))
    parser.add_argument("--config", type=Path, required=True, help="settings, a YAML file")
    options = parser.parse_args(argv)
    try:
        settings = ConnectorSettings.load(options.config)
        if options.command == "check-config":
            sys.stdout.write(f"{options.config}: no errors\n")
            return runtime.EXIT_CLEAN
        configure_logging(level=settings.log_level, output=settings.log_format, service="connector")
        if options.command == "migrate":
            asyncio.run(migrate_spool(settings))
            return runtime.EXIT_CLEAN
    except CohortiumError as error:
        sys.stderr.write(f"{error}\n")
        return runtime.EXIT_CONFIGURATION

    async def run(stop: asyncio.Event) -> None:
        with exporting(settings, "connector"):
            await (await App.build(settings)).run(stop)

    return runtime.main(run)


if __name__ == "__main__":
    sys.exit(main())
