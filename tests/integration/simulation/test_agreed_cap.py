"""Hospitals agree in their data-use terms what one study may cost their patients in all its runs. Two runs fit; the
third is refused by each hospital from its own signed copies, though its own limits have room; anybody counts anew."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from tests.integration.simulation.noise import started
from tests.integration.simulation.promises import SUMMED, TREES, plan_of

from cohortium_connector.consent_commands import LocalConsent
from cohortium_connector.ledger.local import LocalLedger
from cohortium_connector.private_work import Order, PrivateDesk
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import own_key
from cohortium_messages.consent import ConsentFile
from cohortium_messages.governance import Invitation
from cohortium_messages.ids import StudyId
from cohortium_messages.problems import sentence
from cohortium_messages.status import RunStatus
from cohortium_privacy.agreed import AgreedCap
from cohortium_privacy.renyi import budget, epsilon_of
from cohortium_privacy.windows import plan_for
from cohortium_sim.demo import demo_tables
from cohortium_sim.plan import Plan, SiteTable
from cohortium_sim.simulate import Simulation
from cohortium_verify import agreed, cohorts
from cohortium_verify.report import VerificationReport
from cohortium_verify.verification import verify_bundle
from consent_stage import Plane

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(600)]

SITES = 3
EPSILON, DELTA = SUMMED["epsilon"], SUMMED["delta"]


class Agreeing(Simulation):
    """A federation whose hospitals' people sign every document, and whose own limits have room for ten runs."""

    def _connector_config(self, site: SiteTable, invitation: Invitation) -> Path:
        path = super()._connector_config(site, invitation)
        settings = yaml.safe_load(path.read_text())
        settings["privacy"] = {"epsilon_max": 100.0, "delta": DELTA}
        path.write_text(yaml.safe_dump(settings))
        return path

    def settings(self, name: str) -> ConnectorSettings:
        folder = self.files.directory / "sites" / self.sites[name].site_id
        return ConnectorSettings.load(folder / "connector.yaml")

    async def agree(self, epsilon: float) -> None:
        """Everybody signs; the terms let the study cost so much in all its runs."""
        spools = {one.site_id: self.settings(name).key_file for name, one in self.sites.items()}
        plane = Plane(
            now=self.clock.now(),
            study=StudyId(self.plan.study.name),
            study_digest=self.plan.study.digest(),
            officers=tuple(self.files.officers[:2]),
            site_keys={site_id: own_key(file) for site_id, file in spools.items()},
        )
        changes = {
            "version": {"epsilon": EPSILON},
            "terms": {"privacy_cap": {"epsilon": epsilon, "delta": DELTA}},
        }
        for name, one in self.sites.items():
            papers = plane.signed(one.site_id, plane.parts(one.site_id, **changes))
            cards = tuple(card for card in plane.cards() if card.site_id in (None, one.site_id))
            async with LocalConsent.open(self.settings(name)) as hospital:
                await hospital.add(ConsentFile(people=cards, records=tuple(papers.values())))
        version = ConsentFile(people=(plane.card(plane.lead),), records=(papers["version"],))
        await self.world.operator.add_documents(version)

    async def again(self) -> RunStatus:
        """Another run of the study, to its end."""
        run = await self.world.operator.submit(self.plan.study.model_dump_json())
        return await self.watch(str(run.run_id), None)

    async def verified(self, status: RunStatus) -> VerificationReport:
        await self.fetch(str(status.run_id), status)
        return verify_bundle(self.plan.out / "audit", list(self.files.trust.governance_keys))

    async def runs_charged(self, name: str) -> int:
        """How many runs this hospital's own ledger has."""
        async with LocalLedger.open(self.settings(name)) as ledger:
            (account,) = (await ledger.look()).accounts
        return len(account.runs)


def governed_plan(folder: Path) -> Plan:
    plan = plan_of(folder, TREES, SUMMED, None, sites=demo_tables(folder / "sites")[:SITES])
    study = plan.study.model_copy(update={"governance": "required"})
    return dataclasses.replace(plan, study=study)


def epsilon_of_runs(plan: Plan, collusion: int, runs: float) -> float:
    """What so many runs of the study come to, added up as divergence."""
    private = plan_for(plan.study, SITES, SITES, collusion)
    assert private is not None
    return epsilon_of(runs * budget(EPSILON, DELTA, private.order), DELTA, private.order)


async def test_two_runs_fit_the_agreed_cap_and_the_third_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = governed_plan(tmp_path)
    async with started(plan, Agreeing) as federation:
        assert isinstance(federation, Agreeing)
        names = {site.name for site in plan.sites}
        first_run = await federation.submit()
        cap = epsilon_of_runs(plan, federation.collusion, 2.5)
        await federation.agree(cap)
        first = await federation.watch(first_run, None)
        assert (first.state, first.reason) == ("FINISHED", "")
        second = await federation.again()
        assert (second.state, second.reason) == ("FINISHED", "")

        third = await federation.again()
        assert (third.state, third.rounds_done) == ("FAILED", ())
        codes = {site.code for site in third.sites}  # who had not answered yet when too few were left has none
        assert "EPSILON_EXHAUSTED" in codes <= {"EPSILON_EXHAUSTED", None}
        assert "no room for the study" in sentence("EPSILON_EXHAUSTED"), "what people read of it"
        assert [await federation.runs_charged(name) for name in sorted(names)] == [2] * SITES
        report = await federation.verified(second)
        assert report.verified, report.text()
        facts = {check.name: check for check in report.checks}
        assert facts[agreed.NAME].fact.startswith("12 plans over all runs, within the caps that 3 signed")
        assert len(facts[cohorts.NAME].notes) == SITES, "whose tables name nobody: rows, not persons"

        # A hospital whose connector does not keep to what its people signed: the log tells.
        caps, poor = PrivateDesk._caps, federation.sites[plan.sites[0].name].site_id

        async def none_there(self: PrivateDesk, order: Order) -> tuple[AgreedCap, ...]:
            mine = self._charges.ledger._site_id == poor
            return () if mine else await caps(self, order)

        monkeypatch.setattr(PrivateDesk, "_caps", none_there)
        await federation.again()
        report = await federation.verified(second)
        assert not report.verified
        (wrong,) = [check for check in report.checks if check.state == "failed"]
        assert wrong.name == agreed.NAME
        assert f"site {poor} is charged epsilon" in wrong.failures[0].text
        assert f"over 3 runs, and data-use terms T-1 allows {cap:g}" in wrong.failures[0].text
