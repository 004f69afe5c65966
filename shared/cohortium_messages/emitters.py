"""Who may say which event, by the table of channels: the log refuses what another one says, and so does its checker."""

from collections.abc import Mapping
from typing import Final

from cohortium_messages.channels import CHANNELS
from cohortium_messages.events import AuditEvent

SITE: Final = "site"


def _emitters() -> Mapping[type[AuditEvent], frozenset[str]]:
    found: dict[type[AuditEvent], frozenset[str]] = {}
    for channel in CHANNELS:
        for message in channel.messages:
            if "audit" in channel.consumers and issubclass(message, AuditEvent):
                found[message] = found.get(message, frozenset()) | {channel.publisher}
    return found


EMITTERS: Final = _emitters()
"""By event: `site`, or the role of a service."""


def may_say(key_id: str, kind: type[AuditEvent]) -> bool:
    """Whether the holder of this key (`site:<id>`, `service:<role>`) may emit events of this type."""
    party, _, name = key_id.partition(":")
    return (SITE if party == SITE else name) in EMITTERS[kind]
