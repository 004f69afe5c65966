"""The alerts about the broker name what RabbitMQ, with the plugins that we ship, tells Prometheus."""

import re
from pathlib import Path

import httpx
import pytest
import yaml
from broker_world import GuardedBroker

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
DEPLOY = Path(__file__).parents[3] / "deploy"


def wanted() -> set[str]:
    groups = yaml.safe_load((DEPLOY / "observability" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return {name for group in groups for rule in group["rules"] for name in re.findall(r"\brabbitmq_\w+", rule["expr"])}


async def test_alarms_are_told_to_prometheus_and_are_zero(guarded_broker: GuardedBroker) -> None:
    assert "rabbitmq_prometheus" in (DEPLOY / "rabbitmq" / "enabled_plugins").read_text(encoding="ascii")
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{guarded_broker.measures_port}/metrics")
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line and not line.startswith("#"))
    names = wanted()
    told = {name: found[name] for name in names if name in found}
    assert set(told.values()) == {"0"}
    assert names - told.keys() <= {"rabbitmq_alarms_file_descriptor_limit"}, "RabbitMQ 4.3 has no such alarm"
