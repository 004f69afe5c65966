"""Consent documents that the platform shares: checked by themselves, kept beside the hospital's own, never believed."""

import structlog

from cohortium_connector.desk import Desk
from cohortium_connector.leaving import heed_withdrawals
from cohortium_connector.store.tables import consent_records
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.consent import DocumentsShared
from cohortium_protocol.consent.files import verify_file

log = structlog.get_logger(__name__)


class ConsentHandlers:
    """Keeps signed copies. What they amount to is worked out anew at each question."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def on_documents(self, tx: Tx, received: Received[DocumentsShared]) -> None:
        """Documents, acts and cards that consent has. Each act proves itself; whose key signed it is judged later, from
        cards that the hospital or enough officers signed. The same again changes nothing."""
        file = received.message.file
        verify_file(file)
        changed = await consent_records.add(tx, file)
        if changed:
            log.info("consent_documents_kept", count=len(changed))
            await heed_withdrawals(tx, self._desk, by="on_documents")
