"""For the hospital's patients: who was in a cohort, who left, what came of it, and what privacy costs a model."""

import argparse
import asyncio
import getpass
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from cohortium_connector.commands import LocalSite
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.training.attacks.child import run_child
from cohortium_connector.training.jobs import DataSource, NamedSource
from cohortium_connector.training.privacy_report import Calibrated, CalibrateJob, Refused, calibration_words
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.consent import ConsentFile, Effect, Record
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_messages.study_file import StudyFileError, parse_study
from cohortium_protocol.cohorts import CohortProof
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import ReceiptFile, ReceiptRefused, verify_receipt

T = TypeVar("T")
Act = Callable[[argparse.Namespace], int]
Add = Callable[[str, str, Act], argparse.ArgumentParser]
DONE, FAILED, USAGE = 0, 1, 2
LEAST_SIGNATURES = 2
_PROOFS: TypeAdapter[tuple[CohortProof, ...]] = TypeAdapter(tuple[CohortProof, ...])


def add_commands(add: Add) -> None:
    """The commands of this module; `add` makes one that knows `--config`."""
    prove = add(
        "consent-prove", "Prove that a person was, or was not, in each cohort of a study that was used.", _prove
    )
    prove.add_argument("--out", "-o", required=True, type=Path, help="for the auditor's eyes only: it names the person")
    exclude = add("consent-exclude", "A patient left: write the withdrawal that says so, for people to sign.", _exclude)
    exclude.add_argument("--out", "-o", required=True, type=Path, help="the consent file to write; it names nobody")
    add_effect(exclude)
    for command in (prove, exclude):
        command.add_argument("study", help="the study's name, or the beginning of its digest")
        command.add_argument("--person", help="as in the table; left out, it is asked for unseen")
    receipt = add("consent-verify-receipt", "Check a withdrawal's receipt, offline; exit code 1 if refuted.", _receipt)
    receipt.add_argument("file", type=Path, help="what the operator handed over")
    receipt.add_argument("--governance-key", action="append", required=True, help="of an officer, hex; repeat")
    calibrate = add(
        "privacy-calibrate", "What a study's recipe reaches at each epsilon, on tables named here.", _calibrate
    )
    calibrate.add_argument("study", type=Path, help="the study file, with a privacy block of mode local or distributed")
    calibrate.add_argument("--site", action="append", required=True, metavar="NAME=FILE", help="a table; repeat")
    calibrate.add_argument("--epsilon", action="append", type=float, help="a promise to look at; repeat")
    calibrate.add_argument("--repeats", type=int, default=3, help="runs at each epsilon (default 3)")
    calibrate.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    words = "if the process cannot give up its network: stop, or only warn"
    calibrate.add_argument("--isolation", choices=("require", "warn"), default="require", help=words)
    calibrate.add_argument("--out", "-o", type=Path, default=Path("privacy-calibration.json"), help="the curve, JSON")


def add_effect(command: argparse.ArgumentParser) -> None:
    """What is asked for the models that learnt from who leaves."""
    said = "what is asked for the models; officers decide"
    command.add_argument("--effect", choices=get_args(Effect), default="stop_future", help=said)


def _prove(options: argparse.Namespace) -> int:
    person = _person(options)
    proofs = _here(options, lambda site: site.prove(options.study, person))
    of_rows = _here(options, lambda site: site.row_cohorts(options.study))
    descriptor = os.open(options.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(_PROOFS.dump_json(proofs, indent=1))
    there = sum(proof.present for proof in proofs)
    _say(f"{options.out}: the person was in {there} of {len(proofs)} cohorts")
    if of_rows:
        _say(f"{of_rows} more count rows, for the table named nobody then: look in the table itself")
    return DONE


def _exclude(options: argparse.Namespace) -> int:
    person = _person(options)
    document = _here(options, lambda site: site.exclusion(options.study, person, options.effect))
    file = ConsentFile(records=(Record(document=document),))
    options.out.write_text(file.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _say(f"{options.out}: exclusion needed from round {document.from_round}; sign it (consent-sign --deed submit),")
    _say("then consent-add. That the patient is excluded from now on follows from the consent source alone.")
    return DONE


def _receipt(options: argparse.Namespace) -> int:
    try:
        read = ReceiptFile.model_validate_json(options.file.read_bytes())
        keys = frozenset(bytes.fromhex(text) for text in options.governance_key)
    except (OSError, ValueError):  # pydantic's errors are values' errors, too
        problem = f"{options.file} is no receipt, or a --governance-key is not 64 hexadecimal digits"
        raise ConfigurationError(problem) from None
    try:
        proven = verify_receipt(read, GovernancePin(keys, max(read.trust.threshold, min(LEAST_SIGNATURES, len(keys)))))
    except ReceiptRefused as refused:
        _say(f"NOT PROVEN: {refused}")
        return FAILED
    facts = proven.facts
    effect = facts["decision"]["effect"]
    _say(f"withdrawal {facts['withdrawal'][:12]} from {facts['study']} ({facts['type']}), decided: {effect}")
    _say(f"in the log of {facts['federation']}: recorded as entry {proven.recorded_at}, proven as {proven.proven_at}")
    return DONE


def _calibrate(options: argparse.Namespace) -> int:
    """Without a network, as training is. It charges no account, so it is for public or old data: it reads only files
    that are named, never the hospital's datasets."""
    try:
        study = parse_study(options.study.read_text(encoding="utf-8"), file=str(options.study))
    except (OSError, StudyFileError) as error:
        raise ConfigurationError(str(error)) from None
    if not isinstance(study.privacy, LocalPrivacy | DistributedPrivacy):
        raise ConfigurationError(f"{options.study}: privacy.mode is {study.privacy.mode}; name local or distributed")
    fields: dict[str, Any] = {"epsilons": tuple(options.epsilon)} if options.epsilon else {}
    sites, privacy = tuple(_site(text) for text in options.site), study.privacy
    try:
        job = CalibrateJob(
            study=study, sites=sites, privacy=privacy, repeats=options.repeats, seed=options.seed, **fields
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    answer = run_child(job, threads=1, isolation=options.isolation, say=_progress)
    if not isinstance(answer, Calibrated):
        sys.stderr.write(f"error: {answer.text if isinstance(answer, Refused) else answer.answer}\n")
        return FAILED
    options.out.write_text(answer.report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for sentence in calibration_words(answer.report):
        _say(f"- {sentence}")
    _say(f"{options.out}: the curve")
    return DONE


def _site(text: str) -> NamedSource:
    name, _, file = text.partition("=")
    if not name or not file:
        raise ConfigurationError(f"--site {text}: expected NAME=FILE, such as --site old=2019.csv")
    return NamedSource(name=name, source=DataSource(path=str(Path(file).resolve())))


def _person(options: argparse.Namespace) -> str:
    """Never on a line that the shell keeps, unless someone wrote it there."""
    return str(options.person) if options.person is not None else getpass.getpass("Person: ")


def _here(options: argparse.Namespace, ask: Callable[[LocalSite], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with LocalSite.open(ConnectorSettings.load(options.config)) as site:
            return await ask(site)

    return asyncio.run(inside())


def _progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
