"""Windows in ASSEMBLING: the rounds that stand become a model version. Made again from the records after a crash."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import SumRefused
from cohortium_aggregator.domain.strict_states import Assembling, ModelAssembled
from cohortium_aggregator.files import complete_directory
from cohortium_aggregator.handlers.course import Result, move
from cohortium_aggregator.modelling import MadeModel
from cohortium_aggregator.releasing import release_version
from cohortium_aggregator.store import rounds, runs, windows
from cohortium_aggregator.store.runs import ModelVersion, Run
from cohortium_aggregator.store.windows import SumWindow
from cohortium_aggregator.tree_models import assembled, write_text
from cohortium_kit.db import Tx
from cohortium_protocol.errors import ProtocolError
from cohortium_protocol.trees.binning import Binning


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a model is made from. `contents`: the header's text and those of the rounds to keep."""

    window: SumWindow
    state: Assembling
    run: Run
    newest: ModelVersion
    contents: Sequence[bytes]

    @property
    def is_there(self) -> bool:
        """The session has added nothing to the newest version."""
        return self.newest.trees == self.state.keep


class Assembler:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def assemble(self, window_id: bytes) -> None:
        """Make the version and put it on record with the window's end. Called again it finds nothing to do."""
        job = await self._load(window_id)
        if job is None:
            return
        command, made = await asyncio.to_thread(self._make, job)
        taken = await self._ctx.db.run("model_assembled", lambda tx: self._finish(tx, job, command, made))
        if made is not None and not taken:
            await asyncio.to_thread(self._ctx.data.drop_files, job.run.run_id, job.newest.version + 1)

    async def _load(self, window_id: bytes) -> Assembly | None:
        async with self._ctx.db.reading("model_to_assemble") as tx:
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
            if window is None or not isinstance(window.state, Assembling):
                return None
            run = await runs.find_run(tx, window.session.run_id)
            newest = await runs.newest_version(tx, window.session.run_id)
            if run is None or newest is None:
                raise AssertionError("a strict session without its run or its bins")
            contents = await rounds.rounds_up_to(tx, run.run_id, window.state.keep)
            return Assembly(window, window.state, run, newest, contents)

    def _make(self, job: Assembly) -> tuple[ModelAssembled | SumRefused, MadeModel | None]:
        if job.is_there:
            return ModelAssembled(), None
        study, rules = job.run.study, job.newest.preprocessing
        if len(job.contents) != job.state.keep + 1:
            return SumRefused("FAILED", "ROUNDS_LOST"), None
        if not isinstance(rules, Binning):
            return SumRefused("FAILED", "MODEL_REFUSED"), None
        header, *grown = job.contents
        target = self._ctx.data.model_dir(job.run.run_id, job.newest.version + 1)
        try:
            text = assembled(study, rules, header, grown)
            with complete_directory(target) as folder:
                return ModelAssembled(), write_text(study, rules, text, folder)
        except ProtocolError as fault:
            return SumRefused("FAILED", fault.code), None

    async def _finish(
        self, tx: Tx, job: Assembly, command: ModelAssembled | SumRefused, made: MadeModel | None
    ) -> bool:
        """Returns whether the files that were made are a version's: they are not where a site left meanwhile."""
        window = await windows.find_window(tx, self._ctx.sessions, job.window.session.window_id)
        if window is None or not isinstance(window.state, Assembling):
            return await runs.find_version(tx, job.run.run_id, job.newest.version + 1) is not None
        result = Result()
        if made is not None:
            rules = job.newest.preprocessing
            result = await release_version(self._ctx, tx, window.session, job.newest, rules, made)
            result = replace(result, trees=made.trees)
        elif isinstance(command, ModelAssembled):
            result = Result(model=job.newest.ref, parameters=job.newest.parameters, trees=job.newest.trees)
        await move(self._ctx, tx, window, command, result)
        return True
