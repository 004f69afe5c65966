"""What a run promises about its patients: the same in the log, in the signed model and in the study that was approved,
and paid for by the hospitals' own ledgers.

The model's folder holds the study, whose digest is on record. So the promise can be worked out again here, where
`dp-accounting` is installed; without it, what the study itself says is compared.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cohortium_messages import events
from cohortium_messages.governance import TrustDocument
from cohortium_messages.ids import RunId
from cohortium_messages.ledger import LedgerRecorded
from cohortium_messages.privacy import NoPrivacy, PrivacyStatement, SitePrivacy
from cohortium_messages.study import Study
from cohortium_privacy.study_plans import accountant_installed, statement_of
from cohortium_protocol.attest import Statement, verify_statement
from cohortium_protocol.encoding import sha256
from cohortium_protocol.errors import ProtocolError
from cohortium_verify.bundle import MAX_JSON_BYTES
from cohortium_verify.ledger import wrong_charges
from cohortium_verify.log import Entry
from cohortium_verify.report import Check, Failure
from cohortium_verify.rules import Said, said, verdict

NAME: Final = "privacy promise"
STUDY: Final = "study.json"
CARD: Final = "card.json"
CLOSE: Final = 1e-3
"""Relative difference of what two releases of the accountant may find."""
_NUMBER: Final = re.compile(r"\d+(\.\d+)?(e-?\d+)?")

Bundled = Said[events.ModelBundled]


def check_privacy(attestation: Path, trust: TrustDocument, entries: Sequence[Entry]) -> Check:
    """Every run's promise is one and the same wherever it is written, and follows from its study; no ledger statement
    contradicts another, or charges less or more than the study's plan."""
    failures: list[Failure] = []
    notes: list[str] = []
    raw = attestation.read_bytes() if attestation.exists() else None
    studies: dict[RunId, Study] = {}
    promised: dict[RunId, PrivacyStatement | None] = {}
    for bundled in said(entries, events.ModelBundled):
        promised[bundled.message.run_id] = bundled.message.privacy
        if raw is None or sha256(raw) != bundled.message.attestation_sha256:
            continue
        try:
            signed = verify_statement(raw, (trust.services.aggregator,), 1)
        except ProtocolError:
            continue  # which the check of the model says
        study = _study(attestation.parent, signed)
        if study is not None:
            studies[bundled.message.run_id] = study
        failures += _wrong_promise(attestation.parent, signed, bundled, study, entries)
    failures += _unpromised(entries, promised)
    ledgers = wrong_charges(entries, studies)
    failures += ledgers.failures
    if any(not isinstance(study.privacy, NoPrivacy) for study in studies.values()) and not accountant_installed():
        notes.append("dp-accounting is not installed, so epsilon was not worked out again from the study")
    return verdict(NAME, f"{_told(promised)}; {ledgers.fact}", failures, (*notes, *ledgers.notes))


def _told(promised: Mapping[RunId, PrivacyStatement | None]) -> str:
    private = [one for one in promised.values() if one is not None and one.mode != "none"]
    if not private:
        return "nothing is promised"
    words = (
        f"epsilon {one.epsilon:g} at delta {one.delta:g} for each {one.unit} ({one.mode}, {one.accountant})"
        for one in private
        if one.epsilon is not None and one.delta is not None
    )
    return ", ".join(words)


def _wrong_promise(
    folder: Path, signed: Statement, bundled: Bundled, study: Study | None, entries: Sequence[Entry]
) -> Iterator[Failure]:
    promise, at = bundled.message.privacy, bundled.index
    logged = None if promise is None else promise.model_dump(mode="json")
    yield from (Failure(f"{text}, and the log {log}", at) for text, log in _differences("attestation", signed, logged))
    if logged is not None and CARD in signed.subjects:
        yield from (Failure(f"{text}, and the log {log}", at) for text, log in _on_card(folder, logged))
    if study is None:
        if promise is not None and promise.mode != "none":
            yield Failure(f"the model is signed without {STUDY}, so nothing shows that its promise is the study's", at)
        return
    digests = {one.message.study_digest for one in said(entries, events.StudySubmitted) if _same_run(one, bundled)}
    if study.digest() not in digests:
        yield Failure(f"{STUDY} is another study version than the one that was submitted", at)
    elif promise is None:
        if not isinstance(study.privacy, NoPrivacy):
            yield Failure(f"the study asks for privacy in mode {study.privacy.mode}, and no promise is on record", at)
    else:
        yield from (Failure(text, at) for text in wrong_statement(promise, study))


def _same_run(submitted: Said[events.StudySubmitted], bundled: Bundled) -> bool:
    return submitted.message.run_id == bundled.message.run_id


def _differences(name: str, signed: Statement, logged: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    told = signed.predicate.get("privacy")
    if told is None or logged is None:
        if told is not logged:
            yield f"the {name} {'has no promise' if told is None else 'has one'}", "differs"
        return
    told = told if isinstance(told, dict) else {}
    for field in sorted(told.keys() | logged.keys()):
        if told.get(field) != logged.get(field):
            yield f"the {name} says {field} {told.get(field)!r}", f"{logged.get(field)!r}"


def _on_card(folder: Path, logged: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    card = _json(folder / CARD)
    told = card.get("privacy") if isinstance(card, dict) else None
    if not isinstance(told, dict):
        yield "the card has no promise", "has one"
        return
    for field, value in logged.items():
        if told.get(field) != value:
            yield f"the card says {field} {told.get(field)!r}", f"{value!r}"


def wrong_statement(promise: PrivacyStatement, study: Study) -> Iterator[str]:
    """How a promise is not the one that the study makes: every field that differs."""
    privacy = study.privacy
    if promise.mode != privacy.mode:
        yield f"the promise is of mode {promise.mode}, and the study of mode {privacy.mode}"
        return
    if isinstance(privacy, NoPrivacy):
        return
    if accountant_installed():
        try:
            found = statement_of(study)
        except ValueError as impossible:
            yield f"the study's promise cannot be kept: {impossible}"
            return
        yield from _not_worked_out(promise, found)
        return
    wanted = {
        "unit": "hospital" if isinstance(privacy, SitePrivacy) else "patient",
        "accountant": "rdp",
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "clip": privacy.clip,
    }
    for field, value in wanted.items():
        if getattr(promise, field) != value:
            yield f"the promise says {field} {getattr(promise, field)!r}, and the study {value!r}"


def _not_worked_out(promise: PrivacyStatement, found: PrivacyStatement) -> Iterator[str]:
    for field in PrivacyStatement.model_fields:
        told, wanted = getattr(promise, field), getattr(found, field)
        if not _alike(told, wanted):
            yield f"the promise says {field} {told!r}, and the study comes to {wanted!r}"


def _alike(told: object, wanted: object) -> bool:
    """The same, but for the last digits of what an accountant computes."""
    if isinstance(told, float) and isinstance(wanted, float):
        return math.isclose(told, wanted, rel_tol=CLOSE)
    if isinstance(told, tuple) and isinstance(wanted, tuple):
        return len(told) == len(wanted) and all(map(_alike, told, wanted))
    if isinstance(told, str) and isinstance(wanted, str):
        return _NUMBER.sub("#", told) == _NUMBER.sub("#", wanted)
    return told == wanted


def _unpromised(entries: Sequence[Entry], promised: Mapping[RunId, PrivacyStatement | None]) -> Iterator[Failure]:
    """A run that hospitals were charged for, and whose published model promises nothing."""
    seen: set[RunId] = set()
    for recorded in said(entries, LedgerRecorded):
        run_id = recorded.message.statement.run_id
        if run_id in seen or run_id not in promised:
            continue
        seen.add(run_id)
        promise = promised[run_id]
        if promise is None or promise.mode == "none":
            text = f"site {recorded.message.site_id} was charged for run {run_id}, whose model promises nothing"
            yield Failure(text, recorded.index)


def _study(folder: Path, signed: Statement) -> Study | None:
    """The study that was signed with the model; None where there is none, or it is no study."""
    if STUDY not in signed.subjects:
        return None
    found = _json(folder / STUDY)
    try:
        return Study.model_validate(found)
    except ValueError:
        return None


def _json(path: Path) -> object:
    """The file's content; None for one that is missing, too large or no JSON."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
