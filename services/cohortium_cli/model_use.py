"""What `cohortium model` needs beside its commands: whom to trust, what hospitals cosigned, tables in and out."""

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium_cli.operator import Operator, OperatorError
from cohortium_cli.output import USAGE, fail, friendly
from cohortium_messages.model_schema import ModelSchema
from cohortium_protocol.errors import LogRefused
from cohortium_protocol.logproof import RELEASE_PROOF, LogProof
from cohortium_verify.loading import Trust
from cohortium_verify.not_loaded import TrustRefused
from cohortium_verify.quorum import WITNESSES, ReleaseWitnesses


def trusted(trust: Path, governance_keys: Sequence[str] | None, manifests: Sequence[Path] | None) -> Trust:
    """Whom the reader trusts; leaves with a message unless the officers signed it."""
    try:
        held = Trust.read(trust, governance_keys=governance_keys or (), manifests=manifests or ())
    except TrustRefused as refused:
        fail(str(refused), code=USAGE)
    try:
        held.check()
    except TrustRefused as refused:
        fail(str(refused))
    return held


async def cosigned(client: Operator, archive: bytes, study: str) -> tuple[bytes, str]:
    """A released model's archive with the proof that a quorum of hospitals cosigned, and who they are; or as it is,
    and what is lacking. The entry that is proven stays the same."""
    with zipfile.ZipFile(io.BytesIO(archive)) as reading:
        files = {name: reading.read(name) for name in reading.namelist()}
    try:
        proof = LogProof.parse(files[RELEASE_PROOF].decode())
        newer = LogProof.parse(await client.witnessed_proof(json.loads(proof.entry)["event"]["id"]))
        if newer.entry != proof.entry:
            return archive, "the audit service proved another entry"
        manifest, named = await client.manifest(study), await client.announcements(study)
    except (OperatorError, LogRefused) as error:
        return archive, str(error)
    files[RELEASE_PROOF] = newer.text().encode()
    files[WITNESSES] = ReleaseWitnesses(manifest=manifest, announcements=tuple(named)).model_dump_json().encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as writing:
        for name, content in files.items():
            writing.writestr(name, content)
    return written.getvalue(), ""


def read_table(path: Path) -> Mapping[str, Sequence[str]]:
    """A CSV file by columns; leaves with a message if it is none."""
    try:
        with friendly(code=USAGE), path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        fail(f"{path} is no table: {error}; save it as CSV in UTF-8, with commas", code=USAGE)
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not rows:
        fail(f"{path} has no rows to score: it needs a header, and a line for each patient", code=USAGE)
    if twice is not None:
        fail(f"{path} is no table: two columns are called {twice!r}; remove or rename one", code=USAGE)
    wrong = next((place for place, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if wrong is not None:
        fail(f"{path} is no table: row {wrong} has not as many cells as the header", code=USAGE)
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def write_scores(path: Path, schema: ModelSchema, scores: NDArray[np.float64]) -> None:
    """A line for each row, in the table's order: one score, or one for each class."""
    header = schema.output.classes if scores.ndim == 2 else (schema.output.kind,)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in scores.reshape(len(scores), -1):
            writer.writerow([repr(float(value)) for value in row])
