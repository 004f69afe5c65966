"""What the trial found, check by check, and what a warning or a failure is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cohortium_messages.preflight import CheckName, CheckState, PreflightCheck

Fact = str | int | float

ADVICE: Mapping[str, str] = {
    "NAME_NOT_FOUND": "the broker's name has no address here: ask for a DNS entry, or give its address",
    "PROXY_SET": "a proxy is set in the environment, and AMQP does not use it: if only the proxy may go out, have the"
    " firewall opened for this one host and port",
    "NO_CONNECTION": "nothing answers at this address and port: open the firewall for this one outgoing connection",
    "NOT_AMQP": "something answers, and it is no AMQP broker: a proxy or a firewall in between, or a wrong port",
    "TLS_MISSING": "amqp:// goes in the clear: use amqps:// and port 5671, but for a trial on one machine",
    "CERTIFICATE_REFUSED": "the broker's certificate is not good for this name, or of an authority that is not known"
    " here: name the federation's authority with ?cafile=FILE. If the issuer is your own firewall, have it leave"
    " this connection alone",
    "CERTIFICATE_ENDS_SOON": "the broker's certificate ends within a fortnight: tell the operator",
    "LOGIN_REFUSED": "the broker does not let this site in: enrolled? revoked? is this machine's clock right?",
    "BROKER_TOO_OPEN": "the broker lets this login do more than it may: the operator must mend that first",
    "QUEUE_MISSING": "a queue of this site is missing or not readable: is `namespace` what the operator says? If it is,"
    " the operator restarts enrolment",
    "NOT_ENROLLED": "this site is not registered yet: start the connector once with its invitation, then try again",
    "NO_ECHO": "enrolment did not answer: it may be stopped; ask the operator",
    "LINE_SLOW": "the line is slow; ask the operator for longer upload deadlines, or for a larger line",
    "CLOCK_OFF": "this machine's clock differs from the platform's: set up time synchronisation (NTP)",
    "MEMORY_SMALL": "there is little memory: training may be killed by the system",
    "DISK_NEARLY_FULL": "the spool's disk is nearly full: updates wait there until they are sent",
    "DISK_SLOW": "a write to the spool's disk takes long to be safe: a local disk is better than a network one",
    "NOT_ISOLATED": "the training process cannot give up its network here: allow unprivileged user namespaces, or cut"
    " its network by other means",
    "TRAINING_FAILED": "the training libraries do not work here: install the extra `train`, and see training.log",
    "DATA_MISSING": "a table that the settings name cannot be read: check its path and rights",
    "DATA_WRITABLE": "this account could change a table that the settings name: mount it read-only",
    "NO_DATA_YET": "the settings name no table yet",
}
"""By code: what it means and what to do. Codes go to the platform, these sentences and the facts do not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. `facts` are for the hospital's own report alone."""

    name: CheckName
    state: CheckState
    code: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        return "" if self.code is None else ADVICE[self.code]

    def told(self) -> PreflightCheck:
        """What the platform is told of it."""
        return PreflightCheck(name=self.name, state=self.state, code=self.code)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "code": self.code,
            "advice": self.advice,
            "facts": dict(self.facts),
        }


def ok(name: CheckName, **facts: Fact) -> Finding:
    return Finding(name, "ok", None, facts)


def warning(name: CheckName, code: str, **facts: Fact) -> Finding:
    return Finding(name, "warning", code, facts)


def failed(name: CheckName, code: str, **facts: Fact) -> Finding:
    return Finding(name, "failed", code, facts)


def skipped(name: CheckName, code: str | None = None, **facts: Fact) -> Finding:
    return Finding(name, "skipped", code, facts)
