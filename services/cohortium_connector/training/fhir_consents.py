"""Patients' decisions as FHIR Consent has them, in its R4 and R5 forms, from NDJSON (hl7.org/fhir/R4/consent.html,
hl7.org/fhir/R5/consent.html). Without a FHIR library: some ten paths. What is not worked out here permits nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cohortium_connector.training.consents import Decision, SourceUnreadable, Word, decision_of, moment
from cohortium_protocol.cohorts import person_name

MAX_LINE_BYTES = 1 << 20
_NOT_YET = frozenset({"draft", "proposed", "not-done", "entered-in-error"})
"""Statuses that are no decision at all."""
_OPT_OUT, _OPT_IN = frozenset({"OPTOUT", "OPTOUTE"}), frozenset({"OPTIN", "OPTINR"})
"""HL7 v3 ActCode: base rules, which name no policy."""
_LIMITS = (
    *("actor", "action", "securityLabel", "class", "documentType", "resourceType", "data", "dataPeriod"),
    *("expression", "modifierExtension"),
)
"""What can narrow a provision and is not worked out here: a permission that has any of it is unclear."""
_PATIENT = re.compile(r"(?:.*/)?Patient/([^/#?|]+)(?:/_history/[^/]+)?")
_SOMEBODY_ELSE = re.compile(
    r"(?:.*/)?(?:Practitioner|PractitionerRole|RelatedPerson|Organization)/[^/]+(?:/_history/[^/]+)?"
)


def of_fhir(path: Path, policy: str | None, purpose: str | None, at: datetime) -> Iterator[Decision]:
    """Decisions of the Consent resources in an NDJSON file, one a line; other resources are passed over. A provision
    whose own period does not hold `at` does not count.

    Raises `SourceUnreadable` with the line of what is no JSON, no resource, or a Consent of nobody that can be told:
    a file that is cut short must not look like a file in which nobody objects.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if len(line) > MAX_LINE_BYTES:
                raise SourceUnreadable("", f"line {number} is longer than {MAX_LINE_BYTES} bytes")
            try:
                resource = json.loads(line)
            except (ValueError, RecursionError):
                raise SourceUnreadable("", f"line {number} is not JSON") from None
            kind = resource.get("resourceType") if isinstance(resource, dict) else None
            if not isinstance(kind, str) or kind == "Bundle":
                raise SourceUnreadable("", f"line {number} is no FHIR resource by itself; export one resource a line")
            if kind == "Consent":
                try:
                    yield from _of_resource(resource, policy, purpose, at)
                except (TypeError, AttributeError, _NobodyKnown):
                    hint = f"line {number} is a Consent that cannot be read: whose it is, or the type of a field"
                    raise SourceUnreadable("", hint) from None


class _NobodyKnown(Exception):
    """A consent that may be a patient's, and does not say whose."""


def _of_resource(resource: dict[str, Any], policy: str | None, purpose: str | None, at: datetime) -> Iterator[Decision]:
    status = resource.get("status")
    if status in _NOT_YET:
        return
    person = _person(resource.get("patient") or resource.get("subject"))
    if person is None:
        return
    if policy is not None and not _of_policy(resource, policy):
        return
    recorded = resource.get("dateTime") or resource.get("date") or _at(resource, "meta", "lastUpdated")
    since, until = _period(resource)
    if status == "rejected" or status == "inactive":
        yield decision_of(person, Word.DENY, None, None, recorded)
    elif status == "active":
        word = _word(resource, policy, purpose, at)
        if word is Word.PERMIT and (resource.get("modifierExtension") or resource.get("implicitRules")):
            word = Word.UNKNOWN  # FHIR forbids to pass over either
        yield decision_of(person, word, since, until, recorded)
    else:
        yield decision_of(person, Word.UNKNOWN, None, None, recorded)


def _word(resource: dict[str, Any], policy: str | None, purpose: str | None, at: datetime) -> Word:
    """The base rule, and what the provisions under it make of it for this purpose; a denial among them wins."""
    root = resource.get("provision")
    base = _base(resource, root)
    nested = root if isinstance(root, list) else _list(root, "provision") if isinstance(root, dict) else []
    if isinstance(root, dict) and base is Word.PERMIT and (not _for_purpose(root, purpose) or _limited(root, policy)):
        base = Word.UNKNOWN
    if any(not isinstance(one, dict) for one in nested):
        return Word.UNKNOWN
    said = {
        _provision_word(one, base, policy)
        for one in nested
        if _for_purpose(one, purpose) and _holds(one.get("period"), at)
    }
    if Word.DENY in said:
        return Word.DENY
    if Word.UNKNOWN in said:
        return Word.UNKNOWN
    return Word.PERMIT if Word.PERMIT in said else base


def _base(resource: dict[str, Any], root: object) -> Word:
    above = root if isinstance(root, dict) else {}
    stated = resource.get("decision", above.get("type"))
    if stated in ("permit", "deny"):
        return Word(stated)
    if stated is None:  # R4: the base rule may be given as a policy (HL7 v3 ActCode)
        codes = {code.get("code") for code in _codings(resource.get("policyRule"))}
        if codes & _OPT_OUT:
            return Word.DENY
        if codes & _OPT_IN:
            return Word.PERMIT
    return Word.UNKNOWN


def _limited(provision: dict[str, Any], policy: str | None) -> bool:
    """Whether a permission is for something narrower than what is asked, or that is not worked out here."""
    return any(provision.get(name) for name in _LIMITS) or not _for_code(provision, policy)


def _for_code(provision: dict[str, Any], policy: str | None) -> bool:
    """Whether a provision is for everything, or names the policy among the codes that it is for."""
    codes = [coding for concept in _list(provision, "code") for coding in _codings(concept)]
    return not provision.get("code") or (policy is not None and policy in _names(codes))


def _provision_word(provision: dict[str, Any], base: Word, policy: str | None) -> Word | None:
    """R4 states a type; in R5 every provision is an exception to the decision above it. What permits other codes than
    the policy's says nothing here."""
    word = _stated(provision, base)
    if word is Word.PERMIT and not _for_code(provision, policy):
        return None
    return Word.UNKNOWN if word is Word.PERMIT and _limited(provision, policy) else word


def _stated(provision: dict[str, Any], base: Word) -> Word:
    stated = provision.get("type")
    if stated == "deny":
        return Word.DENY
    try:
        _window(provision.get("period"))
    except ValueError:
        return Word.UNKNOWN
    if stated == "permit":
        return Word.PERMIT
    if stated is not None or _list(provision, "provision"):
        return Word.UNKNOWN  # exceptions to exceptions are not worked out here
    return {Word.PERMIT: Word.DENY, Word.DENY: Word.PERMIT}.get(base, Word.UNKNOWN)


def _window(period: object) -> tuple[datetime | None, datetime | None]:
    """From when until when a provision counts. Raises `ValueError`."""
    if not isinstance(period, dict):
        return None, None
    return moment(period.get("start")), moment(period.get("end"), end=True)


def _holds(period: object, at: datetime) -> bool:
    """Whether a provision counts now; one whose period cannot be read does, and permits nothing then."""
    try:
        since, until = _window(period)
    except ValueError:
        return True
    return (since is None or since <= at) and (until is None or at < until)


def _for_purpose(provision: dict[str, Any], purpose: str | None) -> bool:
    named = {code.get("code") for code in _list(provision, "purpose") if isinstance(code, dict)}
    return purpose is None or not named or purpose in named


def _of_policy(resource: dict[str, Any], policy: str) -> bool:
    """Whether the consent is about this policy: by address, by reference, by a code of its provisions, or because it
    names none."""
    uris = {one.get("uri") for one in _list(resource, "policy") if isinstance(one, dict)}
    uris |= {_at(resource, "policyBasis", "url"), _at(resource, "policyBasis", "reference", "reference")}
    codes = [one for one in _codings(resource.get("policyRule")) if one.get("code") not in _OPT_IN | _OPT_OUT]
    root = resource.get("provision")
    for provision in [root, *_list(root, "provision")] if isinstance(root, dict) else _list(resource, "provision"):
        if isinstance(provision, dict):
            codes += [coding for concept in _list(provision, "code") for coding in _codings(concept)]
    said = {uri for uri in uris if uri} | _names(codes)
    return not said or policy in said


def _names(codes: Iterable[dict[str, Any]]) -> set[str]:
    """How a policy can be meant by a code: by itself, or behind its system."""
    named = [(code.get("system"), code["code"]) for code in codes if code.get("code")]
    return {code for _, code in named} | {f"{system}|{code}" for system, code in named}


def _person(reference: object) -> str | None:
    """Whose consent it is: the id of `Patient/<id>`, of any version and server; a `urn:` as it stands; else the value
    of the identifier. None for somebody who is no patient. Raises `_NobodyKnown`."""
    if not isinstance(reference, dict):
        raise _NobodyKnown
    text, value = reference.get("reference"), _at(reference, "identifier", "value")
    if isinstance(text, str) and text:
        if found := _PATIENT.fullmatch(text):
            return person_name(found[1])
        if _SOMEBODY_ELSE.fullmatch(text):
            return None
        if text.startswith("urn:"):
            return person_name(text)
    if not isinstance(value, str) or not person_name(value):
        raise _NobodyKnown
    return person_name(value)


def _period(resource: dict[str, Any]) -> tuple[object, object]:
    root = resource.get("provision")
    period = root.get("period") if isinstance(root, dict) else resource.get("period")
    return (period.get("start"), period.get("end")) if isinstance(period, dict) else (None, None)


def _codings(concept: object) -> list[dict[str, Any]]:
    return [one for one in _list(concept, "coding") if isinstance(one, dict)]


def _list(value: object, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _at(value: object, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
