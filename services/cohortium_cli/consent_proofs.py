"""`cohortium consent prove` and `check-proof`: who was in a cohort, for the hospital's own auditor."""

import os
from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import TypeAdapter, ValidationError

from cohortium_cli.consent import consent_app
from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show
from cohortium_cli.site import ConfigFile, StudyName, at_site
from cohortium_messages.consent import ConsentFile, Effect, Record
from cohortium_messages.ids import Bytes32
from cohortium_protocol.cohorts import CohortProof, CohortProofRefused, check_proof
from cohortium_protocol.consent.signing import record_digest

PROOFS: TypeAdapter[tuple[CohortProof, ...]] = TypeAdapter(tuple[CohortProof, ...])
_ROOT: TypeAdapter[bytes] = TypeAdapter(Bytes32)
NOT_PROVEN = "NOT PROVEN"


@consent_app.command()
def prove(
    study: StudyName,
    config: ConfigFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, for the auditor's eyes only.")],
    person: Annotated[
        str, typer.Option(prompt="Person", hide_input=True, help="As in the table; left out, it is asked for unseen.")
    ],
    as_json: Json = False,
) -> None:
    """In the hospital: prove that a person was, or was not, in each cohort of a study that was used.

    The file names the person and holds the cohorts' salts: with it, anybody can ask about anybody. Of cohorts that
    counted rows nothing can be proved; how many there are is said.
    """
    proofs = at_site(config, lambda site: site.prove(study, person))
    of_rows = at_site(config, lambda site: site.row_cohorts(study))
    with friendly():
        _write_private(out, PROOFS.dump_json(proofs, indent=1))
    there = sum(proof.present for proof in proofs)
    words = f"{out}: the person was in {there} of {len(proofs)} cohorts; check with `cohortium consent check-proof`"
    if of_rows:
        words += f"; {of_rows} more count rows, for the table named nobody then: look in the table itself"
    facts = {"file": str(out), "cohorts": len(proofs), "present": there, "of_rows": of_rows}
    show(facts, as_json=as_json, human=lambda: done(words))


@consent_app.command()
def exclude(
    study: StudyName,
    config: ConfigFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The consent file to write, for people to sign.")],
    person: Annotated[
        str, typer.Option(prompt="Person", hide_input=True, help="As in the table; left out, it is asked for unseen.")
    ],
    effect: Annotated[
        str, typer.Option(help="What is asked for the models: stop_future, retrain or retire; officers decide.")
    ] = "stop_future",
    as_json: Json = False,
) -> None:
    """In the hospital: a patient left. Write the withdrawal that says so.

    It names the first round that used their rows (or whose cohort counted rows, whosever), and nothing about who.
    Somebody of the hospital signs it (`consent sign --deed submit`), and `consent add` sends it.

    That the patient is excluded from now on follows from the consent source alone, not from this file.
    """
    if effect not in get_args(Effect):
        fail(f"--effect {effect}: one of {', '.join(get_args(Effect))}", code=USAGE)
    asked: Effect = effect  # type: ignore[assignment]
    document = at_site(config, lambda site: site.exclusion(study, person, asked))
    with friendly(code=USAGE):
        out.write_text(ConsentFile(records=(Record(document=document),)).model_dump_json(indent=2) + "\n")
    facts = {"file": str(out), "record": record_digest(document).hex(), "from_round": document.from_round}
    words = f"{out}: exclusion needed from round {document.from_round}; to be signed, and added"
    show(facts, as_json=as_json, human=lambda: done(words))


@consent_app.command("check-proof")
def check(
    proof: Annotated[Path, typer.Argument(help="What `cohortium consent prove` wrote.")],
    root: Annotated[list[str], typer.Option(help="Roots of consent_snapshot events of the audit log (hex); repeat.")],
    as_json: Json = False,
) -> None:
    """Hold proofs against the audit log's commitments, offline. Exit codes: 0 all true, 1 one is not, 2 unreadable."""
    try:
        proofs = PROOFS.validate_json(read_text(proof, "proof"))
        roots = {_ROOT.validate_python(text) for text in root}
    except ValidationError as error:
        fail(f"{proof} or --root is not as it must be ({error.error_count()} faults)", code=USAGE)
    verdicts = [_verdict(one, roots) for one in proofs]
    wrong = sum(words.startswith(NOT_PROVEN) for words in verdicts)

    def human() -> None:
        for place, words in enumerate(verdicts):
            say(f"{place}: {words}")

    show({"proofs": len(proofs), "wrong": wrong, "verdicts": verdicts}, as_json=as_json, human=human)
    raise typer.Exit(1 if wrong else 0)


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # of a file that was there, too
        file.write(content)


def _verdict(proof: CohortProof, roots: set[bytes]) -> str:
    try:
        if proof.root not in roots:
            raise CohortProofRefused(f"its root {proof.root.hex()} is none of those that you gave")
        check_proof(proof, proof.root)
    except CohortProofRefused as refused:
        return f"{NOT_PROVEN}: {refused}"
    return f"{proof.person} {'was' if proof.present else 'was not'} in cohort {proof.context.hex()}"
