"""What can be wrong with the ledger itself."""

from cohortium_kit.errors import CohortiumError


class LedgerBroken(CohortiumError):
    """The stored ledger is not the one that this site wrote: a row changed, is missing, or is older than it must be.

    Nothing is reserved or begun any more. The text names the first row that is wrong and what to do.
    """

    code = "LEDGER_BROKEN"


class ProofRefused(CohortiumError):
    """What was given as proof does not show that this site's upload stays closed: it is charged as before."""
