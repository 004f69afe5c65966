"""The operator's HTTP interface: a run's model versions, and its finished model. Translates; decides nothing."""

from pathlib import Path as FilePath
from typing import Annotated, Protocol

from fastapi import Depends, FastAPI, Path
from fastapi.responses import FileResponse
from pydantic import BaseModel

from cohortium_kit.http import HttpProblem, create_app, operator_only
from cohortium_messages.ids import UUID_PATTERN, RunId
from cohortium_messages.runs import EvaluationResult

RunPath = Annotated[str, Path(pattern=UUID_PATTERN)]


class ModelVersionInfo(BaseModel):
    """One published version. `stored`: its parameters can still be had. `trees`: boosting rounds, where it has any."""

    version: int
    model_hash: str
    parameters: int
    trees: int | None = None
    stored: bool
    made_at: float
    evaluation: EvaluationResult | None = None


class RunModels(BaseModel):
    """A run's versions, oldest first."""

    run_id: str
    state: str
    bundled: bool
    versions: list[ModelVersionInfo]


class Models(Protocol):
    """What the interface needs of the service."""

    async def models(self, run_id: RunId) -> RunModels | None: ...
    def archive(self, run_id: RunId) -> FilePath: ...


def create(models: Models, *, operator_token: str | None) -> FastAPI:
    """The application. Every path but health needs the operator's bearer token."""
    app = create_app("Cohortium aggregator", "1", operator_token)

    @app.get("/runs/{run_id}/models", dependencies=[Depends(operator_only)])
    async def versions(run_id: RunPath) -> RunModels:
        """The model versions of one run, with their metrics."""
        return _found(await models.models(RunId(run_id)), run_id)

    @app.get(
        "/runs/{run_id}/model",
        dependencies=[Depends(operator_only)],
        response_class=FileResponse,
        responses={200: {"content": {"application/zip": {}}}},
    )
    async def model(run_id: RunPath) -> FileResponse:
        """The finished model as a zip archive: parameters or trees, preprocessing, card and signed attestation."""
        found = _found(await models.models(RunId(run_id)), run_id)
        path = models.archive(RunId(run_id))
        if not found.bundled or not path.is_file():
            detail = f"run {run_id} is {found.state} and has no finished model; it is made when the run is FINISHED"
            raise HttpProblem(409, "MODEL_NOT_READY", detail, state=found.state)
        return FileResponse(path, media_type="application/zip", filename=f"model-{run_id}.zip")

    return app


def _found(found: RunModels | None, run_id: str) -> RunModels:
    if found is None:
        raise HttpProblem(404, "RUN_NOT_FOUND", f"the aggregator knows no run {run_id}; `cohortium runs` lists them")
    return found
