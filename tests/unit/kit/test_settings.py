"""Settings fail at the start, and say everything at once."""

from pathlib import Path

import pytest

from cohortium_kit.errors import ConfigurationError
from cohortium_kit.settings import Settings, read_secret_file


class HouseSettings(Settings):
    beds: int
    wards: tuple[str, ...] = ()


GOOD = """
amqp_url: amqp://guest:hidden@127.0.0.1/
database_url: postgresql://user:hidden@db/x
schema: house
beds: 3
"""


def write(path: Path, text: str) -> Path:
    file = path / "house.yaml"
    file.write_text(text)
    return file


def test_file_gives_the_settings_and_defaults_the_rest(tmp_path: Path) -> None:
    settings = HouseSettings.load(write(tmp_path, GOOD))
    assert (settings.beds, settings.db_schema, settings.namespace, settings.http_port) == (
        3,
        "house",
        "cohortium",
        None,
    )
    assert settings.amqp_url == "amqp://guest:hidden@127.0.0.1/"


def test_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHORTIUM_BEDS", "7")
    monkeypatch.setenv("COHORTIUM_SCHEMA", "other")
    monkeypatch.setenv("COHORTIUM_WARDS", "[icu, er]")
    monkeypatch.setenv("COHORTIUM_LOG_LEVEL", "debug")
    monkeypatch.setenv("COHORTIUM_OF_ANOTHER_SERVICE", "1")
    settings = HouseSettings.load(write(tmp_path, GOOD))
    assert (settings.beds, settings.db_schema, settings.wards, settings.log_level) == (
        7,
        "other",
        ("icu", "er"),
        "debug",
    )


def test_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AMQP_URL": "amqps://h/", "DATABASE_URL": "sqlite:///x", "SCHEMA": "s", "BEDS": "1"}.items():
        monkeypatch.setenv(f"COHORTIUM_{name}", value)
    assert HouseSettings.load(None).beds == 1


def test_all_faults_are_told_at_once_with_the_way_out(tmp_path: Path) -> None:
    text = "amqp_url: http://wrong\ndatabase_url: sqlite:///x\nbeds: many\nbed: 3\nhttp_port: 70000\n"
    with pytest.raises(ConfigurationError) as fault:
        HouseSettings.load(write(tmp_path, text))
    said = str(fault.value)
    for part in ("amqp_url:", "beds:", "bed: unknown", "http_port:", "schema: missing", "COHORTIUM_SCHEMA"):
        assert part in said
    assert "wrong" not in said


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "just text", "\x00"])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        HouseSettings.load(write(tmp_path, text))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="absent"):
        HouseSettings.load(tmp_path / "absent.yaml")


def test_settings_do_not_show_secrets(tmp_path: Path) -> None:
    settings = HouseSettings.load(write(tmp_path, GOOD))
    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings)


def test_secret_file_must_be_private(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("sesame\n")
    file.chmod(0o600)
    assert read_secret_file(file) == "sesame"
    assert repr(read_secret_file(file)) == "'***'"
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_secret_file(file)
    assert read_secret_file(file, development=True) == "sesame"
    file.write_text("\n")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="empty"):
        read_secret_file(file)
    with pytest.raises(ConfigurationError, match="check path"):
        read_secret_file(tmp_path / "absent")
