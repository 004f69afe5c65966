"""The governance tour's way from the first document to the proof, short enough to be walked with every change."""

from pathlib import Path

import pytest

from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import ReceiptFile, verify_receipt
from cohortium_sim.tour import main
from cohortium_verify.verification import verify_bundle

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


def test_the_short_tour_does_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--out", str(tmp_path), "--short"])
    told = capsys.readouterr().out
    assert code == 0, told
    receipt = ReceiptFile.model_validate_json((tmp_path / "receipt-west.json").read_bytes())
    assert verify_receipt(receipt, GovernancePin.of(receipt.trust)).facts["decision"]["effect"] == "stop_future"
    report = verify_bundle(tmp_path / "audit")
    assert report.verified, report.text()
    judged = next(check.fact for check in report.checks if check.name == "consent documents")
    assert judged.split()[1:4] == ["permits", "judged", "anew"]
    assert int(judged.split()[0]) >= 9, "three hospitals in three windows"
    (tmp_path / "audit" / "consent.json").unlink()
    refuted = verify_bundle(tmp_path / "audit").text()
    assert "is of a study that asks for signed documents, and they are not in this bundle" in refuted
