"""Errors every service knows. A message names the fact, the object, and what to do about it."""


class CohortiumError(Exception):
    """Base of all errors that are ours. Its text is safe to show: it never holds a record, a key or a secret."""


class ConfigurationError(CohortiumError):
    """The service cannot start as it is configured. Exit code 2; a restart without a change is no use."""


class BusError(CohortiumError):
    """A message was not handed over. The sender still owns it, and the outbox tries again."""


class Unroutable(BusError):
    """The broker took the message and found no queue for it: a missing declaration, or a site not enrolled."""


class Refused(BusError):
    """The broker said no to this message (negative confirm): the queue is full, or it cannot be written now."""


class BrokerUnavailable(BusError):
    """No answer in time, or no connection. The message may or may not have arrived; sending it again is safe."""


class AccessRefused(BusError):
    """The broker knows us and does not let us: credentials ended or were withdrawn, or the right is missing."""


class QueueMissing(BusError):
    """The queue does not exist. Declare the topology first (`migrate`), or enrol the site."""


class DatabaseError(CohortiumError):
    """The database did not do what was asked."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached now. Nothing was committed that we know of; try again later."""


class TransactionConflict(DatabaseError):
    """Two transactions met (serialization failure, deadlock, busy). Nothing was committed; run it again."""


class MigrationRefused(DatabaseError):
    """A migration that was applied before has another text now. Restore its text and add a new one."""


class Poison(CohortiumError):
    """Raised by a handler: this message can never be handled. It goes to the dead letters with its reason.

    `reason_code` is a stable, lower-case code that an operator can search for; `detail` never quotes the body.
    """

    def __init__(self, reason_code: str, detail: str = "") -> None:
        super().__init__(f"{reason_code}: {detail}" if detail else reason_code)
        self.reason_code = reason_code
        self.detail = detail


class TryLater(CohortiumError):
    """Raised by a handler: not now. The message is put back after a short wait.

    Each time counts as a delivery: after the queue's delivery limit the message is parked with the dead letters.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
