"""A site's rights at the broker: exactly its own queues and its own keys."""

import pytest

from cohortium_messages.channels import FROM_SITES
from cohortium_messages.ids import SiteId
from cohortium_messages.rights import Asked, Standing, site_may, site_may_publish
from cohortium_messages.topology import control_queue, site_topology

ME = SiteId("11111111-1111-4111-8111-111111111111")
OTHER = SiteId("22222222-2222-4222-8222-222222222222")


@pytest.mark.parametrize("channel", FROM_SITES, ids=lambda channel: channel.name)
def test_every_channel_of_a_site_may_be_used_by_it_and_by_nobody_else(channel: object) -> None:
    key = channel.key.replace("{site}", ME).replace("{partition}", "1")  # type: ignore[attr-defined]
    assert site_may_publish(ME, Standing.ACTIVE, key)
    assert not site_may_publish(OTHER, Standing.ACTIVE, key)
    assert site_may_publish(ME, Standing.INVITED, key) == key.endswith(".enrolment")


@pytest.mark.parametrize("tail", ["", ".", ".#", ".*", ".audit.x", ".audit\n", "x.audit", ".chunks.x", ".operator"])
def test_no_other_key(tail: str) -> None:
    assert not site_may_publish(ME, Standing.ACTIVE, f"site.{ME}{tail}")
    assert not site_may_publish(ME, Standing.ACTIVE, tail)


def test_exactly_its_own_queues_may_be_read() -> None:
    names = [f"co.{queue.name}" for queue in site_topology(ME).queues]
    assert all(site_may(ME, Standing.ACTIVE, "co", Asked("queue", name, "read")) for name in names)
    assert not any(site_may(OTHER, Standing.ACTIVE, "co", Asked("queue", name, "read")) for name in names)
    assert not any(site_may(ME, Standing.ACTIVE, "other", Asked("queue", name, "read")) for name in names)
    allowed = [name for name in names if site_may(ME, Standing.INVITED, "co", Asked("queue", name, "read"))]
    assert allowed == [f"co.{control_queue(ME)}"]


@pytest.mark.parametrize("permission", ["configure", "write"])
def test_no_queue_may_be_declared_or_bound(permission: str) -> None:
    for queue in site_topology(ME).queues:
        assert not site_may(ME, Standing.ACTIVE, "co", Asked("queue", f"co.{queue.name}", permission))


@pytest.mark.parametrize("exchange", ["", "amq.default", "amq.topic", "co.services", "co.uplinkx", "xco.uplink"])
def test_no_exchange_but_the_uplink(exchange: str) -> None:
    assert not site_may(ME, Standing.ACTIVE, "co", Asked("exchange", exchange, "write"))
    assert site_may(ME, Standing.ACTIVE, "co", Asked("exchange", "co.uplink", "write"))
    assert not site_may(ME, Standing.ACTIVE, "co", Asked("exchange", "co.uplink", "read"))
