"""`python -m cohortium_aggregator run|migrate|check-config --config FILE`."""

import sys
from collections.abc import Sequence

from cohortium_aggregator.app import App
from cohortium_aggregator.settings import AggregatorSettings
from cohortium_platform.service import service_main


def main(argv: Sequence[str] | None = None) -> int:
    return service_main("aggregator", AggregatorSettings, App.build, argv)


if __name__ == "__main__":
    sys.exit(main())
