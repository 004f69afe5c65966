"""`cohortium privacy` from words to files, with the isolated process in between."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from attack_stage import study_of, write_tables
from cohortium_hospital import __main__ as hospital
from typer.testing import CliRunner, Result

pytest.importorskip("torch", reason="the training extra is not installed")

from cohortium_cli.privacy import privacy_app
from cohortium_connector.training.attacks.child import BenchmarkCrashed, run_child
from cohortium_connector.training.privacy_report import (
    BenchmarkReport,
    Calibrated,
    CalibrateJob,
    CalibrationReport,
    NamedSource,
)
from cohortium_messages.privacy import DistributedPrivacy, LocalPrivacy
from cohortium_messages.privacy_test import PrivacyTest
from cohortium_protocol.release import ATTESTATION, RELEASE, Roles, Signed, read_release
from cohortium_verify.loading import load_model
from cohortium_verify.release import told
from model_stage import ModelStage, write

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

SUMMED = DistributedPrivacy(mode="distributed", epsilon=1.0, delta=1e-5, patients=210)


# From the benchmark to a release


def model_words(stage: ModelStage, folder: Path, patients: int = 40) -> list[str]:
    """A study file, three hospitals' tables of patients who fit it, and its model as a candidate."""
    chance = np.random.default_rng(3)
    words = ["study.yaml", "--out", "out"]
    (folder / "study.yaml").write_text(json.dumps(stage.study.model_dump(mode="json")))
    for name in ("north", "south", "west"):
        rows = [
            f"{chance.integers(18, 110)},{chance.choice(['female', 'male'])},{place % 2}" for place in range(patients)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["age,sex,disease", *rows]) + "\n")
        words += ["--site", f"{name}={name}.csv"]
    candidate = stage.attested()
    write(folder, {**stage.inside, ATTESTATION: candidate.attestation})
    (folder / "trust.json").write_text(stage.document.model_dump_json())
    return words


def release_of(stage: ModelStage) -> Signed:
    """The release as `cohortium verify` reads it beside a model."""
    candidate, files = stage.attested(), stage.files()
    roles = Roles(stage.aggregator.public, frozenset(one.public for one in stage.officers), {})
    return read_release(files[RELEASE], candidate, roles)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--model", "model.zip"), "give --trust"),
        (("--trust", "trust.json"), "belong to --model"),
        (("--model", "nowhere.zip", "--trust", "trust.json", "--made-by", "Us"), "nowhere.zip"),
    ],
)
def test_a_model_is_tested_by_somebody_and_against_a_trust_document(
    words: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = said("benchmark", *model_words(ModelStage(), tmp_path), *words)
    assert (refused.exit_code, text in refused.stderr) == (2, True), refused.stderr


def test_a_model_of_another_study_or_with_other_files_is_not_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = ModelStage()
    words = [*model_words(stage, tmp_path), "--model", "model.zip", "--trust", "trust.json", "--made-by", "Us"]
    Path("study.yaml").write_text(
        json.dumps(stage.study.model_copy(update={"purpose": "another"}).model_dump(mode="json"))
    )
    refused = said("benchmark", *words)
    assert (refused.exit_code, "and not of this version of heart" in refused.stderr) == (2, True)
    write(tmp_path, {**stage.inside, "card.json": b"{}", ATTESTATION: stage.attested().attestation})
    refused = said("benchmark", *words)
    assert (refused.exit_code, "not the one that was signed" in refused.stderr) == (1, True)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study file and three tables, as one names them."""
    monkeypatch.chdir(tmp_path)
    sources = write_tables(tmp_path)
    Path("study.yaml").write_text(json.dumps(study_of().model_dump(mode="json")))
    return [
        "study.yaml",
        "--out",
        "out",
        *(word for of in sources for word in ("--site", f"{of.name}={of.source.path}")),
    ]


def said(*words: str) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(privacy_app, list(words), catch_exceptions=False)


def test_a_benchmark_leaves_a_page_its_figures_and_a_test_of_the_model_for_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = ModelStage()
    asked = [*model_words(stage, tmp_path), "--model", "model.zip", "--trust", "trust.json", "--made-by", "Hospitals"]
    done = said("benchmark", *asked, "--models", "4", "--runs", "20", "--rows", "80", "--epsilon", "1", "--json")
    assert done.exit_code == 0, done.stderr
    report = BenchmarkReport.model_validate_json(Path("out/privacy-benchmark.json").read_text())
    assert BenchmarkReport.model_validate_json(done.stdout) == report
    assert [one.kind for one in report.membership] == ["recipe", "overfitted", "private"]
    assert {one.seen for one in report.inversion} == {"update", "masked", "sum", "local", "distributed"}
    assert [(one.mode, one.control) for one in report.canaries] == [
        ("local", False),
        ("distributed", False),
        ("local", True),
    ]
    assert not any(one.refuted for one in report.canaries if not one.control)
    page = Path("out/privacy-benchmark.html").read_text()
    assert "heart: privacy benchmark" in page
    assert "This model itself: " in page
    assert b"\r\n" not in Path("out/privacy-benchmark.html").read_bytes()
    assert "membership: 4 models, overfitted" in done.stderr
    released_with(stage, tmp_path, PrivacyTest.model_validate_json(Path("out/privacy-test.json").read_text()))


def released_with(stage: ModelStage, folder: Path, test: PrivacyTest) -> None:
    """What the benchmark found is signed with the release, and comes with the model to who loads or verifies it."""
    assert (test.run, test.model_hash, test.made_by) == (stage.run, stage.ref.model_hash, "Hospitals")
    assert test.members + test.non_members == 120
    assert test.interval[0] < 0.5 < test.interval[1], "a model that was never trained knows nobody"
    stage.privacy_test = test
    released = load_model(write(folder, stage.files()), stage.trust)
    assert released.provenance is not None
    assert released.provenance.privacy_test == test
    assert f"membership inference AUC {test.auc:.3g}" in told(release_of(stage))


def test_a_calibration_leaves_a_curve_and_its_figures(words: list[str]) -> None:
    done = said(
        "calibrate", *words, "--mode", "local", "--rate", "0.2", "--patients", "60", "--epsilon", "4", "--repeats", "1"
    )
    assert done.exit_code == 0, done.stderr
    report = CalibrationReport.model_validate_json(Path("out/privacy-calibration.json").read_text())
    assert [point.promise.epsilon for point in report.points] == [4.0]
    assert (report.mode, report.patients) == ("local", 60)
    assert "Without privacy the recipe reaches an AUC" in done.stdout
    assert "<svg" in Path("out/privacy-calibration.html").read_text()


def test_the_studys_own_block_is_the_base_of_a_calibration(words: list[str]) -> None:
    block = LocalPrivacy(mode="local", epsilon=2.0, delta=1e-6, clip=0.5, sampling_rate=0.25, patients=64)
    recipe = {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5}}
    private = study_of(recipe, privacy=block)
    Path("study.yaml").write_text(json.dumps(private.model_dump(mode="json", exclude_unset=True)))
    done = said("calibrate", *words, "--epsilon", "4", "--repeats", "1", "--json")
    assert done.exit_code == 0, done.stderr
    report = CalibrationReport.model_validate_json(done.stdout)
    assert (report.mode, report.clip, report.patients) == ("local", 0.5, 64)
    assert (report.points[0].promise.delta, report.points[0].promise.sampling_rate) == (1e-6, 0.25)


@pytest.mark.parametrize(
    ("more", "text", "code"),
    [
        (["calibrate"], "--patients: the public number", 2),
        (["calibrate", "--patients", "5"], "patients", 2),
        (["calibrate", "--patients", "210", "--delta", "0.009"], "privacy.delta", 1),
        (["benchmark", "--delta", "0.005"], "is not below 1/300", 1),
        (["benchmark", "--epsilon", "-1"], "epsilons", 2),
        (["benchmark", "--models", "2"], "--models", 2),
    ],
)
def test_words_that_cannot_be_carried_out_are_explained(
    words: list[str], more: list[str], text: str, code: int
) -> None:
    done = said(more[0], *words, *more[1:])
    assert done.exit_code == code
    assert text in done.stderr
    assert not list(Path("out").glob("*"))


def test_tables_without_a_study_are_refused(words: list[str]) -> None:
    done = said("benchmark", "--site", words[4])
    assert done.exit_code == 2
    assert "name the study file first" in done.stderr


def test_a_table_that_does_not_fit_names_its_hospital_and_no_value(words: list[str], tmp_path: Path) -> None:
    table = tmp_path / "south.csv"
    table.write_text(table.read_text().replace("ill\n", "ill\n777.5,120,a,1,1\n", 1))
    done = said("calibrate", *words, "--patients", "210")
    assert done.exit_code == 1
    assert "south:" in done.stderr
    assert "age" in done.stderr
    assert "777.5" not in done.stderr


def job(sources: tuple[NamedSource, ...]) -> CalibrateJob:
    return CalibrateJob(study=study_of(), sites=sources, privacy=SUMMED, epsilons=(2.0,), repeats=1)


def test_the_process_ends_with_the_call_also_when_it_is_interrupted(tmp_path: Path) -> None:
    sources, seen = write_tables(tmp_path), []

    def interrupt(_: str) -> None:
        seen.extend(children())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(job(sources), threads=1, isolation="warn", say=interrupt)
    assert seen
    assert not set(seen) & set(children())
    answer = run_child(job(sources), threads=1, isolation="warn", say=lambda _: None)
    assert isinstance(answer, Calibrated)
    assert not set(children()) - set(seen)


def children() -> list[int]:
    """Processes of the benchmark whose parent is this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            line = (folder / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue  # it ended meanwhile
        if parent == os.getpid() and b"cohortium_connector.training.attacks" in line:
            found.append(int(folder.name))
    return found


def test_a_process_that_ends_without_a_report_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium_connector.training.attacks.child.sys.executable", "/bin/false")
    with pytest.raises(BenchmarkCrashed, match="without a report"):
        run_child(job(write_tables(tmp_path)), threads=1, isolation="warn", say=lambda _: None)


def test_a_hospital_calibrates_with_its_own_program(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"trainer": "torch.logistic", "local": {"optimizer": "sgd", "lr": 0.5}}
    private = study_of(recipe, privacy=SUMMED)
    Path("study.yaml").write_text(json.dumps(private.model_dump(mode="json")))
    command = ["privacy-calibrate", words[0], *words[3:], "--isolation", "warn"]
    assert hospital.main([*command, "--epsilon", "4", "--repeats", "1", "-o", "curve.json"]) == 0
    report = CalibrationReport.model_validate_json(Path("curve.json").read_text())
    assert [point.promise.epsilon for point in report.points] == [4.0]
    assert capsys.readouterr().out.endswith("curve.json: the curve\n")
    assert hospital.main([*command, "--epsilon", "-1"]) == 2
    assert "epsilons" in capsys.readouterr().err
    assert hospital.main([*command, "--site", "nameless"]) == 2
    Path("study.yaml").write_text(json.dumps(study_of().model_dump(mode="json")))
    assert hospital.main(command) == 2
    assert "privacy.mode is none" in capsys.readouterr().err
