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
from cohortium_cli.operator import Operator
from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile, RunIdArgument
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show
from cohortium_cli.runs import ask, checked_run
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_platform.identity import read_key
from cohortium_protocol.documents import GovernancePin, verify_trust
from cohortium_protocol.errors import AttestationRefused, ProtocolError
from cohortium_protocol.release import ATTESTATION, RELEASE, Candidate, Signed, sign_release
from cohortium_verify.model import wrong_files
from cohortium_verify.release import check_logged, release_beside, roles_of, told

_ANY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
model_app = typer.Typer(no_args_is_help=True, help="Fetch the model that a run made; release it; check it.")
ModelPath = Annotated[Path, typer.Argument(help="The model: a ZIP archive of `model export`, or its folder.")]


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
    with friendly():
        out.write_bytes(archive)
    state = "candidate" if signed is None else "released"
    facts = {"run_id": run_id, "file": str(out), "bytes": len(archive), "state": state}

    def human() -> None:
        done(f"{out}: {len(archive):,} bytes")
        say(f"  {_words(signed)}")
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write what is signed so far.")] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Release a run's model for use, as a governance officer who has reviewed it.

    Where the study asks for hospitals' signatures too, the model stays a candidate until enough are handed over.
    """
    if (key is None) == (signed is None) or (key is not None and not name):
        fail("give --key and --name (an officer), or --signed (what was signed elsewhere)", code=USAGE)
    with friendly(code=USAGE):
        officer = None if key is None else read_key(key)
        envelope = b"" if signed is None else signed.read_bytes()
    if officer is not None:
        archive, trust = ask(operator, lambda client: _fetch(client, checked_run(run_id)))
        if officer.public not in trust.governance_keys:
            fail(f"{key} is not the key of a governance officer of {trust.federation}", code=USAGE)
        with _unpacked(archive) as folder:
            candidate, _ = _judged(folder, trust, lambda _: [], release=False)
        envelope = sign_release(candidate, name or "", datetime.now(UTC), officer)
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
    governance_key: Annotated[
        list[str] | None, typer.Option("--governance-key", help="An officer's public key that you trust (hex); repeat.")
    ] = None,
    manifest: Annotated[
        list[Path] | None, typer.Option(help="A membership manifest, where hospitals sign releases; repeat.")
    ] = None,
    candidate: Annotated[bool, typer.Option("--candidate", help="Accept a model that nobody released.")] = False,
    as_json: Json = False,
) -> None:
    """Check a model before it is used: its files, the aggregator's signature, and who released it.

    Exit codes: 0 it may be used, 1 it may not, 2 it cannot be read.
    """
    document = _read(TrustDocument, trust, "trust document")
    members = [_read(Manifest, file, "manifest") for file in manifest or []]
    keys = frozenset(bytes.fromhex(one) for one in governance_key or [])
    pin = GovernancePin(keys, min(document.threshold, len(keys))) if keys else GovernancePin.of(document)
    try:
        verify_trust(document, pin)
    except ProtocolError as error:
        fail(f"{trust} is not signed by the officers ({error}); compare their keys")
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
    show(facts, as_json=as_json, human=lambda: done(f"{model}: {_words(signed)}"))


def _words(signed: Signed | None) -> str:
    return "a candidate: nobody has released it for use" if signed is None else told(signed)


async def _fetch(client: Operator, run_id: str) -> tuple[bytes, TrustDocument]:
    return await client.model_bundle(run_id), await client.trust()


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
