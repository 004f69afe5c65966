"""A hospital leaves a study: its grants end, work stops, what was made for it is deleted, and it says so."""

from pathlib import Path

from cohortium_connector.desk import Desk
from cohortium_connector.domain.commands import Withdrawn
from cohortium_connector.domain.policy import HeldGrant, permission
from cohortium_connector.store import models, products, seeds, studies, windows
from cohortium_connector.store.studies import Offer
from cohortium_connector.store.tables import consent_records
from cohortium_kit.db import Tx
from cohortium_messages.consent import Effect, Withdrawal
from cohortium_messages.governance import GrantWithdrawn
from cohortium_messages.withdrawals import WorkWiped
from cohortium_protocol.documents import UNSIGNED, sign_withdrawal

LEFT = "GRANT_WITHDRAWN"


async def leave_study(
    tx: Tx, desk: Desk, offer: Offer, *, by: str, effect: Effect = "stop_future"
) -> tuple[int, list[Path]]:
    """Returns how many grants ended, and the files to remove after the commit. Twice is once.

    Training that is under way ends with its process as soon as the workshop looks: the run is not open any more.
    """
    ended = await studies.withdraw_grants(tx, offer.study_digest, by=by)
    await studies.set_offer_state(tx, offer.study_digest, "WITHDRAWN", by=by)
    files = []
    for run_id in await studies.open_runs(tx, offer.study_digest):
        files += [desk.spool.models / run_id, desk.spool.journals / run_id]
        await models.delete_models(tx, run_id)
        await seeds.forget_seeds(tx, run_id)
        await desk.charges.close(tx, run_id, LEFT, by=by)
        for product in await products.products_of_run(tx, run_id):
            files.append(desk.spool.product(product.product_id))
            await products.delete_product(tx, product.product_id)
    opened = [
        window
        for window in await windows.open_windows(tx, offer.study_id)
        if window.params.study_digest == offer.study_digest
    ]
    for window in opened:
        files.append(desk.spool.upload(window.window_id))
        await desk.step(tx, window, Withdrawn(), by=by)
    if ended:
        await _tell(tx, desk, offer, effect)
        wiped = WorkWiped(
            site_id=desk.identity.site_id, study_digest=offer.study_digest, code=LEFT, windows=len(opened)
        )
        await desk.record(tx, wiped, offer.study_id)
    return ended, files


async def heed_withdrawals(tx: Tx, desk: Desk, *, by: str) -> None:
    """After documents came in: leave the studies that a withdrawal ends, as if a person here had said so. It may have
    been here for long, and count only since its signer's card is here too."""
    known = await consent_records.load(tx)
    if not any(isinstance(one.document, Withdrawal) for one in known.records):
        return
    for offer in await studies.offers(tx):
        facts = await studies.facts(tx, offer.study_digest)
        if facts is None or offer.state == "WITHDRAWN":
            continue
        answer = permission(facts, desk.site, 0, desk.clock.now())
        if not isinstance(answer, HeldGrant) and any(reason.code == LEFT for reason in answer):
            await leave_study(tx, desk, offer, by=by)  # files without a record are swept


async def _tell(tx: Tx, desk: Desk, offer: Offer, effect: Effect) -> None:
    unsigned = GrantWithdrawn(
        study_id=offer.study_id,
        study_digest=offer.study_digest,
        site_id=desk.identity.site_id,
        at=desk.clock.now(),
        requested_effect=effect,
        sig=UNSIGNED,
    )
    await desk.post(tx, "consent", sign_withdrawal(unsigned, desk.identity.key), offer.study_id)
