"""`python -m cohortium_scheduler run|migrate|check-config --config FILE`."""

import sys
from collections.abc import Sequence

from cohortium_platform.service import service_main
from cohortium_scheduler.app import App
from cohortium_scheduler.settings import SchedulerSettings


def main(argv: Sequence[str] | None = None) -> int:
    return service_main("scheduler", SchedulerSettings, App.build, argv)


if __name__ == "__main__":
    sys.exit(main())
