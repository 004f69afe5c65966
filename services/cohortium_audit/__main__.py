"""`python -m cohortium_audit run|migrate|check-config --config FILE`."""

import sys
from collections.abc import Sequence

from cohortium_audit.app import App
from cohortium_audit.settings import AuditSettings
from cohortium_platform.service import service_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return service_main("audit", AuditSettings, App.build, argv)


if __name__ == "__main__":
    sys.exit(main())
