"""`python -m cohortium_consent run|migrate|check-config --config FILE`."""

import sys
from collections.abc import Sequence

from cohortium_consent.app import App
from cohortium_consent.settings import ConsentSettings
from cohortium_platform.service import service_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return service_main("consent", ConsentSettings, App.build, argv)


if __name__ == "__main__":
    sys.exit(main())
