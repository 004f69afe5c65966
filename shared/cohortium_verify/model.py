"""The signed model beside an audit bundle: it is the one on record, and a model of trees may be given to LightGBM."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from cohortium_messages import events
from cohortium_messages.governance import TrustDocument
from cohortium_messages.lightgbm import OBJECTIVES
from cohortium_messages.study import MulticlassLabel
from cohortium_messages.withdrawals import ModelRetired
from cohortium_protocol.attest import Statement, verify_statement
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import ProtocolError
from cohortium_protocol.logproof import RELEASE_PROOF
from cohortium_protocol.parameters import model_hash
from cohortium_protocol.release import RELEASE
from cohortium_protocol.trees.bins import Binning, CategoryBins
from cohortium_protocol.trees.text import MAX_BYTES, ModelText, TreeModelRefused, check_model_text
from cohortium_verify import rules
from cohortium_verify.bundle import MAX_JSON_BYTES
from cohortium_verify.log import Entry
from cohortium_verify.quorum import WITNESSES
from cohortium_verify.report import Check, Failure, failed, passed
from cohortium_verify.rules import Said, said

MODEL_TEXT: Final = "model.txt"
PREPROCESSING: Final = "preprocessing.json"
MOST_ROUNDS: Final = 5000
MOST_LEAVES: Final = 1024
"""No study can ask for larger trees, nor for more of them."""
_HEADER_BYTES: Final = 1 << 20

Bundled = Said[events.ModelBundled]


def check_model(path: Path, trust: TrustDocument, entries: Sequence[Entry]) -> Check:
    """The signed model beside the bundle is the one on record, and its files are the ones that were signed."""
    name = "model bundle"
    outcome = rules.outcome_notes(entries)
    bundled = {item.message.attestation_sha256: item for item in said(entries, events.ModelBundled)}
    if not path.exists():
        fact = "the log names a signed model, and none lies beside the bundle" if bundled else "no model was bundled"
        return passed(name, fact, outcome)
    raw = path.read_bytes()
    record = bundled.get(sha256(raw))
    if record is None:
        return failed(name, Failure("the model's attestation is not the one on record in this log"), notes=outcome)
    try:
        statement = verify_statement(raw, (trust.services.aggregator,), 1)
    except ProtocolError as error:
        return failed(name, Failure(f"the aggregator did not sign the model's attestation ({error})"), notes=outcome)
    failures = wrong_files(path.parent, statement)
    if not failures and MODEL_TEXT in statement.subjects:
        failures = list(_wrong_trees(path.parent, statement, record, entries))
    if failures:
        return failed(name, *failures, notes=outcome)
    covered = {*statement.subjects, path.name, RELEASE, RELEASE_PROOF, WITNESSES}
    extra = sorted(item.name for item in path.parent.iterdir() if item.name not in covered)
    unsigned = tuple(f"{item} lies beside the model and is not covered by its attestation" for item in extra)
    trees = "; the trees are whole and may be loaded" if MODEL_TEXT in statement.subjects else ""
    fact = f"{len(statement.subjects)} files are as the aggregator signed them, and on record (entry {record.index})"
    return passed(name, fact + trees, (*outcome, *unsigned, *_retired(record, entries)))


def _retired(record: Bundled, entries: Sequence[Entry]) -> Iterator[str]:
    """That the files are whole does not say that the model still stands."""
    for one in said(entries, ModelRetired):
        if (one.message.run_id, one.message.model) == (record.message.run_id, record.message.model):
            yield f"this model was retired after a withdrawal (entry {one.index}): it is to be used no more"


def wrong_files(folder: Path, statement: Statement) -> list[Failure]:
    """Every file of the statement that is not there as it was signed."""
    failures = []
    for name, digest in statement.subjects.items():
        if PurePosixPath(name).name != name:
            failures.append(Failure(f"the attestation names a file outside the model's folder: {name!r}"))
        elif not (folder / name).is_file():
            failures.append(Failure(f"{name} is missing from the model's folder"))
        elif _file_digest(folder / name) != digest:
            failures.append(Failure(f"{name} is not the file that was signed"))
    return failures


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _wrong_trees(folder: Path, statement: Statement, record: Bundled, entries: Sequence[Entry]) -> Iterator[Failure]:
    """What is wrong with a model of trees: its bins, its text, or that it is another than the version on record."""
    if PREPROCESSING not in statement.subjects:
        yield Failure(f"{MODEL_TEXT} is signed without {PREPROCESSING}, so its features mean nothing")
        return
    for name, most in ((MODEL_TEXT, MAX_BYTES), (PREPROCESSING, MAX_JSON_BYTES)):
        if (size := (folder / name).stat().st_size) > most:
            yield Failure(f"{name} has {size} bytes, more than {most}")
            return
    text, rules = (folder / MODEL_TEXT).read_bytes(), (folder / PREPROCESSING).read_bytes()
    if model_hash(sha256(text), rules) != record.message.model.model_hash:
        version = record.message.model.version
        yield Failure(f"{MODEL_TEXT} and {PREPROCESSING} are not what was released as version {version}", record.index)
    try:
        binning = Binning.from_canonical(rules)
    except (ValueError, RecursionError):
        yield Failure(f"{PREPROCESSING} is not a document of bins in its canonical form")
        return
    yield from _wrong_study(binning, record, entries)
    try:
        model = checked_trees(text, binning)
    except TreeModelRefused as refused:
        yield Failure(f"{MODEL_TEXT} must not be loaded: {refused}")
        return
    yield from _wrong_length(model, record, entries)


def checked_trees(text: bytes, binning: Binning) -> ModelText:
    """The text as a model of these features. Raises `TreeModelRefused`."""
    label = binning.label
    classes = len(label.levels) if isinstance(label, MulticlassLabel) else 1
    fitting, header = OBJECTIVES[label.type], text[:_HEADER_BYTES]
    named = [objective for objective in fitting if b"\nobjective=" + objective.encode() in header]
    return check_model_text(
        text,
        features=binning.feature_names(),
        classes=classes,
        max_trees=MOST_ROUNDS * classes,
        max_leaves=MOST_LEAVES,
        objective=(named or fitting)[0],
        categories={feature.name: feature.codes for feature in binning.features if isinstance(feature, CategoryBins)},
    )


def _wrong_study(binning: Binning, record: Bundled, entries: Sequence[Entry]) -> Iterator[Failure]:
    run_id = record.message.run_id
    for submitted in said(entries, events.StudySubmitted):
        message = submitted.message
        if message.run_id == run_id and (message.study_id, message.study_digest) != (
            binning.study_id,
            binning.study_digest,
        ):
            yield Failure("the model's bins are of another study version than its run", submitted.index)
    if binning.refine:
        yield Failure(f"{PREPROCESSING} has bins that were still to be refined, and a model was grown on them")


def _wrong_length(model: ModelText, record: Bundled, entries: Sequence[Entry]) -> Iterator[Failure]:
    """A model grown in sessions has the rounds that stood when it was released; early stopping may leave fewer."""
    windows = rules.windows_of(entries)
    for released in said(entries, events.ModelReleased):
        message = released.message
        if (message.run_id, message.model) != (record.message.run_id, record.message.model):
            continue
        window = windows[message.window_id]
        for session in window.summed:
            trees = session.message.trees
            paused = any(ended.message.state == "PAUSED" for ended in window.ended)
            if model.rounds > trees or (paused and model.rounds != trees):
                text = f"{MODEL_TEXT} has {model.rounds} boosting rounds, and {trees} stood when it was released"
                yield Failure(text, session.index)
