"""What reports say in sentences, and that their figures come back from JSON as they were."""

import pytest
from pydantic import ValidationError
from sample_reports import benchmark, calibration, canaries, members, promise

from cohortium_connector.training.privacy_report import (
    BenchmarkReport,
    CalibrationReport,
    benchmark_words,
    calibration_words,
)


def test_membership_is_said_as_strongly_as_it_is() -> None:
    recipe, overfitted, private = list(benchmark_words(benchmark()))[:3]
    assert "The study's recipe, no privacy: who was in the training can be told a little better" in recipe
    assert "can be told (AUC 0.710, 99 % interval 0.700 to 0.720" in overfitted
    assert "3.0% of the members are found" in overfitted
    assert "The same network with ε = 1: who was in the training could not be told from a coin" in private


def test_inversion_says_who_sees_what_and_how_many_were_found() -> None:
    words = list(benchmark_words(benchmark()))
    assert any("one hospital's update as it is, 1 patient a hospital: 24 of 24 patients" in line for line in words)
    assert any("what the secure sum opens to, 4 patients a hospital: 11 of 24" in line for line in words)
    assert any("with local noise, 4 patients a hospital, ε = 1: 1 of 24" in line for line in words)


def test_a_promise_is_contradicted_only_by_a_larger_bound() -> None:
    words = list(benchmark_words(benchmark()))
    assert "The promise of 1 is not contradicted." in words[-3]
    assert "The promise of 8 is not contradicted." in words[-2]
    assert "Control" in words[-1]
    assert "is refuted, as it should be" in words[-1]
    broken = benchmark().model_copy(update={"canaries": (canaries("local", 1.0, 1.01),)})
    assert "The promise of 1 IS REFUTED." in list(benchmark_words(broken))[-1]
    weak = benchmark().model_copy(update={"canaries": (canaries("local", 1.0, 0.9, control=True),)})
    assert "too few runs to find even this" in list(benchmark_words(weak))[-1]


def test_the_stronger_attack_speaks_and_its_interval_decides() -> None:
    figures = members("recipe", 0.52)
    assert figures.strongest.attack == "likelihood"
    assert figures.strongest.beats_guessing
    assert not figures.attacks[0].beats_guessing


def test_a_curve_says_what_is_lost() -> None:
    words = list(calibration_words(calibration()))
    assert words[0] == "Without privacy the recipe reaches an AUC of 0.890 on 600 test rows."
    assert words[1] == "At ε = 0.5: 0.700, 0.190 less."
    assert words[3] == "At ε = 8: 0.900, 0.010 more."
    assert len(words) == 4
    few = calibration().points[0].model_copy(update={"promise": promise(1.0).model_copy(update={"steps": 20})})
    assert "models of 20 steps" in list(calibration_words(calibration().model_copy(update={"points": (few,)})))[-1]


def test_reports_come_back_from_json() -> None:
    assert BenchmarkReport.model_validate_json(benchmark().model_dump_json()) == benchmark()
    assert CalibrationReport.model_validate_json(calibration().model_dump_json()) == calibration()


@pytest.mark.parametrize("change", [{"rows": -1}, {"more": 1}, {"format": "cohortium/privacy-benchmark/2"}])
def test_a_file_that_is_no_report_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BenchmarkReport.model_validate(benchmark().model_dump() | change)
