"""A service says in the platform's log that it runs under other settings, or another trust document, than before.

The digests are of canonical JSON. Settings are hashed without the user and password in an address, for a digest of a
short secret is as good as the secret; what is in files is named by its path alone. The port is left out, too: several
instances of one service differ in it and in nothing else.
"""

import hashlib
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

import rfc8785

from cohortium_kit.db import Database, Tx
from cohortium_kit.envelopes import Sender
from cohortium_kit.marks import marked, set_mark
from cohortium_kit.settings import SecretText, Settings
from cohortium_messages.governance import TrustDocument
from cohortium_messages.oversight import ConfigurationChanged
from cohortium_platform.recording import put_on_record

NOT_CONFIGURATION: Final = frozenset({"http_port"})
Part = Literal["settings", "trust"]


def settings_digest(settings: Settings) -> bytes:
    """SHA-256 of the settings, without secrets and without the port."""
    fields = type(settings).model_fields
    secrets = {name for name in fields if isinstance(getattr(settings, name), SecretText)}
    shown: dict[str, Any] = settings.model_dump(mode="json", exclude=set(NOT_CONFIGURATION))
    # Sets have no order of their own: the same settings must have the same digest in every process.
    plain = {name: _without_login(value) if name in secrets else _ordered(value) for name, value in shown.items()}
    return hashlib.sha256(rfc8785.dumps(plain)).digest()


def trust_digest(trust: TrustDocument) -> bytes:
    """SHA-256 of the trust document with its signatures: which keys are whose."""
    return hashlib.sha256(rfc8785.dumps(trust.model_dump(mode="json"))).digest()


async def note_configuration(db: Database, sender: Sender, trust: TrustDocument, settings: Settings) -> None:
    """At a service's start: tell the log what changed since its last start; nothing if nothing did."""
    now: dict[Part, bytes] = {"settings": settings_digest(settings), "trust": trust_digest(trust)}

    async def note(tx: Tx) -> None:
        for part, digest in now.items():
            await _note(tx, sender, part, digest)

    await db.run("note_configuration", note)


async def _note(tx: Tx, sender: Sender, part: Part, digest: bytes) -> None:
    name = f"configuration/{part}"
    before = await marked(tx, name)
    if before == digest.hex():
        return
    await set_mark(tx, name, digest.hex())
    changed = ConfigurationChanged(part=part, before=None if before is None else bytes.fromhex(before), after=digest)
    await put_on_record(tx, sender, changed, study=None)


def _without_login(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _ordered(one) for name, one in value.items()}
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return sorted(value)
    return [_ordered(one) for one in value] if isinstance(value, list) else value
