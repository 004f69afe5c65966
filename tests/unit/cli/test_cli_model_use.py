"""`cohortium model export`, `check` and `predict` with a model that is released: a quorum of hospitals is asked for."""

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest
from cli_stage import CommandLine, PlayedServices

from cohortium_protocol.logproof import RELEASE_PROOF, LogProof
from cohortium_protocol.release import RELEASE, Candidate
from cohortium_verify.quorum import WITNESSES
from model_stage import ROWS, RUN, ModelStage, nan_tensor, write, zipped

PATIENTS = "id,age,sex\n1,63,male\n2,41,female\n3,,male\n4,18,female\n"
TRUST = ("--trust", "trust.json")
PREDICT = ("model", "predict", "model.zip", "--data", "patients.csv", "--out", "scores.csv")


@pytest.fixture
def stage(cli: CommandLine, tmp_path: Path) -> ModelStage:
    made = ModelStage()
    (tmp_path / "trust.json").write_text(made.document.model_dump_json())
    (tmp_path / "patients.csv").write_text(PATIENTS)
    write(tmp_path, made.files())
    return made


def fewer(stage: ModelStage, count: int) -> dict[str, bytes]:
    """The bundle with so many cosignatures."""
    files = stage.files()
    candidate = Candidate.of(files["attestation.dsse.json"], stage.aggregator.public)
    return files | {RELEASE_PROOF: stage.proof(candidate, files[RELEASE], stage.sites[:count])}


def test_a_released_model_is_checked_with_its_quorum(cli: CommandLine, stage: ModelStage, tmp_path: Path) -> None:
    words = ("model", "check", "model.zip", *TRUST)
    facts = cli.facts(*words)
    assert (facts["state"], len(facts["witnesses"])) == ("released", 4)
    write(tmp_path, fewer(stage, 2))
    assert "2 of 4 hospitals cosigned" in cli.error(*words, code=1)
    assert cli.facts(*words, "--quorum", "2")["state"] == "released"
    assert "there is no model at" not in cli.ok(*words, "--quorum", "0")
    stage.inside["model.safetensors"] = nan_tensor(stage.inside["model.safetensors"])
    write(tmp_path, stage.files())
    assert "not finite" in cli.error(*words, code=1)


def test_patients_are_scored_with_a_model_that_verifies(cli: CommandLine, stage: ModelStage, tmp_path: Path) -> None:
    from cohortium_verify.loading import load_model

    facts = cli.facts(*PREDICT, *TRUST)
    assert (facts["rows"], facts["state"], facts["output"]) == (4, "released", "probability")
    with (tmp_path / "scores.csv").open() as file:
        found = [float(row["probability"]) for row in csv.DictReader(file)]
    assert found == load_model(tmp_path / "model.zip", stage.trust).predict(ROWS).tolist()
    (tmp_path / "patients.csv").write_text(PATIENTS.replace("63", "163"))
    assert "age, row 1: is outside its range" in cli.error(*PREDICT, *TRUST, code=1)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"age,sex\n63,male\n1\n", "row 2 has not as many cells"),
        (b"", "has no rows to score"),
        (b"age,sex\n", "has no rows to score"),
        (b"age,sex,age \n63,male,18\n", "two columns are called 'age'"),
        (b"age,sex\n63,m\xe4le\n", "save it as CSV in UTF-8"),
        (b"age,sex\n63," + b"m" * 200_000 + b"\n", "save it as CSV in UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_named_with_what_it_lacks(
    cli: CommandLine, stage: ModelStage, tmp_path: Path, table: bytes, says: str
) -> None:
    (tmp_path / "patients.csv").write_bytes(table)
    assert says in cli.error(*PREDICT, *TRUST, code=2)
    assert not (tmp_path / "scores.csv").exists()


def test_scores_never_take_the_place_of_the_patients(cli: CommandLine, stage: ModelStage, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").symlink_to("patients.csv")
    assert "the scores would take the place of the patients" in cli.error(*PREDICT, *TRUST, code=2)
    assert (tmp_path / "patients.csv").read_text() == PATIENTS


def test_a_missing_table_is_named_where_the_scores_are_there_already(
    cli: CommandLine, stage: ModelStage, tmp_path: Path
) -> None:
    (tmp_path / "patients.csv").unlink()
    (tmp_path / "scores.csv").write_text("of yesterday\n")
    assert "patients.csv" in cli.error(*PREDICT, *TRUST, code=2)
    assert (tmp_path / "scores.csv").read_text() == "of yesterday\n"


def test_nothing_is_scored_with_what_nobody_released(cli: CommandLine, stage: ModelStage, tmp_path: Path) -> None:
    assert "give --trust" in cli.error(*PREDICT, code=2)
    (tmp_path / "model.zip").write_bytes(zipped(stage.inside))
    assert "no model of a federation" in cli.error(*PREDICT, *TRUST, code=1)
    assert not (tmp_path / "scores.csv").exists()
    with pytest.warns(UserWarning, match="without asking who made"):
        assert cli.facts(*PREDICT, "--unsafe-dev")["state"] == "unverified"


def test_an_export_brings_what_hospitals_cosigned(
    cli: CommandLine, stage: ModelStage, services: PlayedServices, tmp_path: Path
) -> None:
    whole = stage.files()
    early = {name: content for name, content in fewer(stage, 0).items() if name != WITNESSES}
    # The same entry in both proofs, as the audit service has one; the second with cosignatures under its checkpoint.
    proof = LogProof.parse(whole[RELEASE_PROOF].decode())
    bare = LogProof(proof.entry, proof.index, proof.hashes, proof.note.split("\n— ")[0] + first_line(proof.note))
    early |= {**{name: whole[name] for name in stage.inside}, RELEASE: whole[RELEASE]}
    early |= {"attestation.dsse.json": whole["attestation.dsse.json"], RELEASE_PROOF: bare.text().encode()}
    event_id = json.loads(proof.entry)["event"]["id"]
    services.answer(f"GET /runs/{RUN}/model", zipped(early))
    services.answer("GET /trust", stage.document.model_dump_json().encode())
    services.answer("GET /manifests/heart", {"manifest": stage.manifest().model_dump(mode="json")})
    assert not cli.facts("model", "export", RUN, "--out", "early.zip")["cosigned"]
    assert "no hospital is shown" in cli.error("model", "check", "early.zip", *TRUST, code=1)
    asked = f"/events/{event_id}/tlog-proof?key_id=service%3Aaggregator&witnessed=true&wait_s=10"
    services.answer(f"GET {asked}", whole[RELEASE_PROOF])
    views = [
        {"site_id": one.site_id, "size": 1, "witness_key": one.witness.public.hex(), "announcement": one.announces()}
        for one in stage.sites
    ]
    services.listed("GET /logs/heart/witnesses", views)
    assert cli.facts("model", "export", RUN, "--out", "model.zip")["cosigned"]
    assert cli.facts("model", "check", "model.zip", *TRUST)["state"] == "released"
    with zipfile.ZipFile(io.BytesIO((tmp_path / "model.zip").read_bytes())) as archive:
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}


def first_line(note: str) -> str:
    """The log's own signature under a note."""
    return "\n— " + note.split("\n— ")[1].rstrip("\n") + "\n"
