"""`make tour-governance`: the whole story on real servers, told in words, and what it leaves verifies."""

import json
from pathlib import Path

import pytest

from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import ReceiptFile, verify_receipt
from cohortium_sim.tour import main
from cohortium_sim.tour_story import AFTER_UNMASK, HOSPITALS, LEAVE
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.long, pytest.mark.timeout(3000)]


def test_the_tour_does_what_it_says(
    amqp_url: str, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tour"
    code = main(["--out", str(out), "--amqp", amqp_url, "--database", postgres_url])
    told = capsys.readouterr().out
    assert code == 0, told
    assert "on a real RabbitMQ and PostgreSQL" in told
    for moment in ("Before its upload", "After its upload", "The survivors are fixed", "After the unmask"):
        assert told.count(moment) == 1
    assert f"none of {', '.join(LEAVE)} is in the last one" in told
    for word in (*LEAVE, "patient"):
        effect = "retrain" if word in (AFTER_UNMASK, "patient") else "stop_future"
        receipt = ReceiptFile.model_validate_json((out / f"receipt-{word}.json").read_bytes())
        facts = verify_receipt(receipt, GovernancePin.of(receipt.trust)).facts
        assert facts["decision"]["effect"] == effect
    report = verify_bundle(out / "audit")
    assert report.verified, report.text()
    assert "released at" in report.text()
    sites = json.loads((out / "lineage.prov.json").read_text())["agent"]
    assert len(sites) == len(HOSPITALS) + 1  # and the officer who released the model
