"""Services listen to exactly what the table of channels says that they read."""

import ast
from pathlib import Path

import pytest

from cohortium_messages.channels import CHANNELS, Party
from cohortium_messages.events import AuditEvent
from cohortium_messages.registry import released_types

SERVICES = Path(__file__).parents[2] / "services"


def listened_to(package: str) -> set[str]:
    """The class names in `consumer.on(Kind, handler)` anywhere in the package."""
    found = set()
    for file in (SERVICES / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="on"), args=[ast.Name(id=kind), _]):
                    found.add(kind)
    return found & {kind.__name__ for kind in released_types().values()}


def named_for(party: Party) -> set[str]:
    # Presence has a queue and a listener of its own; echoes are for the trial, which runs while the connector does not.
    apart = {"uplink.presence", "echoes"}
    channels = [channel for channel in CHANNELS if party in channel.consumers and channel.name not in apart]
    return {kind.__name__ for channel in channels for kind in channel.messages if not issubclass(kind, AuditEvent)}


@pytest.mark.parametrize("party", ["enrolment", "consent", "scheduler", "aggregator", "audit"])
def test_a_service_listens_to_what_is_sent_to_it(party: Party) -> None:
    assert listened_to(f"cohortium_{party}") == named_for(party)


def test_the_connector_listens_to_what_is_sent_to_sites_and_to_those_who_may_send_it() -> None:
    from cohortium_connector.handlers.routes import SENDERS

    said = {
        kind: frozenset(
            f"service:{one.publisher}" for one in CHANNELS if kind in one.messages and one.consumers == ("site",)
        )
        for kind in SENDERS
    }
    assert said == SENDERS
    assert {kind.__name__ for kind in SENDERS} == named_for("site")
