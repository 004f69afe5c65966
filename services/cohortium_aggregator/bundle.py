"""The finished model with its papers: parameters, or the text of its trees, preprocessing, the study, a schema of what
goes in and comes out, a card, a bill of materials, and a signed statement over all files."""

import asyncio
import hashlib
import json
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from cohortium_aggregator.card import Papers, card_facts, card_text
from cohortium_aggregator.context import Context, message_id
from cohortium_aggregator.files import MODEL_TEXT, complete_directory, sync_file
from cohortium_aggregator.mlbom import MLBOM, mlbom
from cohortium_aggregator.modelling import model_layout
from cohortium_aggregator.store import runs, windows
from cohortium_aggregator.store.runs import Run
from cohortium_aggregator.store.trainings import training_of
from cohortium_kit.db import Tx
from cohortium_kit.errors import DatabaseError
from cohortium_messages.events import ModelBundled
from cohortium_messages.ids import RunId
from cohortium_messages.model_schema import SCHEMA_FILE
from cohortium_messages.privacy import PrivacyStatement
from cohortium_privacy.study_plans import statement_of
from cohortium_protocol.attest import Statement, sign_statement
from cohortium_protocol.parameters import safetensors_header
from cohortium_protocol.release import ATTESTATION, MODEL_TYPE
from cohortium_protocol.scoring import schema_bytes, schema_of

log = structlog.get_logger(__name__)

MODEL = "model.safetensors"
_AS_IT_IS = (MODEL_TEXT, b"")
PREPROCESSING = "preprocessing.json"
STUDY = "study.json"
CARD = "card.json"
CARD_TEXT = "card.md"
COPY_BYTES = 1 << 20
RETRY_S = 5.0
LOOK_S = 1.0


class Bundler:
    """Makes the bundle of every run that finished, while it runs."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._again_at: dict[RunId, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        wake = self._ctx.wakes.bundling
        while not stop.is_set():
            wake.clear()
            try:
                await self.bundle_finished()
            except DatabaseError as error:
                log.warning("bundler_waits", error=type(error).__name__)
            try:
                await asyncio.wait_for(wake.wait(), LOOK_S)
            except TimeoutError:
                continue

    async def bundle_finished(self) -> int:
        """Bundle every finished run that has no bundle yet; returns how many there were."""
        async with self._ctx.db.reading("runs_to_bundle") as tx:
            waiting = [run for run in await runs.runs_in_state(tx, "FINISHED") if run.attestation_sha256 is None]
        now = asyncio.get_running_loop().time()
        waiting = [run for run in waiting if self._again_at.get(run.run_id, 0) <= now]
        for run in waiting:
            try:
                with self._ctx.data.claimed(f"bundle-{run.run_id}") as ours:
                    if ours:
                        await self._bundle(run)
            except OSError as error:
                log.exception("bundle_failed", run=run.run_id, error=type(error).__name__)
                self._again_at[run.run_id] = now + RETRY_S
        return len(waiting)

    async def _bundle(self, run: Run) -> None:
        papers = await self._papers(run)
        if papers is None:
            log.error("bundle_without_model", run=run.run_id)
            self._again_at[run.run_id] = float("inf")
            return
        promised = await asyncio.to_thread(statement_of, run.study)
        digest = await asyncio.to_thread(self._write, papers, promised)
        await self._ctx.db.run("run_bundled", lambda tx: self._record(tx, papers, digest, promised))

    async def _papers(self, run: Run) -> Papers | None:
        """The records of a run's last model; None if there is no version whose parameters are here."""
        async with self._ctx.db.reading("bundle_papers") as tx:
            versions = await runs.versions_of(tx, run.run_id)
            stored = [version for version in versions if version.stored]
            wanted = [version for version in stored if version.version == run.last_version]
            chosen = (wanted or stored)[-1:]
            if not chosen:
                return None
            evaluations = await runs.evaluations_of(tx, run.run_id)
            sums = await windows.last_sum(tx, self._ctx.sessions, run.run_id)
            training = await training_of(tx, self._ctx.sessions, run.run_id)
            return Papers(run, chosen[0], len(versions), evaluations, sums, training)

    def _write(self, papers: Papers, promised: PrivacyStatement) -> bytes:
        """The bundle's directory and the same as one archive; returns the digest of the attestation."""
        run, version = papers.run, papers.version
        source = self._ctx.data.model_file(run.run_id, version.version, version.trees)
        target = self._ctx.data.bundle_dir(run.run_id)
        facts, schema = card_facts(papers, promised), schema_of(run.study, version.preprocessing)
        name, header = (MODEL, safetensors_header(model_layout(run.study))) if version.trees is None else _AS_IT_IS
        with complete_directory(target) as folder:
            digests = {
                name: _write_model(folder / name, header, source),
                PREPROCESSING: _write_bytes(folder / PREPROCESSING, version.preprocessing.canonical()),
                STUDY: _write_bytes(folder / STUDY, run.study.canonical()),
                SCHEMA_FILE: _write_bytes(folder / SCHEMA_FILE, schema_bytes(schema)),
                CARD: _write_bytes(folder / CARD, _json(facts)),
                CARD_TEXT: _write_bytes(folder / CARD_TEXT, card_text(facts).encode()),
            }
            digests[MLBOM] = _write_bytes(folder / MLBOM, _json(mlbom(facts, schema, digests)))
            signed = sign_statement(self._statement(papers, digests, promised), [self._ctx.key])
            digest = _write_bytes(folder / ATTESTATION, signed)
        write_archive(self._ctx.data.bundle_zip(run.run_id), target)
        return digest

    def _statement(self, papers: Papers, digests: Mapping[str, bytes], promised: PrivacyStatement) -> Statement:
        run, version = papers.run, papers.version
        predicate = {
            "federation": self._ctx.trust.federation,
            "study": run.study_id,
            "study_digest": run.study.digest().hex(),
            "run": run.run_id,
            "model": {"version": version.version, "model_hash": version.model_hash.hex()},
            "parameters_sha256": version.parameters_sha256.hex(),
            "window": version.window_id.hex(),
            "privacy": promised.model_dump(mode="json"),
        }
        return Statement(subjects=digests, predicate_type=MODEL_TYPE, predicate=predicate)

    async def _record(self, tx: Tx, papers: Papers, digest: bytes, promised: PrivacyStatement) -> None:
        run = papers.run
        await runs.save_attestation(tx, run.run_id, digest)
        event = ModelBundled(run_id=run.run_id, model=papers.version.ref, attestation_sha256=digest, privacy=promised)
        await self._ctx.post.record(
            tx, event, study=run.study_id, unique=message_id(run.run_id, event.type_name, digest)
        )


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write_bytes(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    return hashlib.sha256(content).digest()


def _write_model(path: Path, header: bytes, source: Path) -> bytes:
    """Header and parameters, piece by piece; returns the digest of the whole."""
    digest = hashlib.sha256(header)
    with source.open("rb") as reading, path.open("wb") as writing:
        writing.write(header)
        while piece := reading.read(COPY_BYTES):
            digest.update(piece)
            writing.write(piece)
    return digest.digest()


def write_archive(path: Path, folder: Path, more: Mapping[str, bytes] | None = None) -> None:
    """All files of a directory, and `more`, uncompressed: parameters do not compress. Takes the archive's place when it
    is whole."""
    working = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with zipfile.ZipFile(working, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for item in sorted(folder.iterdir()):
            archive.write(item, item.name)
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    sync_file(working)
    working.rename(path)
