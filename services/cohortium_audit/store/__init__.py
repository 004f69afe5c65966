"""The audit service's tables and statements: the logs in `logs`, who may speak in `members`."""

from cohortium_audit.store.tables import metadata

__all__ = ["metadata"]
