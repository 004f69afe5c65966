"""A hospital leaves a finished study and its models are retired: all that learnt from it; nobody gets them again."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.integration.simulation.noise import started
from tests.integration.simulation.test_withdrawal import case_of, decide, finished, hospital, leave, until

from cohortium_cli.model_use import cosigned
from cohortium_cli.operator import OperatorError
from cohortium_connector.store.models import retired
from cohortium_messages.secure_sum import ModelRef
from cohortium_messages.study_file import parse_study
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import ReceiptRefused, verify_receipt
from cohortium_protocol.release import ATTESTATION, Candidate, sign_release
from cohortium_sim import simulate
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import Simulation
from cohortium_verify.loading import Trust, load_model
from cohortium_verify.not_loaded import ModelIsRetired
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("a", "b", "c", "d")
STUDY = """
apiVersion: cohortium/study/1
governance: trial
name: retired
purpose: a hospital leaves when the model is in use
dataset:
  features: [{name: age, type: float, range: [0, 120]}]
  label: {name: ill, type: binary}
  split: {test: 0.2}
recipe: {trainer: torch.logistic}
federation: {rounds: 2, min_sites: 3}
"""


def plan_in(folder: Path) -> Plan:
    table = folder / "table.csv"
    table.write_text("age,ill\n" + "".join(f"{30 + row},{row % 2}\n" for row in range(40)))
    sites = tuple(SiteTable(name, table) for name in SITES)
    return check_plan(Plan(study=parse_study(STUDY), sites=sites, out=folder / "out"))


async def released(simulation: Simulation, run_id: str) -> Path:
    """The run's model in use: signed by an officer, on record, and handed out with the hospitals' quorum."""
    operator = simulation.world.operator
    await simulation.fetch(run_id, await operator.run(run_id))
    attestation = (simulation.plan.out / "model" / ATTESTATION).read_bytes()
    candidate = Candidate.of(attestation, simulation.files.trust.services.aggregator)
    officer = simulation.files.officers[0]
    await operator.sign_release(run_id, sign_release(candidate, "Olga", simulation.clock.now(), officer))

    async def proven() -> bytes | None:
        if (await operator.release(run_id))["state"] != "released":
            return None
        archive, lacking = await cosigned(operator, await operator.model_bundle(run_id), simulation.plan.study.name)
        return None if lacking else archive

    path = simulation.plan.out / "model.zip"
    path.write_bytes(await until(proven, "the release with its quorum"))
    return path


async def refuses(simulation: Simulation, name: str, refs: Sequence[ModelRef]) -> bool:
    """Whether this hospital works on none of these models any more."""
    async with hospital(simulation, name) as site, site._db.reading("test_retired") as tx:
        return all([await retired(tx, (ref,)) for ref in refs])


def fetch(bundle: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        archive.extractall(folder)


async def test_retired_models_are_handed_out_and_loaded_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "OWN_TRAINERS", 0)
    async with started(plan_in(tmp_path)) as simulation:
        operator, plan = simulation.world.operator, simulation.plan
        run_id = await simulation.submit()
        status = await finished(operator, run_id)
        assert (status.state, status.reason) == ("FINISHED", "")
        model = await released(simulation, run_id)
        trust = Trust(simulation.files.trust, GovernancePin.of(simulation.files.trust))
        before = tmp_path / "before"
        fetch(await operator.audit_bundle(plan.study.name), before)
        assert load_model(model, trust, log=before).state == "released"

        await leave(simulation, "d", "retire")
        case = await case_of(simulation, "d", "EFFECTIVE")
        listed = {(one["run_id"], one["model"]["version"]) for one in case["models"]}
        assert listed == {(run_id, version) for version in range(3)}, "from version 0 on: the statistics counted it"
        await decide(simulation, case, "retire")
        case = await case_of(simulation, "d", "PROVEN")
        assert {(one["run_id"], one["model"]["version"]) for one in case["retired"]} == listed
        assert case["retrained"] is None

        with pytest.raises(OperatorError) as refused:
            await operator.model_bundle(run_id)
        assert refused.value.code == "MODEL_RETIRED"
        refs = [ModelRef.model_validate(one["model"]) for one in case["models"]]
        for name in ("a", "b", "c"):
            await until(lambda name=name: refuses(simulation, name, refs), f"the retirement at {name}")
        receipt, pin = await operator.receipt(case), GovernancePin.of(simulation.files.trust)
        facts = verify_receipt(receipt, pin).facts
        assert facts["decision"]["effect"] == "retire"
        assert len(facts["models"]["retired"]) == len(listed)
        forged = receipt.model_copy(update={"statement": receipt.statement.replace('"sig":"', '"sig":"0', 1)})
        with pytest.raises(ReceiptRefused):
            verify_receipt(forged, pin)

        after = tmp_path / "after" / "audit"
        fetch(await operator.audit_bundle(plan.study.name), after)
        fetch(model.read_bytes(), after.with_name("model"))
        report = verify_bundle(after, list(simulation.files.trust.governance_keys))
        assert report.verified, report.text()
        assert "this model was retired after a withdrawal" in report.text()
        # The file that was handed out before cannot be called back; whoever asks the log is told.
        assert load_model(model, trust, log=before).state == "released"
        with pytest.raises(ModelIsRetired, match=case["withdrawal"]):
            load_model(model, trust, log=after)
