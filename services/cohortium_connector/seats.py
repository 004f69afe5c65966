"""What one strict session is played with: the site's masks and links, and the job of its training process."""

from dataclasses import dataclass, field

from cohortium_connector.desk import Desk
from cohortium_connector.domain.window_states import InSession
from cohortium_connector.domain.work import Product
from cohortium_connector.downloads import Downloads
from cohortium_connector.handlers.sessions import opened_key
from cohortium_connector.store import patients, products, studies, windows
from cohortium_connector.store.windows import WindowRecord
from cohortium_connector.training.jobs import DataSource, TrainTrees
from cohortium_kit.db import Database, Tx
from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import StrictSpec
from cohortium_messages.study import Study
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.strict.frames import ResultOpener, StepSealer
from cohortium_protocol.strict.masks import StrictSite
from cohortium_protocol.strict.session import SiteSession
from cohortium_protocol.strict.steps import limits_of

NO_TABLE = DataSource(path="/dev/null")
"""What a study without a bound table would read; the policy lets no such window in."""


class MayNotPlay(Exception):
    """The hospital's grant does not cover the session any more; the code says why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Seat:
    """One session at this site, not begun yet. `session` must be used by one player only, and never again."""

    window: WindowRecord
    spec: StrictSpec
    session: SiteSession = field(repr=False)
    job: TrainTrees = field(repr=False)

    @property
    def run_id(self) -> RunId:
        return self.window.run_id


@dataclass(frozen=True, slots=True)
class _Found:
    window: WindowRecord
    spec: StrictSpec
    study: Study
    product: Product
    source: DataSource
    sites: int
    index: int
    session: SiteSession


async def take_seat(desk: Desk, db: Database, downloads: Downloads, window_id: bytes) -> Seat | None:
    """Everything for a session of which roster and key are in the spool; None if the window has moved on.

    Raises `MayNotPlay`, a `RemoteFault` for a key that does not open, `ModelNotObtained` and `ModelUnfit`.
    """
    # What was promised with the roster must be on record beside the database before a mask is used (rule R8).
    await desk.note_promises(db, unsure=True)
    async with db.reading("take_seat") as tx:
        found = await _find(tx, desk, window_id)
    if found is None or found.product.base is None or found.product.data_digest is None:
        return None
    window, from_model = found.window, found.spec.from_model
    bins = await downloads.fetch(window.run_id, found.product.base)
    base = None if from_model is None else await downloads.fetch(window.run_id, from_model)
    journal = desk.spool.journal(window.run_id, 0 if from_model is None else from_model.version)
    journal.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    job = TrainTrees(
        study=found.study,
        source=found.source,
        preprocessing_path=str(bins.preprocessing),
        base_model_path=None if base is None else str(base.parameters),
        journal_path=str(journal),
        strict=found.spec,
        sites=found.sites,
        index=found.index,
        data_digest=found.product.data_digest,
    )
    return Seat(window, found.spec, found.session, job)


async def _find(tx: Tx, desk: Desk, window_id: bytes) -> _Found | None:
    window = await windows.find_window(tx, window_id)
    if window is None or not isinstance(window.state, InSession):
        return None
    params = window.params
    held = await desk.permission(tx, params.study_digest, params.round)
    if isinstance(held, str):
        raise MayNotPlay(held)
    offer = await studies.find_offer(tx, params.study_digest)
    product = await products.product_of_window(tx, window_id)
    if offer is None or product is None or params.strict is None:
        raise LookupError(f"window {window_id.hex()} has nothing to play a session with")
    material = await windows.material(tx, window_id)
    view, index = await desk.view(tx, window, material), window.state.place.index
    if material.keys is None or material.session_key is None:
        raise LookupError(f"window {window_id.hex()} has no keys")
    keys, secret = WindowKeys.from_bytes(material.keys), opened_key(window, material, material.session_key)
    session = SiteSession(
        StrictSite(view, index, keys),
        StepSealer(view, index, keys, params.aggregator_seal_pk),
        ResultOpener(view, secret, desk.identity.aggregator_pk),
        params.strict.chain,
        limits_of(offer.study),
    )
    table = desk.settings.dataset(window.study_id) or NO_TABLE
    permitted = await patients.permitted_of(tx, window.run_id, "training")
    # The patients of the preparation, whose rows `data_digest` holds to: asked about again, they might be others.
    if table.person_column is not None and permitted is None:
        raise MayNotPlay("DATA_CHANGED")  # prepared before the table named its patients: nobody was asked about
    source = table if permitted is None else table.model_copy(update={"permitted_path": permitted})
    return _Found(window, params.strict, offer.study, product, source, view.n, index, session)
