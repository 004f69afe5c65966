"""The AsyncAPI 3.0 document of the federation, made from the table of channels.

Payloads are references to `schemas/`, so a message's shape is written once.
"""

import inspect
import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from cohortium_messages.channels import CHANNELS, Channel, Party
from cohortium_messages.entries import ENTRY_CONTENT_TYPE, ENTRY_TYPE, INDEX_HEADER, LEAF_HEADER, LOG_HEADER
from cohortium_messages.envelope import (
    CHUNK_CONTENT_TYPE,
    CONTENT_TYPE,
    KEY_ID_HEADER,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
)
from cohortium_messages.ids import STUDY_PATTERN, UUID_PATTERN
from cohortium_messages.registry import Message
from cohortium_messages.schemas import DIALECT, schema_name
from cohortium_messages.topology import CHUNK_PARTITIONS, STEP_PARTITIONS

VERSION: Final = "1.0.0"
NAMESPACE: Final = "cohortium"
"""What a federation's settings put in front of every exchange and queue; this is the default."""

_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"
_BINDING: Final = "0.3.0"

_DESCRIPTION: Final = """\
Everything that travels through the broker of a federation. A control message is a CloudEvents 1.0 envelope in
structured JSON, in canonical bytes (RFC 8785); its Ed25519 signature is in two headers and is checked before anything
is parsed. Chunks of updates and of models are binary frames. `flow.md` tells the course of a run.

Integrators read the stream `entries.log`, with a login that may do nothing else; `examples/` has a consumer."""

_PARTIES: Final[dict[Party, str]] = {
    "site": "A hospital's connector. It declares nothing, reads its own two queues and writes under its own keys only.",
    "enrolment": "Says who is a site: invitations, identity keys, revocation, membership manifests.",
    "consent": "Keeps the hospitals' grants and answers who may take part in a window.",
    "scheduler": "Opens windows, binds cohorts, ends runs.",
    "aggregator": "Adds masked uploads, opens sums with the survivors' shares, makes model versions.",
    "audit": "Records events in one Merkle log per study and proves what it recorded.",
    "integrator": "Reads what was recorded, from any offset of the stream, and takes nothing from it.",
}

_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "site": {"description": f"The site's id: a UUID in canonical form, `{UUID_PATTERN}`."},
    "study": {"description": f"The study's name, `{STUDY_PATTERN}`, or `-` for what belongs to no study."},
    "type": {"description": "The event's type name; it has dots of its own."},
}

_PARTITIONS: Final[dict[str, tuple[str, int]]] = {
    "site.{site}.chunks.{partition}": ("The window id's first byte plus the chunk's index", CHUNK_PARTITIONS),
    "site.{site}.steps.{partition}": ("The window id's first byte", STEP_PARTITIONS),
}
"""How a frame's intake queue is reckoned, and how many there are."""

_FRAMES: Final[dict[str, tuple[str, str]]] = {
    "UploadFrame": (
        "A chunk of one site's masked update, sealed to the aggregator.",
        "Header (window, step, site's index, chunk, length, digest), signature, sealed body; see `protocol.md`.",
    ),
    "ModelFrame": (
        "A chunk of a model version, encrypted once for all sites.",
        "Header (run, version, chunk, length, digest), signature, body; see `protocol.md`.",
    ),
    "StepFrame": (
        "A part of one site's payload for one step of a strict session, encrypted for the aggregator.",
        "Header (window, step, index, kind, part, length, chain of results), body with its tag; see `protocol.md`.",
    ),
    "ResultFrame": (
        "A part of a step's result, encrypted once for all sites of the session.",
        "Header (window, step, kind, part, length, chain of results), signature, body with its tag; see `protocol.md`.",
    ),
}


def asyncapi_document() -> dict[str, Any]:
    """The whole document, ready for YAML."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Cohortium messages",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "tags": [{"name": party, "description": text} for party, text in _PARTIES.items()],
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"broker": _server()},
        "channels": {name: _channel(name, group) for name, group in _addresses()},
        "operations": dict(_operations()),
        "components": {"messages": _messages(), "schemas": {"EnvelopeHeaders": _headers()}},
    }


def _server() -> dict[str, Any]:
    return {
        "host": "{host}:{port}",
        "protocol": "amqps",
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ 3.10 or later. Sites open one outbound connection and accept none.",
        "variables": {
            "host": {"description": "The operator's broker.", "default": "localhost"},
            "port": {"description": "5671 with TLS; 5672 without, on one machine only.", "default": "5671"},
        },
    }


def _addresses() -> list[tuple[str, list[Channel]]]:
    """The table by exchange and key: one AsyncAPI channel each, whoever publishes there."""
    ordered = sorted(CHANNELS, key=_address_name)
    return [(name, list(group)) for name, group in groupby(ordered, key=_address_name)]


def _address_name(channel: Channel) -> str:
    fixed = [part for part in channel.key.split(".") if not part.startswith("{")]
    return "-".join([channel.exchange.name, *fixed])


def _message_names(channel: Channel) -> list[str]:
    return [message.__name__ for message in channel.messages] + ([channel.frame] if channel.frame else [])


def _channel(name: str, group: list[Channel]) -> dict[str, Any]:
    exchange, key = group[0].exchange, group[0].key
    names = dict.fromkeys(message for channel in group for message in _message_names(channel))
    readers = dict.fromkeys(reader for channel in group for reader in channel.consumers)
    parameters = re.findall(r"{(\w+)}", key)
    return {
        "address": key,
        "title": name,
        "summary": f"Exchange `{exchange.name}`, read by {', '.join(readers)}.",
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in names},
        **({"parameters": {parameter: _parameter(key, parameter) for parameter in parameters}} if parameters else {}),
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {
                    "name": f"{NAMESPACE}.{exchange.name}",
                    "type": exchange.kind.value,
                    "durable": True,
                    "autoDelete": False,
                },
                "bindingVersion": _BINDING,
            }
        },
    }


def _parameter(key: str, name: str) -> dict[str, Any]:
    if name != "partition":
        return _PARAMETERS[name]
    reckoned, count = _PARTITIONS[key]
    return {"description": f"{reckoned}, modulo {count}.", "enum": [str(number) for number in range(count)]}


def _operations() -> Iterable[tuple[str, dict[str, Any]]]:
    for name, group in _addresses():
        for channel in group:
            kept = channel.frame in (None, "LogEntry") and not channel.key.endswith(".presence")
            binding = {"deliveryMode": 2 if kept else 1, "mandatory": kept, "bindingVersion": _BINDING}
            yield f"{channel.publisher}-sends-{name}", _operation("send", name, channel.publisher, [channel], binding)
        for reader in dict.fromkeys(reader for channel in group for reader in channel.consumers):
            binding = {"ack": True, "bindingVersion": _BINDING}
            yield f"{reader}-receives-{name}", _operation("receive", name, reader, group, binding)


def _operation(action: str, name: str, party: Party, group: list[Channel], binding: dict[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys(message for channel in group for message in _message_names(channel))
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{name}"},
        "tags": [{"name": party}],
        "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in names],
        "bindings": {"amqp": binding},
    }


def _messages() -> dict[str, Any]:
    types = {message.__name__: message for channel in CHANNELS for message in channel.messages}
    signed = {name: _signed(message) for name, message in sorted(types.items())}
    return signed | {name: _frame(*text) for name, text in _FRAMES.items()} | {"LogEntry": _entry()}


def _signed(message: type[Message]) -> dict[str, Any]:
    return {
        "name": message.type_name,
        "title": message.__name__,
        **_summary(message),
        "contentType": CONTENT_TYPE,
        "headers": {"$ref": "#/components/schemas/EnvelopeHeaders"},
        "correlationId": {"location": "$message.payload#/correlationid", "description": "The run or window."},
        "payload": {
            "schemaFormat": _SCHEMA_FORMAT,
            "schema": {
                "$schema": DIALECT,
                "allOf": [{"$ref": "./schemas/envelope.json"}],
                "properties": {
                    "type": {"const": message.type_name},
                    "data": {"$ref": f"./schemas/{schema_name(message)}.json"},
                },
            },
        },
    }


def _summary(message: type[Message]) -> dict[str, str]:
    own = vars(message).get("__doc__")
    return {"summary": inspect.cleandoc(own).replace("\n", " ")} if own else {}


def _frame(summary: str, layout: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "description": layout,
        "contentType": CHUNK_CONTENT_TYPE,
        "payload": {"type": "string", "format": "binary", "maxLength": 1 << 20},
    }


def _entry() -> dict[str, Any]:
    return {
        "name": ENTRY_TYPE,
        "summary": "One recorded event, byte for byte as its log holds it, on the stream `entries.log`.",
        "description": (
            "Its leaf in the log's tree (RFC 9162) is SHA-256 of a zero byte and the body. Each log comes in its "
            "order. An entry may come again: take the one that is next in its log, and pass over the others. Begin "
            "where you like (consumer argument `x-stream-offset`: `first`, `last`, `next`, an offset, a time)."
        ),
        "contentType": ENTRY_CONTENT_TYPE,
        "headers": {
            "type": "object",
            "required": [LOG_HEADER, INDEX_HEADER, LEAF_HEADER],
            "properties": {
                LOG_HEADER: _PARAMETERS["study"] | {"type": "string"},
                INDEX_HEADER: {"type": "string", "pattern": "^[0-9]+$", "description": "Its place in the log, from 0."},
                LEAF_HEADER: {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "Its leaf."},
            },
        },
        "payload": {
            "schemaFormat": _SCHEMA_FORMAT,
            "schema": {
                "$schema": DIALECT,
                "type": "object",
                "required": ["event", "key_id", "signature"],
                "additionalProperties": False,
                "properties": {
                    "event": {"$ref": "./schemas/envelope.json"},
                    "key_id": {"type": "string", "description": "Who emitted it: `site:<uuid>` or `service:<role>`."},
                    "signature": {
                        "type": "string",
                        "pattern": "^[0-9a-f]{128}$",
                        "description": "The emitter's, as in the header of the message that brought the event.",
                    },
                },
            },
        },
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "required": [KEY_ID_HEADER, SIGNATURE_HEADER],
        "properties": {
            KEY_ID_HEADER: {
                "type": "string",
                "pattern": "^(site|service):[a-z0-9-]+$",
                "description": "Whose key signed: `site:<uuid>` or `service:<role>`.",
            },
            SIGNATURE_HEADER: {
                "type": "string",
                "pattern": "^[0-9a-f]{128}$",
                "description": "Ed25519 over PAE of the label `cohortium/envelope/1`, the key id and the body's bytes.",
            },
            TRACEPARENT_HEADER: {
                "type": "string",
                "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
                "description": "W3C Trace Context, where the sender traces. Not signed; a site's is a link, no parent.",
            },
        },
    }
