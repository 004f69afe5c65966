"""`cohortium broker`: what RabbitMQ has to hold before the services start, computed from the topology.

Exchanges, the platform's queues and bindings, a user for each service with the least rights it needs, one for the
operator's dead letters, one for integrators, who read the stream of audit entries and nothing else, and one with which
enrolment closes connections. RabbitMQ loads the file when it boots
(`load_definitions`), and then makes no `guest`.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cohortium_cli.federation import write_secret
from cohortium_cli.options import NAMESPACE_DEFAULT, Json
from cohortium_cli.output import USAGE, done, friendly, show
from cohortium_kit._amqp_wire import queue_arguments
from cohortium_messages.rights import UserRights, service_rights
from cohortium_messages.topology import (
    ENTRIES,
    ENTRIES_STREAM,
    EXCHANGES,
    SERVICE_NAMES,
    ExchangeKind,
    QueueKind,
    Topology,
    platform_topology,
)

OPERATOR = "operator"
"""Reads dead letters and publishes them again."""
INTEGRATOR = "integrator"
"""Reads the stream of audit entries, of all studies."""
REAPER = "reaper"
"""Closes connections that are over. RabbitMQ lets only administrators close other users' connections."""
ADDRESSED = (*SERVICE_NAMES, OPERATOR, INTEGRATOR)
USERS = (*ADDRESSED, REAPER)
SALT_BYTES = 4
POLICY_BOUNDS = ("x-delivery-limit", "x-max-length", "x-max-length-bytes", "x-message-ttl")
MOST_CONNECTIONS, MOST_CHANNELS = 16, 256

broker_app = typer.Typer(no_args_is_help=True, help="What RabbitMQ must hold before the services start.")


def make_definitions(namespace: str, vhost: str, passwords: Mapping[str, str], most_connections: int) -> dict[str, Any]:
    """RabbitMQ's definitions. `passwords` has one for each of `USERS`; only salted hashes of them are in the result."""
    topology = platform_topology()
    rights = {role: service_rights(role, namespace) for role in SERVICE_NAMES}
    rights |= {OPERATOR: _operator(namespace), INTEGRATOR: _integrator(namespace)}
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user(name, passwords[name]) for name in USERS],
        "permissions": [_permission(user, vhost, one) for user, one in rights.items()],
        "topic_permissions": [
            {"user": user, "vhost": vhost, "exchange": exchange, "write": pattern, "read": "^$"}
            for user, one in rights.items()
            for exchange, pattern in one.topics.items()
        ],
        "parameters": [
            {
                "component": "vhost-limits",
                "name": "limits",
                "vhost": vhost,
                "value": {"max-connections": most_connections, "max-queues": 10_000},
            }
        ],
        "exchanges": [
            {
                "name": f"{namespace}.{exchange.name}",
                "vhost": vhost,
                "type": exchange.kind.value,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for exchange in EXCHANGES
        ],
        "queues": _queues(topology, namespace, vhost),
        "bindings": _bindings(topology, namespace, vhost),
        "policies": _policies(topology, namespace, vhost),
    }


def password_hash(password: str, salt: bytes) -> str:
    """`rabbit_password_hashing_sha256`: the salt, then SHA-256 of salt and password. Ours have 192 random bits, so
    nothing slower is needed."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _user(name: str, password: str) -> dict[str, Any]:
    limits = {} if name == REAPER else {"max-connections": MOST_CONNECTIONS, "max-channels": MOST_CHANNELS}
    return {
        "name": name,
        "password_hash": password_hash(password, secrets.token_bytes(SALT_BYTES)),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "administrator" if name == REAPER else "",
        "limits": limits,
    }


def _operator(namespace: str) -> UserRights:
    name = namespace.replace("-", r"\-")
    # No dead letter comes from `entries`: what is there, the audit service alone has put there.
    exchanges = "|".join(exchange.name for exchange in EXCHANGES if exchange != ENTRIES)
    return UserRights(r"^$", rf"^{name}\.({exchanges})$", rf"^{name}\..+\.dead$", {})


def _integrator(namespace: str) -> UserRights:
    topics = {f"{namespace}.{exchange.name}": "^$" for exchange in EXCHANGES if exchange.kind is ExchangeKind.TOPIC}
    return UserRights("^$", "^$", f"^{re.escape(f'{namespace}.{ENTRIES_STREAM}')}$", topics)


def _permission(user: str, vhost: str, rights: UserRights) -> dict[str, str]:
    named = {"configure": rights.configure, "write": rights.write, "read": rights.read}
    return {"user": user, "vhost": vhost, **named}


def _queues(topology: Topology, namespace: str, vhost: str) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{namespace}.{queue.name}",
            "vhost": vhost,
            "durable": True,
            "auto_delete": False,
            "arguments": queue_arguments(queue, namespace),
        }
        for queue in topology.queues
    ]


def _policies(topology: Topology, namespace: str, vhost: str) -> list[dict[str, Any]]:
    """The queues' bounds once more: the arguments of a queue that exists never change, and RabbitMQ keeps the lower of
    an argument and a policy. So loading a new version's definitions lowers the bounds of queues that an older one
    made, and gives some to those that had none."""
    alike: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for queue in topology.queues:
        arguments = queue_arguments(queue, namespace)
        bounds = tuple((name.removeprefix("x-"), arguments[name]) for name in POLICY_BOUNDS if name in arguments)
        if queue.kind is not QueueKind.STREAM:
            alike.setdefault(bounds, []).append(re.escape(queue.name))
    return [
        {
            "name": f"{namespace}.bounds.{number}",
            "vhost": vhost,
            "pattern": rf"^{re.escape(namespace)}\.({'|'.join(names)})$",
            "apply-to": "queues",
            "definition": dict(bounds),
            "priority": 0,
        }
        for number, (bounds, names) in enumerate(alike.items())
    ]


def _bindings(topology: Topology, namespace: str, vhost: str) -> list[dict[str, Any]]:
    return [
        {
            "source": f"{namespace}.{binding.exchange}",
            "vhost": vhost,
            "destination": f"{namespace}.{queue.name}",
            "destination_type": "queue",
            "routing_key": binding.key,
            "arguments": {},
        }
        for queue in topology.queues
        for binding in queue.bindings
    ]


@broker_app.command()
def definitions(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for definitions.json and the addresses; new files.")],
    host: Annotated[str, typer.Option(help="Where the services reach the broker, HOST or HOST:PORT.")] = "broker:5671",
    management: Annotated[
        str, typer.Option(help="Where enrolment reaches the broker's management, as https://HOST:PORT.")
    ] = "https://broker:15671",
    ca: Annotated[
        str, typer.Option(help="Where a service finds the authority's certificate.")
    ] = "/etc/cohortium/broker-ca.crt",
    vhost: Annotated[str, typer.Option(help="The virtual host.")] = "cohortium",
    namespace: Annotated[
        str, typer.Option(help="The federation's prefix of exchanges and queues.")
    ] = NAMESPACE_DEFAULT,
    most_connections: Annotated[int, typer.Option(min=20, help="Connections to the virtual host, at most.")] = 2000,
    as_json: Json = False,
) -> None:
    """Write definitions.json for RabbitMQ, and each service's address with its new password.

    SERVICE.amqp-url goes to that service alone, management-url to enrolment, integrator.amqp-url to whoever may read
    the logs of all studies.
    """
    passwords = {name: secrets.token_hex(24) for name in USERS}
    made = make_definitions(namespace, vhost, passwords, most_connections)
    files = {"definitions.json": json.dumps(made, indent=1)}
    for name in ADDRESSED:
        place = f"{host}/{quote(vhost, safe='')}?cafile={ca}"
        files[f"{name}.amqp-url"] = f"amqps://{name}:{passwords[name]}@{place}"
    scheme, _, place = management.partition("://")
    files["management-url"] = f"{scheme}://{REAPER}:{passwords[REAPER]}@{place}"
    with friendly(code=USAGE):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in files.items():
            write_secret(out / name, text)
    words = f"{out}: definitions.json and the addresses of {', '.join(ADDRESSED)}"
    show({"directory": str(out), "files": list(files)}, as_json=as_json, human=lambda: done(words))
