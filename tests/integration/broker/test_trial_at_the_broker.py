"""The hospital's trial at a broker as closed as a federation runs it: TLS, own rights only, enrolment behind it."""

from pathlib import Path

import pytest
import yaml
from broker_world import NAMESPACE, GuardedWorld

from cohortium_cli.federation import ConnectorSpec, create_connector
from cohortium_connector.app import App
from cohortium_connector.preflight.trial import Trial, carry_out
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store import site as site_store
from cohortium_enrolment.preflights import reports_of
from governance_stage import eventually, running

pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.timeout(300)]


def found(trial: Trial) -> dict[str, tuple[str, str | None]]:
    return {finding.name: (finding.state, finding.code) for finding in trial.findings}


async def test_a_trial_before_and_after_enrolment_and_after_revocation(guarded: GuardedWorld, tmp_path: Path) -> None:
    invitation = await guarded.invitation("Cleveland")
    spec = ConnectorSpec(
        tmp_path / "hospital",
        invitation,
        guarded.broker.url(),
        NAMESPACE,
        {},
        more={"trainer": {"isolation": "warn"}},
        broker_check="strict",
    )
    settings = ConnectorSettings.model_validate(yaml.safe_load(create_connector(spec).read_text()))

    first = await carry_out(settings)
    assert found(first)["identity"] == ("skipped", "NOT_ENROLLED")
    assert found(first)["certificate"] == ("ok", None)
    assert found(first)["login"] == ("ok", None), "the invitation lets it in"
    assert first.sent == ()

    app = await App.build(settings)
    async with running(app):

        async def registered() -> bool:
            async with app.db.reading("test") as tx:
                record = await site_store.find_site(tx)
            return record is not None and record.registered

        await eventually(registered, timeout_s=120)

    second = await carry_out(settings)
    states = found(second)
    for name in ("name", "connection", "tls", "certificate", "login", "rights", "queues", "clock", "training"):
        assert states[name] == ("ok", None), name
    assert states["line"][1] != "NO_ECHO"
    assert {finding.name: finding.facts for finding in second.findings}["tls"]["protocol"] == "TLSv1.3"
    assert second.sent == ("enrolment", "scheduler")

    async def kept() -> bool:
        async with guarded.db.reading("test") as tx:
            reports = await reports_of(tx, [invitation.site_id])
        return invitation.site_id in reports and reports[invitation.site_id][0] == second.report

    await eventually(kept, timeout_s=120)

    await guarded.revoke(invitation.site_id)
    third = await carry_out(settings)
    assert found(third)["login"] == ("failed", "LOGIN_REFUSED")
    assert third.sent == ()
