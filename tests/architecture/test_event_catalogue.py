"""The catalogue of audit events in contracts/audit.md: every event is in it, and it names no other."""

import re
from pathlib import Path

from cohortium_messages.channels import CHANNELS
from cohortium_messages.events import AuditEvent

PAGE = Path(__file__).parents[2] / "contracts" / "audit.md"
NONE = {"drift alarm, acknowledged", "document rendered"}
"""What has no event, since there is nothing yet that it would tell of."""


def rows() -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").partition("## What is on record\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_event_is_in_the_catalogue_and_every_name_there_is_an_event() -> None:
    named = {name for row in rows() for name in re.findall(r"`([a-z_]+)`", row[1])}
    # Every message type has its channel: another test holds them to that.
    events = {kind for channel in CHANNELS for kind in channel.messages if issubclass(kind, AuditEvent)}
    assert named == {kind.type_name.removeprefix("cohortium.audit.").removesuffix(".v1") for kind in events}


def test_what_has_no_event_says_so() -> None:
    assert {row[0] for row in rows() if not row[1]} == NONE
    assert all(row[2].startswith("none: ") for row in rows() if not row[1])
