"""A site asks for a model version."""

from cohortium_aggregator.context import Context, ModelWish
from cohortium_aggregator.downlink import CHUNK_BYTES, chunk_total
from cohortium_aggregator.handlers.senders import check_site
from cohortium_aggregator.store import runs, sites
from cohortium_aggregator.store.runs import ModelVersion
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_messages.ids import SiteId
from cohortium_messages.runs import ModelOffered, ModelUnavailable, ModelWanted
from cohortium_protocol.chunks import wrap_model_key


class ModelHandlers:
    """Offers versions to members. `send` gets the wish after the offer is written; the chunks are sent at once and not
    kept, for the site asks again for what is missing."""

    def __init__(self, ctx: Context, send: ModelWish) -> None:
        self._ctx = ctx
        self._send = send

    async def on_model_wanted(self, tx: Tx, received: Received[ModelWanted]) -> None:
        wanted = received.message
        site = check_site(received, wanted.site_id)
        run = await runs.find_run(tx, wanted.run_id)
        version = await runs.find_version(tx, wanted.run_id, wanted.version)
        refusal = await self._refusal(tx, site, run, version)
        if run is None or version is None or refusal:
            answer = ModelUnavailable(run_id=wanted.run_id, version=wanted.version, reason=refusal)
            study = run.study_id if run is not None else None
            await self._ctx.post.to_site(tx, site, answer, study=study)
            return
        await self._ctx.post.to_site(tx, site, self._offer(version, wanted), study=run.study_id)
        total = chunk_total(version.file_bytes)
        self._send(site, wanted.run_id, wanted.version, marked(wanted.have, total))

    async def _refusal(self, tx: Tx, site: SiteId, run: runs.Run | None, version: ModelVersion | None) -> str:
        if run is None or version is None:
            return "BASE_MODEL_UNKNOWN"
        manifest = await sites.newest_manifest(tx, run.study_id)
        if manifest is None or site not in {member.site_id for member in manifest.members}:
            return "NOT_A_MEMBER"
        if version.retired_by is not None:
            return "MODEL_RETIRED"
        return "" if version.stored else "UPDATE_TOO_STALE"

    def _offer(self, version: ModelVersion, wanted: ModelWanted) -> ModelOffered:
        return ModelOffered(
            run_id=version.run_id,
            version=version.version,
            model_hash=version.model_hash,
            parameters_sha256=version.parameters_sha256,
            size=version.file_bytes,
            chunk_bytes=CHUNK_BYTES,
            chunks=chunk_total(version.file_bytes),
            preprocessing=version.preprocessing.model_dump(mode="json"),
            wrapped_key=wrap_model_key(version.key, version.run_id, version.version, wanted.seal_pk),
        )


def marked(bitmap: bytes | None, total: int) -> frozenset[int]:
    """The chunks that a bitmap (least significant bit first) marks."""
    if bitmap is None:
        return frozenset()
    return frozenset(k for k in range(total) if k // 8 < len(bitmap) and bitmap[k // 8] >> (k % 8) & 1)
