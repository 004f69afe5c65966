"""What RabbitMQ will let each service write, from the definitions that it loads: its channels, and nothing else."""

import re
from typing import Any

import pytest

from cohortium_cli.broker import USERS, make_definitions
from cohortium_messages.channels import CHANNELS
from cohortium_messages.ids import SiteId
from cohortium_messages.registry import released_types
from cohortium_messages.rights import BROKER_LOG, CHECK_NAME, NOBODYS_KEY, foreign_exchanges, watched_queues
from cohortium_messages.topology import (
    DEAD,
    EVENTS,
    EXCHANGES,
    SERVICE_NAMES,
    SERVICES,
    UPLINK,
    ExchangeKind,
    bulk_queue,
    control_queue,
    platform_topology,
    results_queue,
    site_topology,
)

ME = SiteId("11111111-1111-4111-8111-111111111111")
NAMESPACE = "co-hort.eu"
"""With what means something else in a regular expression."""
MADE = make_definitions(NAMESPACE, "v", dict.fromkeys(USERS, "p"), 100)
RIGHTS = {one["user"]: one for one in MADE["permissions"]}
TOPICS = {(one["user"], one["exchange"]): one for one in MADE["topic_permissions"]}
FOREIGN = ["", "amq.default", "amq.topic", "amq.rabbitmq.log", f"{NAMESPACE}.{CHECK_NAME}", "other.events"]


def may(role: str, permission: str, name: str) -> bool:
    """RabbitMQ looks for the pattern anywhere in the name."""
    return re.search(RIGHTS[role][permission], name) is not None


def may_use(role: str, exchange: str, key: str) -> bool:
    """For a topic exchange; without an entry every key would do."""
    return re.search(TOPICS[role, f"{NAMESPACE}.{exchange}"]["write"], key) is not None


def published(role: str) -> set[str]:
    """`services` is everybody's, for messages to oneself, and `dead` for parking."""
    return {channel.exchange.name for channel in CHANNELS if channel.publisher == role} | {DEAD.name, SERVICES.name}


@pytest.mark.parametrize("role", SERVICE_NAMES)
class TestAService:
    def test_it_writes_the_exchanges_of_its_channels_and_no_other(self, role: str) -> None:
        written = {exchange.name for exchange in EXCHANGES if may(role, "write", f"{NAMESPACE}.{exchange.name}")}
        assert written == published(role)
        assert {exchange.name for exchange in EXCHANGES} - written == set(foreign_exchanges(role))
        assert UPLINK.name not in written
        names = [*FOREIGN, *(f"{NAMESPACE}.{name}x" for name in written), *(f"x{NAMESPACE}.{name}" for name in written)]
        names += [f"{NAMESPACE.replace('.', '-')}.{name}" for name in written]
        assert not [name for name in names if may(role, "write", name)]

    def test_it_writes_no_queue_but_that_enrolment_binds_sites_queues(self, role: str) -> None:
        queues = [f"{NAMESPACE}.{queue.name}" for queue in platform_topology().queues]
        # The right to write one's parking queues is there to see how many messages wait in them.
        counted = {f"{NAMESPACE}.{name}" for name in watched_queues(role) if name.endswith(".dead")}
        assert {name for name in queues if may(role, "write", name) or may(role, "configure", name)} == counted
        site = [f"{NAMESPACE}.{queue.name}" for queue in site_topology(ME).queues]
        assert {name.rpartition(".site.")[2] for name in site} == {
            name(ME).removeprefix("site.") for name in (control_queue, bulk_queue, results_queue)
        }
        for name in [*site, f"{NAMESPACE}.{BROKER_LOG}"]:
            assert may(role, "write", name) == may(role, "configure", name) == (role == "enrolment")

    def test_its_events_have_the_types_of_its_channels_and_no_other(self, role: str) -> None:
        own = {
            kind.type_name
            for one in CHANNELS
            if one.publisher == role and one.exchange == EVENTS
            for kind in one.messages
        }
        assert own
        for study in ("-", "heart-disease-2"):
            assert {name for name in released_types() if may_use(role, EVENTS.name, f"{study}.{name}")} == own
        name = min(own)
        for key in ("#", "*", "", CHECK_NAME, name, f"a.b.{name}", f"-.{name}x", f"-.{name}.x", f"-.{name}\nx"):
            assert not may_use(role, EVENTS.name, key), key

    def test_it_parks_what_it_reads_and_nothing_else(self, role: str) -> None:
        read = {
            queue.dead_letter_key
            for queue in platform_topology().queues
            if may(role, "read", f"{NAMESPACE}.{queue.name}")
        }
        keys = {queue.dead_letter_key for queue in platform_topology().queues if queue.dead_letter_key}
        assert {key for key in keys if may_use(role, DEAD.name, key)} == read - {None}
        assert not [key for key in (CHECK_NAME, "#", "", "sites") if may_use(role, DEAD.name, key) and key not in read]

    def test_it_uses_no_key_of_a_site(self, role: str) -> None:
        keys = [f"site.{ME}.{name}" for name in (*SERVICE_NAMES, "presence", "chunks.0", "steps.1")]
        assert not [key for key in (*keys, NOBODYS_KEY, "#", "site") if may_use(role, UPLINK.name, key)]

    def test_no_topic_exchange_is_forgotten(self, role: str) -> None:
        topics = {exchange.name for exchange in EXCHANGES if exchange.kind is ExchangeKind.TOPIC}
        assert {name.removeprefix(f"{NAMESPACE}.") for user, name in TOPICS if user == role} == topics
        assert all(entry["read"] == "^$" for (user, _), entry in TOPICS.items() if user == role)


def test_no_two_entries_are_for_one_user_and_one_place() -> None:
    entries: list[dict[str, Any]] = MADE["topic_permissions"]
    assert len(entries) == len(TOPICS)
    assert len(MADE["permissions"]) == len(RIGHTS)
