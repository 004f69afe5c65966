"""What each party may do at the broker, computed from the topology and the table of channels: nothing is listed twice.

A site reads its own three queues and writes its own keys of `uplink`; it declares nothing. A service reads what it
consumes and writes where it publishes; only enrolment declares, and only sites' queues.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cohortium_messages.channels import AMONG_SERVICES, CHANNELS, FROM_SITES, Channel
from cohortium_messages.ids import UUID_PATTERN, SiteId
from cohortium_messages.topology import (
    BULK,
    DEAD,
    EXCHANGES,
    SERVICES,
    TASKS,
    UPLINK,
    Binding,
    Exchange,
    ExchangeKind,
    bulk_queue,
    control_queue,
    platform_topology,
    results_queue,
)

SITE_ID = re.compile(UUID_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_UUID = UUID_PATTERN.strip("^$")


CHECK_NAME = "broker-check"
NOBODY = SiteId("00000000-0000-4000-8000-000000000000")
"""What a start-up check tries is of this name, or of this site: a refusal of it is no attack."""
NOBODYS_KEY = f"site.{NOBODY}.{CHECK_NAME}"
"""A key of `uplink` that no login may use, and that reaches no queue."""


BROKER_LOG = "broker.log"
"""Enrolment's queue of what the broker's own log says was refused."""


class Standing(StrEnum):
    """How far a site has come; the rest has no rights at all."""

    INVITED = "invited"
    """It may register, and hear the answer."""
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of the broker's: may this login do this? `name` and `key` as the broker has them."""

    resource: str
    name: str
    permission: str


def site_queues(site: SiteId, standing: Standing) -> tuple[str, ...]:
    """The queues a site may read, by their short names."""
    if standing is Standing.INVITED:
        return (control_queue(site),)
    return control_queue(site), bulk_queue(site), results_queue(site)


def site_may(site: SiteId, standing: Standing, namespace: str, asked: Asked) -> bool:
    """Whether the site may do this with a queue or an exchange. The default exchange has the name `amq.default`."""
    match asked.resource, asked.permission:
        case "queue", "read":
            return asked.name in {f"{namespace}.{queue}" for queue in site_queues(site, standing)}
        case ("exchange", "write") | ("topic", "write"):
            return asked.name == f"{namespace}.{UPLINK.name}"
        case _:
            return False


def site_may_publish(site: SiteId, standing: Standing, key: str) -> bool:
    """Whether the site may use this routing key of `uplink`: one of its own that has a reader."""
    channels = [one for one in FROM_SITES if standing is Standing.ACTIVE or one.consumers == ("enrolment",)]
    return any(_filled(channel, site).fullmatch(key) for channel in channels)


@dataclass(frozen=True, slots=True)
class UserRights:
    """A service's rights, as RabbitMQ's regular expressions over full names; `topics` by exchange, for publishing."""

    configure: str
    write: str
    read: str
    topics: dict[str, str]


def service_rights(role: str, namespace: str) -> UserRights:
    """The least a service needs once the topology exists. Enrolment also makes sites' queues and binds them."""
    exchanges = _written(role)
    write = [re.escape(f"{namespace}.{exchange.name}") for exchange in exchanges]
    read = [re.escape(f"{namespace}.{name}") for name in _consumed(role)]
    # To see how many messages wait there: RabbitMQ 4 tells who has any right to a queue. With this one nothing can be
    # read there, nor sent past the exchanges.
    write += [re.escape(f"{namespace}.{name}") for name in watched_queues(role) if name.endswith(".dead")]
    configure = []
    if role == "enrolment":
        own = rf"{re.escape(namespace)}\.site\.{_UUID}\.(control|bulk|results)"
        log = re.escape(f"{namespace}.{BROKER_LOG}")
        configure += [own, log]
        write.append(log)
        read += [log, re.escape("amq.rabbitmq.log")]
        # To bind needs to write the queue and to read the exchange; to name where dead letters go, to read the queue.
        write.append(own)
        read += [own, *(re.escape(f"{namespace}.{exchange.name}") for exchange in (TASKS, BULK))]
    topics = {f"{namespace}.{exchange.name}": _keys(role, exchange) for exchange in exchanges if _is_topic(exchange)}
    return UserRights(_any(configure), _any(write), _any(read), topics | {f"{namespace}.{UPLINK.name}": "^$"})


def watched_queues(role: str) -> tuple[str, ...]:
    """The queues of a service that exist without it, by their short names: those it consumes, and their dead letters,
    which its measures count. `sites.dead` has nobody else who looks at it."""
    more = {"aggregator": ("chunks", "steps"), "scheduler": ("presence",), "enrolment": ("sites",)}
    first_names = {role, *more.get(role, ())}
    return tuple(one.name for one in platform_topology().queues if one.name.partition(".")[0] in first_names)


def foreign_exchanges(role: str) -> tuple[str, ...]:
    """The exchanges to which a service never publishes, by their short names."""
    return tuple(exchange.name for exchange in EXCHANGES if exchange not in _written(role))


def _written(role: str) -> set[Exchange]:
    # `services` for all: a service proves by a message to itself that its own queue works.
    return {channel.exchange for channel in CHANNELS if channel.publisher == role} | {DEAD, SERVICES}


def _consumed(role: str) -> Iterable[str]:
    """The queues of the platform that receive what this role consumes."""
    wanted = [one for one in (*FROM_SITES, *AMONG_SERVICES) if role in one.consumers]
    for queue in platform_topology().queues:
        if any(_reaches(binding, channel) for binding in queue.bindings for channel in wanted):
            yield queue.name


def _reaches(binding: Binding, channel: Channel) -> bool:
    return binding.exchange == channel.exchange.name and _filled(channel, r"\*").fullmatch(binding.key) is not None


def _filled(channel: Channel, site: str) -> re.Pattern[str]:
    """The channel's keys as a pattern; `site` stands for `{site}`."""
    escaped = re.escape(channel.key).replace(re.escape("{site}"), site)
    return re.compile(escaped.replace(re.escape("{partition}"), "[0-9]{1,3}"), re.ASCII)


def _keys(role: str, exchange: Exchange) -> str:
    if exchange == DEAD:
        # Where a queue's dead letters go is the queue's own key; a service parks those of the queues it reads.
        own = {queue.name: queue.dead_letter_key for queue in platform_topology().queues}
        return _any(sorted({re.escape(key) for name in _consumed(role) if (key := own[name])}))
    channels = [one for one in CHANNELS if one.publisher == role and one.exchange == exchange]
    types = {message.type_name for channel in channels for message in channel.messages}
    return _any([rf"[a-z0-9-]+\.{re.escape(name)}" for name in types])


def _is_topic(exchange: Exchange) -> bool:
    return exchange.kind is ExchangeKind.TOPIC


def _any(patterns: list[str]) -> str:
    return f"^({'|'.join(sorted(patterns))})$" if patterns else "^$"
