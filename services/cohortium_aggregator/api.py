"""The operator's HTTP interface: a run's model versions, and its finished model. Translates; decides nothing."""

from pathlib import Path as FilePath
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import FastAPI, Path, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from cohortium_kit.http import HttpProblem, create_app
from cohortium_kit.paging import Limit
from cohortium_messages.ids import UUID_PATTERN, RunId, Wire
from cohortium_messages.paging import USUAL_ON_A_PAGE
from cohortium_messages.problems import sentence
from cohortium_messages.runs import EvaluationResult
from cohortium_platform.people.guard import Guard

T = TypeVar("T")
RunPath = Annotated[str, Path(pattern=UUID_PATTERN)]


class ModelVersionInfo(BaseModel):
    """One published version. `stored`: its parameters can still be had. `trees`: boosting rounds, where it has any."""

    version: int
    model_hash: str
    parameters: int
    trees: int | None = None
    stored: bool
    made_at: float
    retired: bool = False
    """Officers retired it after a withdrawal: it is handed out no more."""
    evaluation: EvaluationResult | None = None


class RunModels(BaseModel):
    """A run's versions, oldest first."""

    run_id: str
    state: str
    bundled: bool
    released: bool = False
    """People signed its release; before that the finished model is a candidate."""
    versions: list[ModelVersionInfo]
    next: int | None = None
    """The version to ask for with `after`, where there are more."""


class DsseSignature(Wire):
    keyid: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sig: Annotated[str, Field(max_length=200)]


class DsseEnvelope(Wire):
    """A signed statement, as `cohortium model release` writes it."""

    payload: Annotated[str, Field(max_length=128 << 10)]
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815 - DSSE spells it so
    signatures: Annotated[tuple[DsseSignature, ...], Field(min_length=1, max_length=300)]


class ReleaseView(BaseModel):
    """How the release of a run's model stands. `missing`: whose signatures are needed yet, in words."""

    run_id: str
    state: Literal["candidate", "waiting", "released"]
    missing: list[str]
    officers: list[str] = []
    sites: list[str] = []
    envelope: DsseEnvelope | None = None


class Models(Protocol):
    """What the interface needs of the service."""

    async def models(self, run_id: RunId) -> RunModels | None: ...
    async def archive(self, run_id: RunId) -> FilePath: ...
    async def release(self, run_id: RunId) -> ReleaseView | None: ...
    async def sign_release(self, run_id: RunId, envelope: bytes) -> ReleaseView | None: ...


def create(models: Models, *, guard: Guard) -> FastAPI:
    """The application."""
    app = create_app("Cohortium aggregator", "1", guard)

    @app.get("/runs/{run_id}/models")
    async def versions(
        run_id: RunPath,
        after: Annotated[int | None, Query(ge=0, le=(1 << 31) - 1)] = None,
        limit: Limit = USUAL_ON_A_PAGE,
    ) -> RunModels:
        """The model versions of one run, with their metrics, the oldest first. `after`: a version."""
        found = _found(await models.models(RunId(run_id)), run_id)
        left = [one for one in found.versions if after is None or one.version > after]
        more = left[limit - 1].version if len(left) > limit else None
        return found.model_copy(update={"versions": left[:limit], "next": more})

    @app.get(
        "/runs/{run_id}/model",
        response_class=FileResponse,
        responses={200: {"content": {"application/zip": {}}}},
    )
    async def model(run_id: RunPath) -> FileResponse:
        """The finished model as a zip archive: parameters or trees, preprocessing, card and signed attestation; with
        `release.dsse.json` once people released it. Before that the archive is named a candidate."""
        found = _found(await models.models(RunId(run_id)), run_id)
        path = await models.archive(RunId(run_id))
        _in_use(found)
        if not found.bundled or not path.is_file():
            detail = f"run {run_id} is {found.state} and has no finished model; it is made when the run is FINISHED"
            raise HttpProblem(409, "MODEL_NOT_READY", detail, state=found.state)
        kind = "model" if found.released else "candidate"
        return FileResponse(path, media_type="application/zip", filename=f"{kind}-{run_id}.zip")

    @app.get("/runs/{run_id}/release")
    async def release(run_id: RunPath) -> ReleaseView:
        """Who signed the release of the run's model so far, and who is missing."""
        return _found(await models.release(RunId(run_id)), run_id)

    @app.post("/runs/{run_id}/release")
    async def sign_release(run_id: RunPath, envelope: DsseEnvelope) -> ReleaseView:
        """Hand over signatures of people under the release. Again is harmless; the last needed releases it."""
        _in_use(_found(await models.models(RunId(run_id)), run_id))
        return _found(await models.sign_release(RunId(run_id), envelope.model_dump_json().encode()), run_id)

    return app


def _in_use(found: RunModels) -> None:
    if found.bundled and found.versions and found.versions[-1].retired:
        detail = f"the model of run {found.run_id} is retired: {sentence('MODEL_RETIRED')}"
        raise HttpProblem(410, "MODEL_RETIRED", detail)


def _found(found: T | None, run_id: str) -> T:
    if found is None:
        raise HttpProblem(404, "RUN_NOT_FOUND", f"the aggregator knows no run {run_id}; `cohortium runs` lists them")
    return found
