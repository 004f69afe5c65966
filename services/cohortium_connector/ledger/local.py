"""What a person in the hospital does with the ledger: look at it, which checks it, or write off what is lost.

On the spool alone, beside a running connector or not.
"""

from cohortium_connector.at_site import AtSite
from cohortium_connector.desk import Desk
from cohortium_connector.ledger.anchor import Anchor
from cohortium_connector.ledger.service import Ledger
from cohortium_connector.ledger.view import LedgerView, look
from cohortium_kit.db import Database
from cohortium_kit.errors import ConfigurationError
from cohortium_privacy.ledger_plan import quarter_of


class LocalLedger(AtSite):
    """The hospital's own hand on its privacy ledger."""

    def __init__(self, desk: Desk, db: Database) -> None:
        super().__init__(desk, db)
        identity = desk.identity
        limits, anchor = desk.settings.privacy.limits, Anchor(desk.spool.ledger_head)
        self._ledger = Ledger(identity.site_id, identity.key, limits, anchor, desk.post)
        self._clock = desk.clock

    async def look(self, *, report: bool = False) -> LedgerView:
        """Every account, after a check of every row. Changes nothing. Raises `LedgerBroken`."""
        state = await self._ledger.check(self._db)
        try:
            return look(state, report=report)
        except ImportError:
            raise ConfigurationError(
                "budgets are read with dp-accounting, which is not installed: pip install 'cohortium[privacy]'"
            ) from None

    async def write_off(self) -> str:
        """Freeze every block up to the present quarter, and go on with the rows that are there: returns that quarter.

        For a ledger that is an older copy. Patients who come in later quarters bring a budget of their own. Raises
        `LedgerBroken` where rows were changed, which nothing repairs.
        """
        until = quarter_of(self._clock.now().date())
        await self._ledger.write_off(self._db, until)
        return until
