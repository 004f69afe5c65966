"""A new federation on disk: keys, the signed trust document, and one settings file for each service.

`cohortium init` writes it for an operator; the simulator uses the very same files. In production the officers make
their keys on their own machines and sign there; `init` says so.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from nacl.public import PrivateKey

from cohortium_kit.broker_check import BrokerCheck
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.governance import Invitation, ServiceKeys, TrustDocument
from cohortium_protocol.documents import sign_trust
from cohortium_protocol.signing import IdentityKey

ROLES = ("enrolment", "consent", "scheduler", "aggregator", "audit")
AMQP_EXAMPLE = "amqp://USER:PASSWORD@HOST:5672/ or amqps://…"
DATABASE_EXAMPLE = "postgresql://USER:PASSWORD@HOST:5432/NAME"


@dataclass(frozen=True, slots=True)
class FederationSpec:
    """What a federation is made from. `settings` are extra fields for a service's settings file, by role."""

    directory: Path
    name: str
    amqp_url: str
    namespace: str
    now: datetime
    database_url: str | None = None
    """PostgreSQL; left out, each service has an SQLite file of its own."""
    schema_prefix: str = ""
    redis_url: str | None = None
    officers: int = 2
    threshold: int = 2
    ports: Mapping[str, int] = field(default_factory=dict)
    """HTTP ports by role, on 127.0.0.1; none for embedded services."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    broker_check: BrokerCheck = "trial"
    """A new federation is one machine's; runbooks/install.md has what a broker needs for `strict`."""


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """What a hospital's settings file is made from."""

    directory: Path
    invitation: Invitation
    amqp_url: str
    namespace: str
    datasets: Mapping[str, Mapping[str, str]]
    """By study name, or `*`: `path`, and `site_column` with `site_value` for a table of several sites."""
    more: Mapping[str, Any] = field(default_factory=dict)
    broker_check: BrokerCheck = "trial"


@dataclass(frozen=True, slots=True)
class FederationFiles:
    """Where everything is."""

    directory: Path
    trust: TrustDocument
    officers: tuple[IdentityKey, ...]
    operator_token: str
    configs: Mapping[str, Path]

    @property
    def operator_settings(self) -> Path:
        return self.directory / "operator.yaml"


def create_federation(spec: FederationSpec) -> FederationFiles:
    """Write keys, trust document and settings into `spec.directory`, which must not hold a federation yet.

    Raises `FileExistsError` if it does, and `ConfigurationError` for what no service could start with. Keys, and
    settings, whose addresses may hold passwords, are readable by their owner only.
    """
    check_spec(spec)
    root = spec.directory
    if (root / "trust.json").exists():
        raise FileExistsError(f"{root} holds a federation already; choose another folder, or delete it first")
    for folder in ("secrets", "config", "data", "governance"):
        (root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    officers = tuple(IdentityKey.generate() for _ in range(spec.officers))
    for number, officer in enumerate(officers, start=1):
        write_secret(root / "governance" / f"officer-{number}.key", officer.to_seed().hex())
    keys = {role: IdentityKey.generate() for role in ROLES}
    for role, key in keys.items():
        write_secret(root / "secrets" / f"{role}.key", key.to_seed().hex())
    seal = PrivateKey.generate()
    write_secret(root / "secrets" / "aggregator-seal.key", bytes(seal).hex())
    write_secret(root / "secrets" / "enrolment-token.key", secrets.token_hex(32))
    token = secrets.token_urlsafe(32)
    write_secret(root / "secrets" / "operator.token", token)
    trust = _trust(spec, keys, bytes(seal.public_key), officers)
    (root / "trust.json").write_text(json.dumps(trust.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    configs = {role: _write_config(spec, role, trust) for role in ROLES}
    if spec.ports:
        urls = {role: f"http://127.0.0.1:{port}" for role, port in spec.ports.items()}
        text = yaml.safe_dump({"token_file": "secrets/operator.token", **urls}, sort_keys=False)
        (root / "operator.yaml").write_text(text, encoding="utf-8")
    return FederationFiles(root, trust, officers, token, configs)


def check_spec(spec: FederationSpec) -> None:
    """Raise `ConfigurationError` naming the first of its values that cannot be, and what one looks like."""
    _check(
        ("name", spec.name, r"[a-z0-9][a-z0-9.-]{2,99}", "small letters, digits, dots and hyphens"),
        *_broker(spec),
        ("database", spec.database_url or DATABASE_EXAMPLE, r"(postgresql|sqlite)[a-z+]*://\S+", DATABASE_EXAMPLE),
    )


def _broker(spec: FederationSpec | ConnectorSpec) -> tuple[tuple[str, str, str, str], ...]:
    return (
        ("namespace", spec.namespace, r"[a-z][a-z0-9-]{0,40}", "small letters, digits and hyphens, a letter first"),
        ("amqp", spec.amqp_url, r"(amqps?|memory)://\S*", AMQP_EXAMPLE),
    )


def _check(*checks: tuple[str, str, str, str]) -> None:
    for what, value, pattern, example in checks:
        if not re.fullmatch(pattern, value):
            # An address may hold a password: it is not repeated.
            shown = "this address" if "://" in example else repr(value)
            raise ConfigurationError(f"--{what}: {shown} will not do; expected {example}")


def create_connector(spec: ConnectorSpec) -> Path:
    """Write a hospital's invitation and settings into `spec.directory`; the path of the settings.

    Pins the officers' keys that the invitation's trust document names: compare them with what the officers say.
    Raises `FileExistsError` if the folder has settings already, and `ConfigurationError` for a broker that cannot be.
    """
    _check(*_broker(spec))
    root = spec.directory.resolve()
    if (root / "connector.yaml").exists():
        raise FileExistsError(f"{root}/connector.yaml is there already; choose another folder for this hospital")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret(root / "invitation.json", spec.invitation.model_dump_json())
    trust = spec.invitation.trust
    values = {
        "amqp_url": spec.amqp_url,
        "broker_check": spec.broker_check,
        "namespace": spec.namespace,
        "spool_dir": str(root / "spool"),
        "invitation_file": str(root / "invitation.json"),
        "governance_keys": [key.hex() for key in trust.governance_keys],
        "governance_threshold": trust.threshold,
        "datasets": {study: dict(source) for study, source in spec.datasets.items()},
        **spec.more,
    }
    path = root / "connector.yaml"
    write_secret(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n"))
    return path


def write_secret(path: Path, text: str) -> None:
    """Create a file that only its owner can read; an existing one is an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _trust(
    spec: FederationSpec, keys: Mapping[str, IdentityKey], seal_pk: bytes, officers: tuple[IdentityKey, ...]
) -> TrustDocument:
    trust = TrustDocument(
        federation=spec.name,
        version=1,
        issued_at=spec.now,
        services=ServiceKeys(**{role: key.public for role, key in keys.items()}, aggregator_seal=seal_pk),
        governance_keys=tuple(sorted(officer.public for officer in officers)),
        threshold=spec.threshold,
    )
    for officer in officers:
        trust = sign_trust(trust, officer)
    return trust


def _write_config(spec: FederationSpec, role: str, trust: TrustDocument) -> Path:
    root = spec.directory.resolve()
    values: dict[str, Any] = {
        "amqp_url": spec.amqp_url,
        "broker_check": spec.broker_check,
        "namespace": spec.namespace,
        "database_url": spec.database_url or f"sqlite:///{root / 'data' / f'{role}.db'}",
        "schema": f"{spec.schema_prefix}{role}",
        "trust_file": str(root / "trust.json"),
        "governance_keys": [key.hex() for key in trust.governance_keys],
        "governance_threshold": trust.threshold,
        "signing_key_file": str(root / "secrets" / f"{role}.key"),
        "operator_token_file": str(root / "secrets" / "operator.token"),
    }
    if role in spec.ports:
        values |= {"http_host": "127.0.0.1", "http_port": spec.ports[role]}
    if role == "enrolment":
        values["token_key_file"] = str(root / "secrets" / "enrolment-token.key")
    if role == "aggregator":
        values["seal_key_file"] = str(root / "secrets" / "aggregator-seal.key")
        values["data_dir"] = str(root / "data" / "aggregator")
    if role == "scheduler" and spec.redis_url:
        values["redis_url"] = spec.redis_url
    values |= spec.settings.get(role, {})
    path = root / "config" / f"{role}.yaml"
    write_secret(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n"))
    return path
