"""`cohortium consent prove` and `check-proof`: from a site's spool to the hospital's own auditor."""

import asyncio
import json
import stat
from pathlib import Path

import pytest
from cli_stage import CommandLine, Federation

from cohortium_connector.app import open_site
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store.patients import Snapshot, add_snapshot
from cohortium_kit.clock import SystemClock
from cohortium_messages.ids import RunId, StudyId
from cohortium_protocol.cohorts import commitment, tags_of

STUDY = StudyId("heart")
COHORTS = (["ada", "bob", "M\u00fcller"], ["ada", "M\u00fcller"])
"""Bob withdrew between the two."""


async def _used(config: Path) -> list[str]:
    """Cohorts that work was done with, as the connector keeps them; returns their roots."""
    settings, roots = ConnectorSettings.load(config), []
    desk, db = await open_site(settings, SystemClock())
    folder = desk.spool.patients / STUDY
    folder.mkdir(parents=True, mode=0o700)
    try:
        for round_, persons in enumerate(COHORTS):
            context, salt = bytes([round_]) * 16, bytes([7 + round_]) * 32
            tags = tags_of(salt, context, persons)
            (folder / f"{context.hex()}.tags").write_bytes(b"".join(tags))
            snapshot = Snapshot(
                context=context,
                study_id=STUDY,
                run_id=RunId("00000000-0000-4000-8000-000000000001"),
                round=round_,
                purpose="update",
                salt=salt,
                root=commitment(tags),
                persons=len(persons),
                permitted="",
                taken_at=float(round_),
            )
            await db.run("test_snapshot", lambda tx, one=snapshot: add_snapshot(tx, one))  # type: ignore[misc]
            roots.append(snapshot.root.hex())
    finally:
        await db.close()
    return roots


@pytest.fixture
def config(cli: CommandLine, federation: Federation, tmp_path: Path) -> str:
    (tmp_path / "table.csv").write_text("age,disease\n1,0\n")
    federation.invitation(tmp_path / "invitation.json")
    words = ("site", "join", "invitation.json", "--dir", "north", "--data", "table.csv")
    return str(cli.facts(*words)["config"])


def prove(cli: CommandLine, config: str, person: str) -> list[str]:
    cli.ok("consent", "prove", STUDY, "--config", config, "--out", "proof.json", "--person", person)
    return ["consent", "check-proof", "proof.json"]


def with_roots(words: list[str], roots: list[str]) -> list[str]:
    return [*words, *(word for root in roots for word in ("--root", root))]


@pytest.mark.parametrize(
    ("person", "was"),
    [("ada", ["was", "was"]), (" bob ", ["was", "was not"]), ("eve", ["was not"] * 2), ("Mu\u0308ller", ["was"] * 2)],
)
def test_the_auditor_sees_who_was_in_which_cohort(
    cli: CommandLine, config: str, person: str, was: list[str], tmp_path: Path
) -> None:
    roots = asyncio.run(_used(Path(config)))
    out = tmp_path / "proof.json"
    out.write_text("something that everybody could read")
    out.chmod(0o644)
    check = prove(cli, config, person)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    facts = cli.facts(*with_roots(check, roots))
    assert (facts["proofs"], facts["wrong"]) == (2, 0)
    name = json.loads(out.read_text())[0]["person"]
    assert [f"{name} {word} in cohort" for word in was] == [said.rpartition(" ")[0] for said in facts["verdicts"]]


def test_a_proof_that_was_changed_or_is_about_another_cohort_is_not_one(
    cli: CommandLine, config: str, tmp_path: Path
) -> None:
    roots = asyncio.run(_used(Path(config)))
    check = prove(cli, config, "bob")
    said = cli(*with_roots(check, roots[:1]))
    assert said.code == 1
    assert f"1: NOT PROVEN: COHORT_PROOF_REFUSED: its root {roots[1]} is none of those that you gave" in said.out
    proofs = json.loads((tmp_path / "proof.json").read_text())
    for change in ({"person": "eve"}, {"present": False}, {"salt": bytes(32).hex()}, {"size": 2}):
        altered = json.loads(json.dumps(proofs[:1]))
        assert set(change) <= set(altered[0])
        if "salt" in change:
            change = {"salt": proofs[1]["salt"]}
        altered[0] |= change
        (tmp_path / "proof.json").write_text(json.dumps(altered))
        said = cli(*with_roots(check, roots))
        assert (said.code, "NOT PROVEN" in said.out) == (1, True), change


def test_what_cannot_be_proved_or_read_is_said(cli: CommandLine, config: str, tmp_path: Path) -> None:
    words = ("consent", "prove", STUDY, "--config", config, "--person", "ada", "--out")
    assert "no patients were used for 'heart'" in cli.error(*words, "proof.json", code=1)
    asyncio.run(_used(Path(config)))
    assert "nowhere/proof.json" in cli.error(*words, "nowhere/proof.json", code=1)
    (tmp_path / "elsewhere.json").write_text("kept")
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere.json")
    assert "link.json" in cli.error(*words, "link.json", code=1)
    assert (tmp_path / "elsewhere.json").read_text() == "kept"
    (tmp_path / "proof.json").write_text("[{}]")
    assert "is not as it must be" in cli.error("consent", "check-proof", "proof.json", "--root", "00" * 32, code=2)
