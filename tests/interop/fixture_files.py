"""The files of `contracts/fixtures`: `python tests/interop/fixture_files.py` writes those that are missing.

A file holds a message as a broker would carry it: the two headers that sign it, and the envelope. The signature covers
the envelope's canonical bytes (RFC 8785). Files that are there already stay as they are: see `fixture_messages`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import rfc8785
from fixture_messages import MESSAGES, NOW, RUN_ID, SITES, STUDY_ID, octets

from cohortium_messages.channels import CHANNELS
from cohortium_messages.envelope import KEY_ID_HEADER, SIGNATURE_HEADER, Envelope
from cohortium_messages.events import AuditEvent
from cohortium_messages.registry import Message
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey

FOLDER = Path(__file__).parents[2] / "contracts" / "fixtures" / "v1"


def signing_key(key_id: str) -> IdentityKey:
    """The key of one party of the fixtures. Everybody can make it: it must never be used elsewhere."""
    return IdentityKey.from_seed(octets(f"key of {key_id}"))


def sender_of(message: Message) -> str:
    """The key id of a party that may publish this type."""
    publisher = next(channel.publisher for channel in CHANNELS if type(message) in channel.messages)
    return f"site:{SITES[1]}" if publisher == "site" else f"service:{publisher}"


def signed(message: Message) -> dict[str, Any]:
    """The message as a fixture file holds it."""
    key_id = sender_of(message)
    envelope = Envelope(
        id=f"fixture-{octets(message.type_name, 8).hex()}",
        source="/" + key_id.replace(":", "/"),
        type=message.type_name,
        time=NOW,
        correlationid=RUN_ID,
        study=STUDY_ID if isinstance(message, AuditEvent) else None,
        data=message.model_dump(mode="json"),
    )
    body = envelope.model_dump(mode="json")
    signature = EnvelopeSigner(key_id, signing_key(key_id)).sign(rfc8785.dumps(body))
    return {"headers": {KEY_ID_HEADER: key_id, SIGNATURE_HEADER: signature.hex()}, "body": body}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for message in MESSAGES:
        path = FOLDER / f"{message.type_name}.json"
        if not path.exists():
            path.write_text(json.dumps(signed(message), indent=2) + "\n", encoding="utf-8")
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
