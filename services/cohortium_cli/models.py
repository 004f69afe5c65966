"""`cohortium model`: fetch the model of a run, release it as an officer, check it before it is used."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from cohortium_cli.archives import unpack
from cohortium_cli.model_use import cosigned, read_table, trusted, write_scores
from cohortium_cli.operator import Operator
from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile, RunIdArgument
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show
from cohortium_cli.runs import ask, checked_run
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_messages.privacy_test import PrivacyTest
from cohortium_platform.identity import read_key
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.release import ATTESTATION, RELEASE, Candidate, Signed, sign_release
from cohortium_protocol.scoring import RowsRefused
from cohortium_verify.loading import load_model, verify_model
from cohortium_verify.model import wrong_files
from cohortium_verify.not_loaded import NotLoaded
from cohortium_verify.release import check_logged, release_beside, roles_of, told

_ANY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
model_app = typer.Typer(no_args_is_help=True, help="Fetch the model that a run made; release it; check it.")
ModelPath = Annotated[Path, typer.Argument(help="The model: a ZIP archive of `model export`, or its folder.")]
GovernanceKeys = Annotated[
    list[str] | None, typer.Option("--governance-key", help="An officer's public key that you trust (hex); repeat.")
]
Manifests = Annotated[
    list[Path] | None, typer.Option(help="A membership manifest that you know of, so that no older one counts; repeat.")
]
QuorumOption = Annotated[
    int | None, typer.Option(min=0, help="Hospitals that must have cosigned; otherwise the study's. 0: not asked.")
]
LogOption = Annotated[
    Path | None, typer.Option(help="A later audit bundle of the study: a model that it retires or follows is refused.")
]


@model_app.command()
def export(
    run_id: RunIdArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, a ZIP archive.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Fetch the signed model of a finished run: weights or trees, preprocessing, card, attestation, and its release.

    Without a release it is a candidate, and is called so.
    """
    if out.is_dir():
        fail(f"--out {out} is a folder; name the ZIP file to write", code=USAGE)
    archive, trust = ask(operator, lambda client: _fetch(client, checked_run(run_id)))
    with _unpacked(archive) as folder:
        candidate, signed = _judged(folder, trust, lambda study: [ask(operator, lambda client: client.manifest(study))])
    lacking = ""
    if signed is not None:
        archive, lacking = ask(operator, lambda client: cosigned(client, archive, str(candidate.bound["study"])))
    with friendly():
        out.write_bytes(archive)
    state = "candidate" if signed is None else "released"
    facts = {"run_id": run_id, "file": str(out), "bytes": len(archive), "state": state, "cosigned": not lacking}

    def human() -> None:
        done(f"{out}: {len(archive):,} bytes")
        say(f"  {_words(signed)}")
        if lacking:
            say(f"  hospitals have not cosigned the log with its release ({lacking})")
            say("  loaders refuse it without; export it again when they are back")
        if signed is None:
            say(f"  an officer releases it: cohortium model release {candidate.bound['run']} --key KEY --name NAME")

    show(facts, as_json=as_json, human=human)


@model_app.command()
def release(
    run_id: RunIdArgument,
    key: Annotated[Path | None, typer.Option(help="The officer's key file.")] = None,
    name: Annotated[str | None, typer.Option(help="The officer's printed name.")] = None,
    signed: Annotated[
        Path | None,
        typer.Option(help="What was signed elsewhere, as by `site sign-release`; instead of --key."),
    ] = None,
    privacy_test: Annotated[
        Path | None, typer.Option(help="What a membership-inference test of the model found; signed with the release.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write what is signed so far.")] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Release a run's model for use, as a governance officer who has reviewed it.

    Where the study asks for hospitals' signatures too, the model stays a candidate until enough are handed over.
    """
    if (key is None) == (signed is None) or (key is not None and not name):
        fail("give --key and --name (an officer), or --signed (what was signed elsewhere)", code=USAGE)
    if privacy_test is not None and key is None:
        fail("--privacy-test is signed by an officer: give it with --key", code=USAGE)
    test = None if privacy_test is None else _read(PrivacyTest, privacy_test, "privacy test")
    with friendly(code=USAGE):
        officer = None if key is None else read_key(key)
        envelope = b"" if signed is None else signed.read_bytes()
    if officer is not None:
        archive, trust = ask(operator, lambda client: _fetch(client, checked_run(run_id)))
        if officer.public not in trust.governance_keys:
            fail(f"{key} is not the key of a governance officer of {trust.federation}", code=USAGE)
        with _unpacked(archive) as folder:
            candidate, _ = _judged(folder, trust, lambda _: [], release=False)
        try:
            envelope = sign_release(candidate, name or "", datetime.now(UTC), officer, test)
        except AttestationRefused as refused:
            fail(f"{privacy_test} cannot be signed with this release: {refused}", code=USAGE)
    try:
        _ANY.validate_json(envelope)
    except ValidationError:
        fail(f"{signed} is no signed release; `cohortium site sign-release` writes one", code=USAGE)
    view = ask(operator, lambda client: client.sign_release(checked_run(run_id), envelope))
    if out is not None:
        with friendly():
            out.write_text(json.dumps(view["envelope"], indent=1) + "\n", encoding="utf-8")
    words = "the model is released" if view["state"] == "released" else f"waits for {' and '.join(view['missing'])}"
    show(view, as_json=as_json, human=lambda: done(f"{run_id}: {words}"))


@model_app.command()
def check(
    model: ModelPath,
    trust: Annotated[Path, typer.Option(help="The federation's trust document, trust.json.")],
    governance_key: GovernanceKeys = None,
    manifest: Manifests = None,
    candidate: Annotated[bool, typer.Option("--candidate", help="Accept a model that nobody released.")] = False,
    quorum: QuorumOption = None,
    log: LogOption = None,
    as_json: Json = False,
) -> None:
    """Check a model before it is used, as a loader does.

    Its files and signatures, who released it, that a quorum of hospitals saw the log with it, and that its tensors or
    trees may be read.

    Exit codes: 0 it may be used, 1 it may not, 2 it cannot be read.
    """
    held = trusted(trust, governance_key, manifest)
    document, pin, members = held.document, held.pin, list(held.manifests)
    with friendly(code=USAGE):
        archive = model.read_bytes() if model.is_file() else None
    if archive is None:
        judged, signed = _judged(model, document, lambda _: members, pin=pin)
    else:
        with _unpacked(archive) as folder:
            judged, signed = _judged(folder, document, lambda _: members, pin=pin)
    facts = {**judged.bound, "state": "candidate" if signed is None else "released", "words": _words(signed)}
    if signed is None and not candidate:
        fail(f"{model}: {_words(signed)}; give --candidate to accept it so")
    if signed is not None:
        try:
            facts["witnesses"] = list(verify_model(model, held, quorum=quorum, log=log).witnesses)
        except NotLoaded as refused:
            fail(f"{model} must not be used: {refused}")
    show(facts, as_json=as_json, human=lambda: done(f"{model}: {_words(signed)}"))


@model_app.command()
def predict(
    model: ModelPath,
    data: Annotated[Path, typer.Option(help="Patients: a CSV file with the study's columns.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The CSV file to write, with a line of scores for each row.")
    ],
    trust: Annotated[Path | None, typer.Option(help="The federation's trust document, trust.json.")] = None,
    governance_key: GovernanceKeys = None,
    manifest: Manifests = None,
    quorum: QuorumOption = None,
    log: LogOption = None,
    unsafe_dev: Annotated[
        bool, typer.Option("--unsafe-dev", help="Development only: load files that nobody signed or released.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score patients with a released model. A model that does not verify is not loaded.

    Exit codes: 0 scored, 1 the model or a row is refused, 2 it cannot be read.
    """
    if trust is None and not unsafe_dev:
        fail("give --trust, the federation's trust document; --unsafe-dev loads what nobody signed", code=USAGE)
    if data.exists() and out.exists() and out.samefile(data):
        fail(f"--out {out} is --data: the scores would take the place of the patients; name another file", code=USAGE)
    held = None if trust is None else trusted(trust, governance_key, manifest)
    table = read_table(data)
    try:
        loaded = load_model(model, held, quorum=quorum, log=log, unsafe_dev=unsafe_dev)
        scores = loaded.predict(table)
    except NotLoaded as refused:
        fail(f"{model} is not loaded: {refused}")
    except RowsRefused as refused:
        fail(f"{data}: {refused}")
    with friendly():
        write_scores(out, loaded.schema, scores)
    facts = {"file": str(out), "rows": len(scores), "state": loaded.state, "output": loaded.schema.output.kind}
    show(facts, as_json=as_json, human=lambda: done(f"{out}: {len(scores):,} rows, by a model that is {loaded.state}"))


def _words(signed: Signed | None) -> str:
    return "a candidate: nobody has released it for use" if signed is None else told(signed)


async def _fetch(client: Operator, run_id: str) -> tuple[bytes, TrustDocument]:
    return await client.model_bundle(run_id), await client.trust()


@contextmanager
def attested(model: Path, trust: TrustDocument) -> Iterator[tuple[Path, Candidate]]:
    """The folder of a model (an archive, or its folder), released or not, once the aggregator's signature over its
    files holds; leaves with a message if it does not."""
    with friendly(code=USAGE):
        archive = model.read_bytes() if model.is_file() else None
    if archive is None:
        yield model, _judged(model, trust, lambda _: [], release=False)[0]
        return
    with _unpacked(archive) as folder:
        yield folder, _judged(folder, trust, lambda _: [], release=False)[0]


@contextmanager
def _unpacked(archive: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cohortium-model-") as made:
        with friendly():
            unpack(archive, Path(made) / "model")
        yield Path(made) / "model"


def _judged(
    folder: Path,
    trust: TrustDocument,
    manifests: Callable[[str], list[Manifest]],
    *,
    pin: GovernancePin | None = None,
    release: bool = True,
) -> tuple[Candidate, Signed | None]:
    """The model in a folder, and its release; leaves with a message if either is not what it says. `manifests` are
    asked for by the study's name, if there is a release."""
    path = folder / ATTESTATION
    if not path.is_file():
        fail(f"{folder}: no {ATTESTATION} in it, so this is no model of a federation", code=USAGE)
    try:
        candidate = Candidate.of(path.read_bytes(), trust.services.aggregator)
        wrong = wrong_files(folder, candidate.statement)
        if wrong:
            fail(f"the model is not the one that was signed: {wrong[0]}")
        if not release or not (folder / RELEASE).exists():
            return candidate, None
        members = manifests(str(candidate.bound["study"]))
        signed = release_beside(folder, candidate, roles_of(trust, pin or GovernancePin.of(trust), members))
        check_logged(folder, trust, str(candidate.bound["study"]))
        return candidate, signed
    except AttestationRefused as refused:
        fail(f"the model is not what it says it is: {refused}")


def _read(kind: Any, path: Path, what: str) -> Any:
    try:
        return kind.model_validate_json(read_text(path, what))
    except ValidationError as error:
        fail(f"{path} is no {what}: {error.errors()[0]['msg']}", code=USAGE)
