"""`result.json`: its fields, and that it can be read back."""

import json

import pytest
import sample_run
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from cohortium_messages.result import CalibrationResult, MetricsResult, Result, RoundResult, federated_metrics


def test_a_result_survives_being_written_and_read() -> None:
    result = sample_run.result()
    assert Result.from_json(result.to_json()) == result


def test_the_file_has_the_fields_that_were_promised() -> None:
    found = json.loads(sample_run.result().to_json())
    assert found["schema"] == "cohortium/result/1"
    assert {"study", "run_id", "state", "rounds", "metrics", "secure_sum", "audit", "timing", "processes"} <= set(found)
    promised = {"number", "model_version", "cohort", "dropped", "seconds", "bytes_up", "bytes_down", "metrics"}
    assert all(promised <= set(round_) for round_ in found["rounds"])
    assert set(found["metrics"]) == {"federated", "pooled", "bagging", "local"}
    assert {"n", "t", "c", "ring", "bytes_per_parameter"} <= set(found["secure_sum"])
    assert {"tree_size", "root", "verified"} <= set(found["audit"])


def test_the_file_fits_its_schema() -> None:
    schema = Result.model_json_schema(mode="serialization")
    Draft202012Validator(schema).validate(json.loads(sample_run.result().to_json()))


def test_an_unknown_field_is_refused() -> None:
    found = json.loads(sample_run.result().to_json())
    found["rows_by_site"] = {"Cleveland": 303}
    with pytest.raises(ValidationError):
        Result.model_validate(found)


def test_no_site_has_a_row_count_of_its_own() -> None:
    """Only what sums published: the members' part of the file has no field for rows."""
    assert "rows" not in json.dumps(json.loads(sample_run.result().to_json())["sites"])


def test_the_last_evaluated_round_gives_the_federated_metrics() -> None:
    rounds = tuple(
        RoundResult.of(sample_run.round_status(number, evaluated=number % 5 == 0)) for number in range(1, 13)
    )
    assert federated_metrics(rounds) == MetricsResult.of(sample_run.evaluation(10))
    assert federated_metrics(rounds[:3]) is None


def test_a_calibration_figure_of_a_later_version_is_left_out() -> None:
    assert CalibrationResult.of({"slope": 1.1, "curvature": 0.2}) == CalibrationResult(slope=1.1)
