"""`python -m cohortium_enrolment run|migrate|check-config --config FILE`."""

import sys
from collections.abc import Sequence

from cohortium_enrolment.app import App
from cohortium_enrolment.settings import EnrolmentSettings
from cohortium_platform.service import service_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return service_main("enrolment", EnrolmentSettings, App.build, argv)


if __name__ == "__main__":
    sys.exit(main())
