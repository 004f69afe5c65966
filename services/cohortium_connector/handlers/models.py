"""A model version is offered, or cannot be had."""

import rfc8785
import structlog

from cohortium_connector.desk import BrokenProtocol
from cohortium_connector.store import models, studies
from cohortium_connector.tree_models import MOST_TEXT_BYTES, checked_binning
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.runs import ModelOffered, ModelUnavailable
from cohortium_messages.withdrawals import RetireModels
from cohortium_protocol.chunks import unwrap_model_key
from cohortium_protocol.keys import SealKey
from cohortium_protocol.parameters import ModelRefused, model_hash
from cohortium_protocol.trees.evaluation import has_trees

log = structlog.get_logger(__name__)


class ModelHandlers:
    """What the aggregator says about model versions. The chunks themselves come on the bulk queue."""

    async def on_model_offered(self, tx: Tx, received: Received[ModelOffered]) -> None:
        """Accept the description of a version only if it is the one that a signed window named by its hash."""
        by, offer = "on_model_offered", received.message
        wanted = await models.find_model(tx, offer.run_id, offer.version)
        if wanted is None or wanted.state == "COMPLETE":
            return
        described = model_hash(offer.parameters_sha256, rfc8785.dumps(offer.preprocessing))
        if offer.model_hash != wanted.ref.model_hash or described != offer.model_hash:
            raise BrokenProtocol("MODEL_HASH_WRONG", received.key_id)
        await self._check_contents(tx, offer, received.key_id)
        unwrap_model_key(offer.wrapped_key, offer.run_id, offer.version, SealKey.from_bytes(wanted.seal_key))
        have = wanted.have or bytes(max(1, -(-offer.chunks // 8)))
        await models.save_offer(tx, offer.run_id, offer, have, by=by)

    async def _check_contents(self, tx: Tx, offer: ModelOffered, key_id: str) -> None:
        """Flat numbers, or text with its bins, as the run's study has it."""
        known = await studies.study_of_run(tx, offer.run_id)
        trees = known is not None and has_trees(known.study)
        fits = offer.size <= MOST_TEXT_BYTES if trees else offer.size % 4 == 0
        if -(-offer.size // offer.chunk_bytes) != offer.chunks or not fits:
            raise BrokenProtocol("MODEL_SIZE_WRONG", key_id)
        if known is not None and trees:
            try:
                checked_binning(known.study, offer.preprocessing)
            except ModelRefused as refused:
                log.error("model_refused", run=offer.run_id, version=offer.version, reason=str(refused))
                raise BrokenProtocol("MODEL_REFUSED", key_id, study=known.study_id) from None

    async def on_retire(self, tx: Tx, received: Received[RetireModels]) -> None:
        """Officers retired models after a withdrawal. By this a scheduler can take models away, and give none."""
        message = received.message
        for ref in message.models:
            await models.retire(tx, message.run_id, ref, message.withdrawal)
        log.info("models_retired", run=message.run_id, count=len(message.models))

    async def on_model_unavailable(self, _: Tx, received: Received[ModelUnavailable]) -> None:
        """Asked for again after a pause: a version that a window names will be there, or the window will not last."""
        message = received.message
        log.warning("model_unavailable", run=message.run_id, version=message.version, reason=message.reason)
