"""A study's audit log in the languages of other systems: FHIR AuditEvent R4, syslog RFC 5424, W3C PROV-JSON.

Facts of the log and nothing more. What is converted proves nothing any more: the bundle does.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cohortium_messages import events
from cohortium_messages.events import AuditEvent
from cohortium_messages.oversight import PreflightRecorded
from cohortium_messages.people import AuthFailed, AuthFailedAgain
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.withdrawals import ModelCarried, ModelRetired, SumSetAside, WithdrawalOverdue
from cohortium_verify.log import Entry

TYPE_SYSTEM = "urn:cohortium:audit"
ENTERPRISE = 32473
"""The private enterprise number that RFC 5612 keeps for documentation: replace it by your own in your collector."""
FACILITY = 13
"""Log audit (RFC 5424, 6.2.1)."""
_ALARMS = (events.ForkDetected,)
_FAULTS = (
    events.FaultSeen,
    events.TaskDeclined,
    events.BrokerRefusal,
    AuthFailed,
    AuthFailedAgain,
    SumSetAside,
    WithdrawalOverdue,
)
_TAKEN_AWAY = (events.SiteRevocation, events.GrantStopped, events.BrokerCut)
"""Done as it was meant, and to be looked at all the same: somebody may do less than before."""
_FAILED_WINDOW = ("ABORTED", "FAILED", "FAILED_INTEGRITY")
CREATED = (events.ModelReleased, events.ModelBundled, events.ReleaseSigned, events.StudySubmitted, events.GrantStarted)
ENDED = (events.GrantStopped, events.SiteRevocation)


def fhir_lines(entries: Iterable[Entry], origin: str) -> Iterator[str]:
    """One AuditEvent resource a line (hl7.org/fhir/R4/auditevent.html), with the entry's place in its id."""
    for entry in entries:
        yield json.dumps(_audit_event(entry, origin), separators=(",", ":"))


def _audit_event(entry: Entry, origin: str) -> dict[str, Any]:
    envelope, message = entry.envelope, entry.message
    return {
        "resourceType": "AuditEvent",
        "id": _resource_id(entry, origin),
        "type": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "110100"},
        "subtype": [{"system": TYPE_SYSTEM, "code": short_type(message)}],
        "action": action_of(message),
        "recorded": envelope.time.isoformat(),
        **_outcome(message),
        "agent": [{"who": {"identifier": {"system": f"{TYPE_SYSTEM}:key", "value": entry.key_id}}, "requestor": True}],
        "source": {"observer": {"identifier": {"system": f"{TYPE_SYSTEM}:log", "value": origin}}},
        "entity": [
            {"what": {"identifier": {"system": f"{TYPE_SYSTEM}:{name}", "value": value}}}
            for name, value in facts_of(message)
        ],
    }


def _resource_id(entry: Entry, origin: str) -> str:
    """At most 64 characters (R4, `id`), and another one for each entry of each log: 28 of the study's name, 64 bits of
    the log's SHA-256, and the place, which is below 2^53."""
    log = hashlib.sha256(origin.encode()).hexdigest()[:16]
    return f"{(entry.envelope.study or 'platform')[:28]}-{log}-{entry.index}"


def _outcome(message: AuditEvent) -> dict[str, str]:
    """8 for an alarm, 4 for what is to be looked at, 0 otherwise; R4 knows no warning, so what was taken away says
    in words that it was done."""
    if isinstance(message, _ALARMS):
        return {"outcome": "8"}
    if isinstance(message, _TAKEN_AWAY):
        return {"outcome": "4", "outcomeDesc": "Warning: this was carried out, and took a permission or access away."}
    return {"outcome": "4" if _went_wrong(message) else "0"}


def _went_wrong(message: AuditEvent) -> bool:
    """Something failed, or was refused."""
    match message:
        case events.WindowAuthorised():
            return any(not permit.permitted for permit in message.permits)
        case events.WindowEnded():
            return message.state in _FAILED_WINDOW
        case events.RunStateChanged():
            return message.state == "FAILED"
        case PreflightRecorded():
            return bool(message.failed)
    return isinstance(message, _FAULTS)


def _severity(message: AuditEvent) -> int:
    """RFC 5424, 6.2.1: 2 critical, 4 warning, 6 informational."""
    if isinstance(message, _ALARMS):
        return 2
    return 4 if isinstance(message, _TAKEN_AWAY) or _went_wrong(message) else 6


def action_of(message: AuditEvent) -> str:
    """C: something begins to be; D: something ends; E: something was done."""
    return "C" if isinstance(message, CREATED) else "D" if isinstance(message, ENDED) else "E"


def short_type(message: AuditEvent) -> str:
    """`aggregate_opened` of `cohortium.audit.aggregate_opened.v1`."""
    return message.type_name.removeprefix("cohortium.audit.").rpartition(".")[0]


def facts_of(message: AuditEvent) -> list[tuple[str, str]]:
    """The event's plain values, by name; what is a list or has parts stays in the bundle."""
    plain = message.model_dump(mode="json")
    found = [(name, value) for name, value in plain.items() if isinstance(value, str | int | float) and value != ""]
    return [(name, str(value)) for name, value in found]


def syslog_lines(entries: Iterable[Entry], origin: str) -> Iterator[str]:
    """One message a line (RFC 5424, 6): facility 13, the event's type as MSGID, its facts as structured data."""
    host = origin.partition("/")[0] or "-"
    for entry in entries:
        message, time = entry.message, entry.envelope.time.isoformat()
        facts = [("index", str(entry.index)), ("by", entry.key_id), *facts_of(message)]
        data = "".join(f' {name}="{_escaped(value)}"' for name, value in facts)
        structured = f"[cohortium@{ENTERPRISE}{data}]"
        priority = FACILITY * 8 + _severity(message)
        yield f"<{priority}>1 {time} {host} cohortium-audit - {short_type(message)[:32]} {structured}"


def _escaped(value: str) -> str:
    """RFC 5424, 6.3.3: a quote, a backslash and a closing bracket have a backslash before them."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def prov_json(entries: Sequence[Entry], origin: str) -> dict[str, Any]:
    """The lineage of a study's models as PROV-JSON (W3C member submission): models and their bundles are entities,
    windows are activities, hospitals and services are agents."""
    made: dict[str, dict[str, Any]] = {
        "prefix": {"cohortium": f"urn:cohortium:{origin}/"},
        "entity": {},
        "activity": {},
        "agent": {},
        "wasGeneratedBy": {},
        "used": {},
        "wasDerivedFrom": {},
        "wasAttributedTo": {},
        "wasInvalidatedBy": {},
        "wasAssociatedWith": {},
    }
    for entry in entries:
        _add(made, entry)
    return {kind: parts for kind, parts in made.items() if parts}


def _add(made: dict[str, dict[str, Any]], entry: Entry) -> None:
    message, time = entry.message, entry.envelope.time.isoformat()
    match message:
        case events.WindowAuthorised():
            window = _window(message.window_id)
            made["activity"][window] = {
                "prov:startTime": time,
                "cohortium:purpose": message.purpose,
                "cohortium:round": message.round,
                "cohortium:run": str(message.run_id),
            }
        case events.AggregateOpened():
            _associate(made, _window(message.window_id), message.survivors)
        case events.StrictSessionSummed():
            _associate(made, _window(message.window_id), message.sites)
        case events.WindowEnded() if _window(message.window_id) in made["activity"]:
            made["activity"][_window(message.window_id)] |= {
                "prov:endTime": time,
                "cohortium:state": message.state,
            }
        case events.ModelReleased():
            name = _model(message.run_id, message.model)
            made["entity"][name] = _model_facts(message.model, entry.index)
            made["wasGeneratedBy"][f"_:g{entry.index}"] = {
                "prov:entity": name,
                "prov:activity": _window(message.window_id),
                "prov:time": time,
            }
            if message.parent is not None:
                made["used"][f"_:u{entry.index}"] = {
                    "prov:activity": _window(message.window_id),
                    "prov:entity": _model(message.run_id, message.parent),
                }
                made["wasDerivedFrom"][f"_:d{entry.index}"] = {
                    "prov:generatedEntity": name,
                    "prov:usedEntity": _model(message.run_id, message.parent),
                }
        case ModelCarried():
            name = _model(message.run_id, message.model)
            made["entity"][name] = _model_facts(message.model, entry.index)
            made["wasDerivedFrom"][f"_:d{entry.index}"] = {
                "prov:generatedEntity": name,
                "prov:usedEntity": _model(message.from_run, message.model),
            }
        case events.ModelBundled():
            bundle = f"cohortium:bundle/{message.attestation_sha256.hex()}"
            made["entity"][bundle] = {"prov:type": "cohortium:signed-bundle", "cohortium:entry": entry.index}
            made["wasDerivedFrom"][f"_:d{entry.index}"] = {
                "prov:generatedEntity": bundle,
                "prov:usedEntity": _model(message.run_id, message.model),
            }
        case ModelRetired():
            withdrawal = f"cohortium:withdrawal/{message.withdrawal.hex()}"
            made["activity"][withdrawal] = {"prov:type": "cohortium:withdrawal"}
            made["wasInvalidatedBy"][f"_:i{entry.index}"] = {
                "prov:entity": _model(message.run_id, message.model),
                "prov:activity": withdrawal,
                "prov:time": time,
            }
        case events.ReleaseSigned():
            _add_release(made, entry.index, message)


def _add_release(made: dict[str, dict[str, Any]], index: int, message: events.ReleaseSigned) -> None:
    release = f"cohortium:release/{message.release_sha256.hex()}"
    made["entity"][release] = {"prov:type": "cohortium:release", "cohortium:entry": index}
    made["wasDerivedFrom"][f"_:d{index}"] = {
        "prov:generatedEntity": release,
        "prov:usedEntity": f"cohortium:bundle/{message.attestation_sha256.hex()}",
    }
    people = {f"cohortium:officer/{key.hex()}": "prov:Person" for key in message.officers}
    hospitals = {f"cohortium:site/{site}": "prov:Organization" for site in message.sites}
    for agent, kind in (people | hospitals).items():
        made["agent"][agent] = {"prov:type": kind}
        made["wasAttributedTo"][f"_:t{len(made['wasAttributedTo'])}"] = {"prov:entity": release, "prov:agent": agent}


def _associate(made: dict[str, dict[str, Any]], window: str, sites: Iterable[str]) -> None:
    for site in sites:
        agent = f"cohortium:site/{site}"
        made["agent"][agent] = {"prov:type": "prov:Organization"}
        key = f"_:a{len(made['wasAssociatedWith'])}"
        made["wasAssociatedWith"][key] = {"prov:activity": window, "prov:agent": agent}


def _model_facts(model: ModelRef, index: int) -> dict[str, Any]:
    return {
        "prov:type": "cohortium:model",
        "cohortium:version": model.version,
        "cohortium:sha256": model.model_hash.hex(),
        "cohortium:entry": index,
    }


def _window(window_id: bytes) -> str:
    return f"cohortium:window/{window_id.hex()}"


def _model(run_id: str, model: ModelRef) -> str:
    return f"cohortium:model/{run_id}/{model.version}"
