"""`study check` and `verify`: what they prove, what they refuse, and how a program learns of it."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from cli_stage import STUDY, CommandLine

from governance_stage import Stage
from study_story import bundle_of, study_lines


class TestStudyCheck:
    @pytest.fixture(autouse=True)
    def study(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text(STUDY)

    def test_a_good_one(self, cli: CommandLine) -> None:
        facts = cli.facts("study", "check", "study.yaml")
        assert facts["valid"] is True
        assert facts["name"] == "heart-disease"
        assert len(facts["digest"]) == 64
        text = cli.ok("study", "check", "study.yaml")
        assert facts["digest"] in text
        assert "3 rounds synchronous" in text
        assert "cohort tolerance 20 %" in text

    def test_the_cohort_tolerance_that_hospitals_will_approve_is_told(self, cli: CommandLine, tmp_path: Path) -> None:
        narrow = STUDY.replace("dataset:\n", "dataset:\n  cohort_tolerance: 0.05\n", 1)
        (tmp_path / "study.yaml").write_text(narrow)
        assert "cohort tolerance 5 %" in cli.ok("study", "check", "study.yaml")

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("rounds: 3", "rounds: 0", ("line 10", "federation.rounds")),
            ("purpose:", "porpoise:", ("line 3", "porpoise", "purpose")),
            ("type: float", "type: flaot", ("line 6", "dataset.features[0]")),
            ("apiVersion: cohortium/study/1", "apiVersion: cohortium/study/9", ("line 1", "apiVersion")),
        ],
    )
    def test_a_mistake_has_its_line_and_field(
        self, old: str, new: str, said: tuple[str, ...], cli: CommandLine, tmp_path: Path
    ) -> None:
        (tmp_path / "study.yaml").write_text(STUDY.replace(old, new))
        text = cli.error("study", "check", "study.yaml", code=1)
        assert all(part in text for part in ("study.yaml: ", *said))
        facts = json.loads(cli("study", "check", "study.yaml", "--json").out)
        assert facts["valid"] is False
        assert {"line", "column", "field", "fact", "remedy"} == set(facts["problems"][0])

    def test_all_mistakes_are_named_at_once(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text(STUDY.replace("rounds: 3", "rounds: 0").replace("metrics", "metriks"))
        assert len(json.loads(cli("study", "check", "study.yaml", "--json").out)["problems"]) >= 2

    def test_what_is_no_study(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "bytes.yaml").write_bytes(b"\x89PNG\r\n\xff")
        (tmp_path / "broken.yaml").write_text("a: [1, 2\nb: 3\n")
        assert "there is no study file gone.yaml" in cli.error("study", "check", "gone.yaml", code=2)
        assert "bytes.yaml is not UTF-8 text" in cli.error("study", "check", "bytes.yaml", code=2)
        assert "cannot read ." in cli.error("study", "check", ".", code=2)
        assert "line 2" in cli.error("study", "check", "broken.yaml", code=1)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Path]:
    """The stage and the result folder of an honest study."""
    folder = tmp_path_factory.mktemp("honest")

    async def make() -> tuple[Stage, Path]:
        stage = Stage.at(folder)
        return stage, (await bundle_of(stage, study_lines(stage), folder / "result")).parent

    return asyncio.run(make())


def key_words(stage: Stage) -> list[str]:
    return [word for officer in stage.files.officers for word in ("--governance-key", officer.public.hex())]


class TestVerify:
    def test_a_result_is_proven(self, cli: CommandLine, honest: tuple[Stage, Path]) -> None:
        stage, result = honest
        assert "VERIFIED." in cli.ok("verify", str(result), *key_words(stage))
        facts = cli.facts("verify", str(result / "audit"), *key_words(stage))
        assert facts["verified"] is True
        assert facts["governance_keys"] == "pinned"

    def test_without_keys_it_says_what_it_did_not_prove(self, cli: CommandLine, honest: tuple[Stage, Path]) -> None:
        assert "come from the bundle itself" in cli.ok("verify", str(honest[1]))

    def test_checkpoints_that_were_kept_show_a_log_that_was_cut(
        self, cli: CommandLine, honest: tuple[Stage, Path], tmp_path: Path
    ) -> None:
        stage, result = honest
        notes = sorted((result / "audit" / "checkpoints").iterdir(), key=lambda path: int(path.stem))
        kept = [word for note in notes[-2:] for word in ("--checkpoint", str(note))]
        assert cli.facts("verify", str(result), *key_words(stage), *kept)["verified"] is True

        shutil.copytree(result / "audit", tmp_path / "cut")
        size = int(notes[-2].stem)
        entries = (tmp_path / "cut" / "entries.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "cut" / "entries.jsonl").write_bytes(b"".join(entries[:size]))
        (tmp_path / "cut" / "checkpoints" / notes[-1].name).unlink()
        said = cli("verify", "cut", *key_words(stage), "--checkpoint", str(notes[-1]))
        assert said.code == 1
        assert "the checkpoint you gave" in said.out

    def test_an_edited_log_is_refuted(self, cli: CommandLine, honest: tuple[Stage, Path], tmp_path: Path) -> None:
        shutil.copytree(honest[1], tmp_path / "edited")
        log = tmp_path / "edited" / "audit" / "entries.jsonl"
        log.write_bytes(log.read_bytes().replace(b'"bytes":1000', b'"bytes":1001', 1))
        said = cli("verify", "edited", "--json")
        assert said.code == 1
        assert json.loads(said.out)["verified"] is False

    def test_what_is_no_bundle(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for folder, why in (("empty", "holds no audit bundle"), ("gone", "gone is not a folder")):
            said = cli("verify", folder)
            assert said.code == 2
            assert why in said.out
            assert json.loads(cli("verify", folder, "--json").out)["exit_code"] == 2

    @pytest.mark.parametrize("key", ["zz", "abcd", "", "0" * 63])
    def test_a_key_is_a_key(self, key: str, cli: CommandLine) -> None:
        assert "64 hexadecimal digits" in cli.error("verify", ".", "--governance-key", key, code=2)

    def test_a_checkpoint_that_is_not_there_is_named(self, cli: CommandLine) -> None:
        assert "there is no checkpoint old.txt" in cli.error("verify", ".", "--checkpoint", "old.txt", code=2)

    def test_a_checkpoint_that_is_none_is_a_failure(
        self, cli: CommandLine, honest: tuple[Stage, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "note.txt").write_text("hello\n")
        said = cli("verify", str(honest[1]), "--checkpoint", "note.txt")
        assert said.code == 1
        assert "the checkpoint you gave (1)" in said.out
