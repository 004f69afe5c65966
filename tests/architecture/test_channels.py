"""The table of channels, the topology and the registry tell one story, and AsyncAPI tells it whole."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cohortium_messages.channels import CHANNELS, PARTIES, Channel
from cohortium_messages.events import AuditEvent
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import released_types
from cohortium_messages.topology import (
    ENTRIES_STREAM,
    PRESENCE_QUEUE,
    Queue,
    bulk_queue,
    chunk_queue,
    control_queue,
    inbox,
    platform_topology,
    results_queue,
    site_topology,
    steps_queue,
)
from cohortium_messages.witness import CheckpointCosigned, CheckpointElsewhere, InclusionAsked

CONTRACTS = Path(__file__).parents[2] / "contracts"
SITE = SiteId("22000000-0000-4000-8000-000000000002")
QUEUES = (*platform_topology().queues, *site_topology(SITE).queues)
READERS = {
    control_queue(SITE): "site",
    bulk_queue(SITE): "site",
    results_queue(SITE): "site",
    PRESENCE_QUEUE: "scheduler",
    ENTRIES_STREAM: "integrator",
    chunk_queue(0): "aggregator",
    steps_queue(0): "aggregator",
    **{inbox(party): party for party in PARTIES},
}


def keys(channel: Channel) -> Iterator[str]:
    """Keys that the template stands for."""
    for message in channel.messages or (None,):
        type_name = message.type_name if message else ""
        yield channel.key.format(site=SITE, partition=0, study="heart-disease", type=type_name)


def matches(pattern: str, key: str) -> bool:
    """A topic binding, as the broker reads it; a direct one is a pattern without wildcards."""
    words = [{"*": r"[^.]+", "#": r".*"}.get(word, re.escape(word)) for word in pattern.split(".")]
    return re.fullmatch(r"\.".join(words), key) is not None


def reached(exchange: str, key: str) -> list[Queue]:
    return [
        queue
        for queue in QUEUES
        if any(binding.exchange == exchange and matches(binding.key, key) for binding in queue.bindings)
    ]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
def test_every_key_reaches_exactly_the_readers_named(channel: Channel) -> None:
    for key in keys(channel):
        assert {READERS[queue.name] for queue in reached(channel.exchange.name, key)} == set(channel.consumers)


def test_every_message_type_has_a_channel() -> None:
    assert {message.type_name for channel in CHANNELS for message in channel.messages} == set(released_types())


def test_a_channel_has_messages_or_a_frame_and_its_own_name() -> None:
    assert all(bool(channel.messages) != bool(channel.frame) for channel in CHANNELS)
    names = [channel.name for channel in CHANNELS]
    assert len(set(names)) == len(names)


def test_only_the_audit_service_reads_events() -> None:
    for channel in CHANNELS:
        if any(issubclass(message, AuditEvent) for message in channel.messages):
            assert channel.consumers == ("audit",)
            others = {message for message in channel.messages if not issubclass(message, AuditEvent)}
            of_witnesses = {CheckpointCosigned, CheckpointElsewhere, InclusionAsked}
            assert others <= of_witnesses, "what a witness and audit say to each other is in no log"


def test_a_site_publishes_under_its_own_prefix_only() -> None:
    for channel in CHANNELS:
        if channel.publisher == "site":
            assert channel.exchange.name == "uplink"
            assert channel.key.startswith("site.{site}.")


def test_the_audit_service_accepts_events_from_their_publishers_and_nobody_else() -> None:
    from cohortium_messages.emitters import EMITTERS

    for event in (kind for kind in released_types().values() if issubclass(kind, AuditEvent)):
        assert {channel.publisher for channel in CHANNELS if event in channel.messages} == set(EMITTERS[event])


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load((CONTRACTS / "asyncapi.yaml").read_text(encoding="utf-8"))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_of_the_document_leads_somewhere(document: Any) -> None:
    for reference in references(document):
        if reference.startswith("#/"):
            node = document
            for part in reference[2:].split("/"):
                node = node[part]
        else:
            assert (CONTRACTS / reference).is_file(), reference


def test_every_message_of_the_document_is_sent_and_received(document: Any) -> None:
    used: dict[str, set[str]] = {"send": set(), "receive": set()}
    for operation in document["operations"].values():
        used[operation["action"]] |= {message["$ref"] for message in operation["messages"]}
    assert used["send"] == used["receive"]
    named = {reference.rpartition("/")[2] for reference in used["send"]}
    assert named == set(document["components"]["messages"])


def test_an_operation_names_messages_of_its_own_channel(document: Any) -> None:
    for operation in document["operations"].values():
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])
