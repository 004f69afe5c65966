"""`cohortium sites`: the hospitals that enrolment knows, and what their newest trials found."""

from collections.abc import Mapping
from typing import Any

from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile
from cohortium_cli.output import show, table
from cohortium_cli.runs import ask

NO_TRIAL = "no trial yet"


def sites(operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """List hospitals, the oldest first: state, line, and what the newest trial (`connector preflight`) found."""
    listed = ask(operator, lambda client: client.sites())
    show(
        listed,
        as_json=as_json,
        human=lambda: table(
            "Hospitals",
            ["site", "name", "state", "line up/down", "trial"],
            [site_row(one) for one in listed],
            empty="There is no hospital yet; `cohortium site invite NAME` invites one.",
        ),
    )


def site_row(site: Mapping[str, Any]) -> list[str]:
    """One hospital as a line of the table."""
    report = site.get("preflight")
    return [site["site_id"], site["name"], site["state"], _line(report), _trial(report, site.get("preflight_at"))]


def _line(report: Mapping[str, Any] | None) -> str:
    rates = [report["capacity"].get(name) for name in ("up_mbit_s", "down_mbit_s")] if report else []
    return "/".join(f"{rate:.0f}" for rate in rates) + " Mbit/s" if rates and None not in rates else ""


def _trial(report: Mapping[str, Any] | None, came_at: str | None) -> str:
    if report is None:
        return NO_TRIAL
    faults = {state: _named(report, state) for state in ("failed", "warning")}
    told = [f"{state}: {', '.join(names)}" for state, names in faults.items() if names]
    return f"{(came_at or '')[:10]} {'; '.join(told) or 'all well'}".strip()


def _named(report: Mapping[str, Any], state: str) -> list[str]:
    return [f"{one['name']} {one['code'] or ''}".strip() for one in report["checks"] if one["state"] == state]
