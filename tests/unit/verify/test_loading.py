"""A released model is loaded and scores; each part that is forged or missing refuses it, each with its own error."""

import io
import os
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium_messages.privacy_test import PrivacyTest
from cohortium_messages.study import Study
from cohortium_protocol.attest import Statement, sign_statement
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.errors import AttestationRefused
from cohortium_protocol.logproof import RELEASE_PROOF
from cohortium_protocol.parameters import layout_of
from cohortium_protocol.release import ATTESTATION, RELEASE, Candidate
from cohortium_protocol.scoring import RowsRefused, rows_from, schema_bytes, schema_of
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.statistics import Totals, design_matrix, preprocessing_from_sums
from cohortium_protocol.trees.binning import grid_binning, tree_columns
from cohortium_protocol.trees.bins import Binning
from cohortium_verify import not_loaded as refused
from cohortium_verify.loading import LoadedModel, Trust, UnverifiedModelWarning, load_model, verify_model
from cohortium_verify.quorum import WITNESSES
from model_stage import FEDERATION, ROWS, RUN, STUDY, SUMS, ModelStage, extra_tensor, nan_tensor, write, zipped
from random_tree_stage import course, random_rows, random_study

Files = dict[str, bytes]


@pytest.fixture
def stage() -> ModelStage:
    return ModelStage()


def load(stage: ModelStage, folder: Path, files: Files, **options: Any) -> LoadedModel:
    return load_model(write(folder, files), options.pop("trust", stage.trust), **options)


def test_a_released_model_is_loaded_and_says_where_it_comes_from(stage: ModelStage, tmp_path: Path) -> None:
    model = load(stage, tmp_path, stage.files())
    assert model.state == "released"
    assert model.provenance is not None
    told = model.provenance
    assert (told.federation, told.study, told.run, told.version) == (FEDERATION, "heart", RUN, 3)
    assert (told.officer, told.log_index) == ("O. Fficer", 0)
    assert told.witnesses == tuple(sorted(site.site_id for site in stage.sites))
    assert [one.name for one in model.schema.inputs] == ["age", "sex"]
    assert model.schema.output.classes == ("0", "1")
    assert b'"unit": "a"' in stage.inside["schema.json"], "a year, as the study says it"
    assert model.weights is not None
    assert model.weights["layers.0.weight"].shape == (5, 4)
    assert model.card == {"purpose": "a test"}
    assert verify_model(write(tmp_path, stage.files()), stage.trust).run == RUN


def test_a_folder_is_as_good_as_an_archive(stage: ModelStage, tmp_path: Path) -> None:
    for name, content in stage.files().items():
        (tmp_path / name).write_bytes(content)
    model = load_model(tmp_path, stage.trust)
    np.testing.assert_array_equal(model.predict(ROWS), load(stage, tmp_path, stage.files()).predict(ROWS))


@pytest.mark.torch
@pytest.mark.parametrize(
    "recipe",
    [
        {"trainer": "torch.logistic"},
        {"trainer": "torch.mlp", "hidden": [5, 3]},
        {"trainer": "torch.cnn", "image": {"height": 4, "width": 8}, "channels": [3, 2]},
    ],
)
def test_a_network_scores_as_its_trainer_does(recipe: dict[str, Any], tmp_path: Path) -> None:
    from cohortium_connector.training.torch_ import TorchTrainer

    study, sums, rows = Study.model_validate(STUDY | {"recipe": recipe}), SUMS, dict(ROWS)
    if "image" in recipe:
        names = [f"p{place}" for place in range(32)]
        features = [{"name": name, "type": "float", "range": [0, 1]} for name in names]
        study = Study.model_validate(STUDY | {"recipe": recipe, "dataset": STUDY["dataset"] | {"features": features}})
        sums = (90, 90 * 30000, 90 * 1_000_000_000) * 32 + SUMS[-4:]
        random = np.random.default_rng(5)
        rows = {name: random.random(7).tolist() for name in names}
    stage = ModelStage(study=study, sums=sums)
    model = load(stage, tmp_path, stage.files())
    rules = preprocessing_from_sums(study, sums, 4)
    layout = layout_of(study.recipe, rules.inputs)  # type: ignore[arg-type]
    assert model.weights is not None
    flat = np.concatenate([model.weights[one.name].ravel() for one in layout.tensors])
    inputs = design_matrix(rules, rows_from(model.schema, rows))
    wanted = TorchTrainer(study.recipe, rules.inputs, 0.0).scores(flat, inputs)  # type: ignore[arg-type]
    found = model.predict(rows)
    assert len(np.unique(found)) > 1
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def of_trees(label: str) -> ModelStage:
    """A released model of random trees."""
    study = random_study(label)
    rules = grid_binning(study, Totals(400, 100, 200, 50), 4)
    text, _ = course(study, [random_rows(label, 400, seed) for seed in range(3)])
    schema = schema_bytes(schema_of(study, rules))
    return ModelStage(
        study=study, model_files={"model.txt": text, "preprocessing.json": rules.canonical(), "schema.json": schema}
    )


TREE_ROWS: dict[str, list[Any]] = {
    "age": [0.5, None, "-1.25"],
    "visits": [3, "0", 9],
    "ward": ["w3", "", "w39"],
    "sex": ["f", "m", None],
    "bmi": [0, 1.5, "-2"],
}


@pytest.mark.torch
@pytest.mark.parametrize("label", ["binary", "multiclass", "number", "count"])
def test_trees_score_as_lightgbm_does(label: str, tmp_path: Path) -> None:
    import lightgbm

    stage = of_trees(label)
    model = load(stage, tmp_path, stage.files())
    assert model.text is not None
    assert model.weights is None
    binning = Binning.from_canonical(stage.inside["preprocessing.json"])
    matrix = tree_columns(binning, rows_from(model.schema, TREE_ROWS))
    wanted = lightgbm.Booster(model_str=model.text).predict(matrix)
    np.testing.assert_allclose(model.predict(TREE_ROWS), wanted, rtol=1e-12)
    kinds = {"binary": "probability", "multiclass": "probabilities", "number": "value", "count": "expected_count"}
    assert model.schema.output.kind == kinds[label]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda text: re.sub(rb"left_child=-?[0-9]+", b"left_child=999999999", text, count=1), "must not be loaded"),
        (lambda text: re.sub(rb"split_feature=[0-9]+", b"split_feature=99", text, count=1), "must not be loaded"),
        (lambda text: re.sub(rb"leaf_value=[-0-9.e]+", b"leaf_value=nan", text, count=1), "must not be loaded"),
        (lambda text: text.replace(b"num_class=1", b"num_class=9"), "must not be loaded"),
        (lambda _: b"", "must not be loaded"),
    ],
)
def test_a_hostile_text_that_everybody_signed_is_not_parsed_by_lightgbm(
    edit: Callable[[bytes], bytes], text: str, tmp_path: Path
) -> None:
    stage = of_trees("binary")
    honest = stage.inside["model.txt"]
    assert load(stage, tmp_path, stage.files()).state == "released"
    stage.inside["model.txt"] = edit(honest)
    assert stage.inside["model.txt"] != honest
    with pytest.raises(refused.StructureRefused, match=text):
        load(stage, tmp_path, stage.files())


# ------------------------------------------------------------------------------------------------ what is forged


def no_officer(stage: ModelStage, files: Files) -> Files:
    candidate = Candidate.of(files[ATTESTATION], stage.aggregator.public)
    return files | {RELEASE: stage.release(candidate, stage.aggregator)}


def no_aggregator(stage: ModelStage, files: Files) -> Files:
    candidate = Candidate.of(files[ATTESTATION], stage.aggregator.public)
    return files | {RELEASE: stage.release(candidate, stage.officers[0])}


def a_strangers_attestation(stage: ModelStage, files: Files) -> Files:
    statement = Candidate.of(files[ATTESTATION], stage.aggregator.public).statement
    return files | {ATTESTATION: sign_statement(statement, [IdentityKey.generate()])}


def another_statement_of_the_aggregator(stage: ModelStage, files: Files) -> Files:
    statement = Candidate.of(files[ATTESTATION], stage.aggregator.public).statement
    other = Statement(statement.subjects, "https://cohortium.org/attestation/other/1", statement.predicate)
    return files | {ATTESTATION: sign_statement(other, [stage.aggregator])}


def proof_of_another_model(stage: ModelStage, files: Files) -> Files:
    other = ModelStage(
        study=stage.study,
        run="00000000-0000-4000-8000-0000000000bb",
        sites=stage.sites,
        officers=stage.officers,
        aggregator=stage.aggregator,
        audit=stage.audit,
    )
    return files | {RELEASE_PROOF: other.files()[RELEASE_PROOF]}


def proof_of_another_log(stage: ModelStage, files: Files) -> Files:
    candidate = Candidate.of(files[ATTESTATION], stage.aggregator.public)
    audit, stage.audit = stage.audit, IdentityKey.generate()
    proof = stage.proof(candidate, files[RELEASE])
    stage.audit = audit
    return files | {RELEASE_PROOF: proof}


def proof_of_another_version(stage: ModelStage, files: Files) -> Files:
    candidate = Candidate.of(files[ATTESTATION], stage.aggregator.public)
    model = stage.ref.model_copy(update={"version": 2})
    return files | {RELEASE_PROOF: stage.proof(candidate, files[RELEASE], model=model)}


def cosigned_by(count: int) -> Callable[[ModelStage, Files], Files]:
    def forge(stage: ModelStage, files: Files) -> Files:
        candidate = Candidate.of(files[ATTESTATION], stage.aggregator.public)
        return files | {RELEASE_PROOF: stage.proof(candidate, files[RELEASE], stage.sites[:count])}

    return forge


def one_witness_twice(stage: ModelStage, files: Files) -> Files:
    """The fourth hospital names the third one's key as its own; a line in its name is made of the third one's."""
    names = [site.announces() for site in stage.sites[:2]]
    names += [stage.sites[2].announces(), stage.sites[3].announces(key=stage.sites[2].witness.public)]
    return cosigned_by(2)(stage, files) | {WITNESSES: stage.witnesses(announcements=names)}


def keys_named_by_a_stranger(stage: ModelStage, files: Files) -> Files:
    stranger = IdentityKey.generate()
    return files | {WITNESSES: stage.witnesses(announcements=[site.announces(by=stranger) for site in stage.sites])}


def membership_of_nobody(stage: ModelStage, files: Files) -> Files:
    unsigned = stage.manifest().model_copy(update={"signatures": ()})
    return files | {WITNESSES: stage.witnesses(unsigned)}


def membership_of_another_study(stage: ModelStage, files: Files) -> Files:
    return files | {WITNESSES: stage.witnesses(stage.manifest(study="lungs"))}


def without(name: str) -> Callable[[ModelStage, Files], Files]:
    return lambda _, files: {other: content for other, content in files.items() if other != name}


def altered(name: str) -> Callable[[ModelStage, Files], Files]:
    return lambda _, files: files | {name: files[name][:-1] + bytes([files[name][-1] ^ 1])}


@pytest.mark.parametrize(
    ("forge", "error", "text"),
    [
        (without(ATTESTATION), refused.NoBundle, "no model of a federation"),
        (a_strangers_attestation, refused.SignaturesRefused, "the aggregator did not sign"),
        (another_statement_of_the_aggregator, refused.SignaturesRefused, "something else than a model"),
        (without(RELEASE), refused.SignaturesRefused, "a candidate"),
        (no_officer, refused.SignaturesRefused, "not signed by a governance officer"),
        (no_aggregator, refused.SignaturesRefused, "not signed by the aggregator"),
        (altered("model.safetensors"), refused.FilesRefused, "model.safetensors is not the file"),
        (altered("preprocessing.json"), refused.FilesRefused, "preprocessing.json is not the file"),
        (altered("schema.json"), refused.FilesRefused, "schema.json is not the file"),
        (altered("study.json"), refused.FilesRefused, "study.json is missing, or is not the file"),
        (without("card.json"), refused.FilesRefused, "card.json is missing"),
        (without(RELEASE_PROOF), refused.ProofRefused, "no log is shown"),
        (proof_of_another_model, refused.ProofRefused, "no release of this model"),
        (proof_of_another_log, refused.ProofRefused, "does not prove the release"),
        (proof_of_another_version, refused.ProofRefused, "another run or model"),
        (without(WITNESSES), refused.QuorumMissed, "no hospital is shown"),
        (cosigned_by(2), refused.QuorumMissed, "2 of 4 hospitals cosigned .* and 3 must"),
        (one_witness_twice, refused.QuorumMissed, "2 of 4 hospitals"),
        (keys_named_by_a_stranger, refused.QuorumMissed, "0 of 4 hospitals"),
        (membership_of_nobody, refused.QuorumMissed, "officers did not sign the membership"),
        (membership_of_another_study, refused.QuorumMissed, "names members of lungs"),
    ],
)
def test_each_forged_part_is_refused_by_its_own_error(
    forge: Callable[[ModelStage, Files], Files],
    error: type[Exception],
    text: str,
    stage: ModelStage,
    tmp_path: Path,
) -> None:
    honest = stage.files()
    with pytest.raises(error, match=text):
        load(stage, tmp_path, forge(stage, honest))


def test_three_of_four_hospitals_are_a_quorum_with_one_colluding(stage: ModelStage, tmp_path: Path) -> None:
    files = cosigned_by(3)(stage, stage.files())
    model = load(stage, tmp_path, files)
    assert model.provenance is not None
    assert len(model.provenance.witnesses) == 3
    with pytest.raises(refused.QuorumMissed, match="and 4 must"):
        load(stage, tmp_path, files, quorum=4)
    assert load(stage, tmp_path, cosigned_by(0)(stage, files), quorum=0).state == "released"


def test_a_newer_membership_that_the_reader_has_decides_who_counts(stage: ModelStage, tmp_path: Path) -> None:
    newer = stage.manifest(stage.sites[:3], version=2)
    files = cosigned_by(4)(stage, stage.files())
    trust = Trust(stage.document, stage.trust.pin, (newer,))
    model = load(stage, tmp_path, files, trust=trust)
    assert model.provenance is not None
    assert len(model.provenance.witnesses) == 3


def test_hospitals_that_the_study_asks_for_must_have_signed_the_release(tmp_path: Path) -> None:
    stage = ModelStage(study=Study.model_validate(STUDY | {"release_sites": 1}))
    with pytest.raises(refused.SignaturesRefused, match="1 more member hospital"):
        load(stage, tmp_path, stage.files())
    files, candidate = stage.files(), stage.attested()
    envelope = stage.release(candidate, stage.officers[0], stage.sites[1].identity, stage.aggregator)
    model = load(stage, tmp_path, files | {RELEASE: envelope, RELEASE_PROOF: stage.proof(candidate, envelope)})
    assert model.provenance is not None
    assert model.provenance.sites == (stage.sites[1].site_id,)


def test_officers_of_another_federation_vouch_for_nothing(stage: ModelStage, tmp_path: Path) -> None:
    other = GovernancePin(frozenset({IdentityKey.generate().public}), 1)
    with pytest.raises(refused.TrustRefused, match="compare their keys"):
        load(stage, tmp_path, stage.files(), trust=Trust(stage.document, other))
    (tmp_path / "trust.json").write_text(stage.document.model_dump_json())
    trust = Trust.read(tmp_path / "trust.json", governance_keys=[one.public.hex() for one in stage.officers])
    assert load(stage, tmp_path, stage.files(), trust=trust).state == "released"
    with pytest.raises(refused.TrustRefused, match="cannot be read"):
        Trust.read(tmp_path / "gone.json")


# ------------------------------------------------------------------------- signed by all, and still not to be read


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("model.safetensors", nan_tensor, "not finite"),
        ("model.safetensors", extra_tensor, "not those of the recipe"),
        ("model.safetensors", lambda content: content[:20], "too short"),
        ("preprocessing.json", lambda content: content + b" ", "canonical form"),
        ("schema.json", lambda content: content.replace(b"110", b"120"), "does not describe this model"),
        ("card.json", lambda _: b"[1]", "no JSON object"),
    ],
)
def test_what_everybody_signed_must_still_be_a_model(
    name: str, content: Callable[[bytes], bytes], text: str, stage: ModelStage, tmp_path: Path
) -> None:
    stage.inside[name] = content(stage.inside[name])
    with pytest.raises(refused.StructureRefused, match=text):
        load(stage, tmp_path, stage.files())


def test_another_versions_weights_are_refused_by_the_hash_in_the_log(stage: ModelStage, tmp_path: Path) -> None:
    ref = stage.ref.model_copy(update={"model_hash": bytes(32)})
    named = {"version": 3, "model_hash": bytes(32).hex()}
    candidate = stage.attested(model=named)
    release = stage.release(candidate)
    proof = stage.proof(candidate, release, model=ref)
    files = stage.files() | {ATTESTATION: candidate.attestation, RELEASE: release, RELEASE_PROOF: proof}
    with pytest.raises(refused.StructureRefused, match="not the version that the attestation names"):
        load(stage, tmp_path, files)


# --------------------------------------------------------------------------------------------------- hostile archives


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    return made


def hostile(*more: tuple[zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for info, content in more:
            info.compress_type = compression
            archive.writestr(info, content)
    return made.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("archive", "text"),
    [
        (lambda: hostile((entry("../model.safetensors"), b"")), "outside of its folder"),
        (lambda: hostile((entry("/etc/passwd"), b"")), "outside of its folder"),
        (lambda: hostile((entry("a/b"), b"")), "outside of its folder"),
        (lambda: hostile((entry("c:evil"), b"")), "outside of its folder"),
        (lambda: hostile((entry("study.json", stat.S_IFLNK | 0o777), b"/etc/passwd")), "as a link"),
        (lambda: hostile((entry("study.json"), b"1"), (entry("study.json"), b"2")), "twice"),
        (lambda: hostile((entry("x"), bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED), "compressed"),
        (lambda: hostile(*((entry(f"f{n}"), b"") for n in range(65))), "65 files"),
        (lambda: b"no archive at all", "no ZIP archive"),
    ],
)
def test_an_archive_that_no_platform_writes_is_refused_unread(
    archive: Callable[[], bytes], text: str, stage: ModelStage, tmp_path: Path
) -> None:
    (tmp_path / "model.zip").write_bytes(archive())
    with pytest.raises(refused.ArchiveRefused, match=text):
        load_model(tmp_path / "model.zip", stage.trust)


def test_files_that_overlap_in_an_archive_are_refused(stage: ModelStage, tmp_path: Path) -> None:
    """A stored bomb: many entries of the directory point at the same bytes."""
    content = zipped({"a": bytes(100_000), "b": b""})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        large = archive.getinfo("a")
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    first = content[start : content.index(b"PK\x01\x02", start + 4)]
    entries = b"".join(first[:46] + bytes([ord("a") + n]) + first[47:] for n in range(8))
    tail = bytearray(content[end:])
    tail[8:12] = (8).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    (tmp_path / "model.zip").write_bytes(content[:start] + entries + bytes(tail))
    assert large.file_size == 100_000
    with pytest.raises(refused.ArchiveRefused, match="overlap"):
        load_model(tmp_path / "model.zip", stage.trust)


def test_links_in_a_folder_are_refused(stage: ModelStage, tmp_path: Path) -> None:
    for name, content in stage.files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "card.json").rename(tmp_path.parent / "card.json")
    os.symlink(tmp_path.parent / "card.json", tmp_path / "card.json")
    with pytest.raises(refused.ArchiveRefused, match=r"card\.json .* cannot be read as a file"):
        load_model(tmp_path, stage.trust)


# ------------------------------------------------------------------------------------------------------- unverified


def test_a_path_without_a_bundle_is_refused_unless_a_developer_asks(stage: ModelStage, tmp_path: Path) -> None:
    for name, content in stage.inside.items():
        (tmp_path / name).write_bytes(content)
    weights = tmp_path / "model.safetensors"
    with pytest.raises(refused.NoBundle, match="nobody vouches for it"):
        load_model(weights, stage.trust)
    with pytest.raises(refused.NoBundle, match="no model of a federation"):
        load_model(tmp_path, stage.trust)
    with pytest.raises(refused.NoBundle, match="with the federation's trust document"):
        load_model(tmp_path)
    with pytest.raises(refused.NoBundle, match="no model at"):
        load_model(tmp_path / "gone.zip", stage.trust)
    with pytest.warns(UnverifiedModelWarning, match="without asking who made"):
        model = load_model(weights, unsafe_dev=True)
    assert (model.state, model.provenance) == ("unverified", None)
    assert model.predict(ROWS).shape == (4,)
    weights.write_bytes(nan_tensor(weights.read_bytes()))
    with pytest.warns(UnverifiedModelWarning), pytest.raises(refused.StructureRefused, match="not finite"):
        load_model(weights, unsafe_dev=True)


# ----------------------------------------------------------------------------------------------------- privacy tests


def figures_of(stage: ModelStage, **changes: Any) -> PrivacyTest:
    values = {
        "run": RUN,
        "model_hash": stage.ref.model_hash,
        "method": "likelihood ratio, 64 shadow models",
        "auc": 0.53,
        "interval": (0.5, 0.56),
        "members": 500,
        "non_members": 500,
        "made_on": date(2026, 11, 20),
        "made_by": "Hospital 1",
    }
    return PrivacyTest.model_validate(values | changes)


def test_a_privacy_test_that_the_officer_signed_comes_with_the_model(stage: ModelStage, tmp_path: Path) -> None:
    stage.privacy_test = figures_of(stage)
    model = load(stage, tmp_path, stage.files())
    assert model.provenance is not None
    assert model.provenance.privacy_test == stage.privacy_test


@pytest.mark.parametrize("changes", [{"model_hash": bytes(32)}, {"run": "00000000-0000-4000-8000-0000000000bb"}])
def test_a_privacy_test_of_another_model_is_never_released(changes: dict[str, Any], stage: ModelStage) -> None:
    stage.privacy_test = figures_of(stage, **changes)
    with pytest.raises(AttestationRefused, match="of another model"):
        stage.files()


def test_a_privacy_test_names_an_interval_around_its_auc(stage: ModelStage) -> None:
    with pytest.raises(ValueError, match="outside of its own interval"):
        figures_of(stage, interval=(0.6, 0.7))


# -------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({"age": [50]}, "no column sex"),
        ({"age": [50], "sex": ["male", "male"]}, "differ in length"),
        ({"age": [17], "sex": ["male"]}, "age, row 1: is outside its range of 18 to 110"),
        ({"age": [50.5], "sex": ["male"]}, "no whole number"),
        ({"age": ["old"], "sex": ["male"]}, "'old' is not a number"),
        ({"age": [50, 50], "sex": ["male", "other"]}, "sex, row 2: 'other' is no level"),
        ({"age": [50, 50], "sex": ["male", ""]}, "sex, row 2: has no value"),
    ],
)
def test_rows_that_the_model_does_not_take_get_no_score(
    rows: dict[str, list[Any]], text: str, stage: ModelStage, tmp_path: Path
) -> None:
    with pytest.raises(RowsRefused, match=text):
        load(stage, tmp_path, stage.files()).predict(rows)


def test_loading_imports_no_training_library() -> None:
    names = "('torch', 'lightgbm', 'opacus', 'fastapi', 'sqlalchemy', 'cohortium_kit')"
    look = f"import sys, cohortium_verify.loading; print([one for one in {names} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).resolve().parents[3] / "contracts" / "models.md"


def test_the_pages_example_loads_and_predicts(
    stage: ModelStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, stage.files())
    (tmp_path / "trust.json").write_text(stage.document.model_dump_json())
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block.count("\n") <= 10
    found: dict[str, Any] = {}
    exec(compile(block, "models.md", "exec"), found)  # noqa: S102 - the page is ours, and this is its test
    assert found["scores"].shape == (2,)
    assert "O. Fficer" in capsys.readouterr().out


def test_the_page_names_every_error_and_every_file(stage: ModelStage) -> None:
    text = PAGE.read_text("utf-8")
    errors = {name for name, one in vars(refused).items() if isinstance(one, type) and issubclass(one, Exception)}
    assert {name for name in errors if f"`{name}`" not in text} == set()
    assert {name for name in stage.files() if f"`{name}`" not in text} == set()
