"""The hospital's alert rules name what its connector exports."""

from pathlib import Path
from typing import Any, get_args

import promql_parser as promql
import yaml
from connector_world import World

from cohortium_connector.domain.log_alarms import AlarmCode
from cohortium_connector.witness import DAMAGED
from cohortium_messages.problems import SENTENCES
from cohortium_protocol.witness import LogForked

FOLDER = Path(__file__).parents[3] / "deploy" / "hospital"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


async def test_the_hospitals_alerts_name_what_its_connector_exports(world: World) -> None:
    app = await world.build()
    status, _, body = await app._shown.pages()["/metrics"]()
    await app.db.close()
    assert status == 200
    for rule in RULES:
        comparison = promql.parse(rule["expr"])
        assert isinstance(comparison, promql.BinaryExpr)
        assert isinstance(comparison.lhs, promql.AggregateExpr)
        name = comparison.lhs.expr.name
        labels = set(comparison.lhs.modifier.labels) - {"job"}
        lines = [line for line in body.decode().splitlines() if line.startswith(name)]
        assert lines, f"the connector exports no {name}"
        assert all(f"{label}=" in line for label in labels for line in lines)
        assert (FOLDER.parents[1] / rule["annotations"]["runbook"]).is_file()


def test_each_alarm_has_its_sentence_and_its_line_on_the_page() -> None:
    page = (FOLDER / "log-alarms.md").read_text(encoding="utf-8")
    for code in (LogForked.code, DAMAGED, *get_args(AlarmCode)):
        assert f"| `{code}` |" in page
        assert code in SENTENCES
