"""The lists of LightGBM's parameters are held against the library's own."""

import numpy as np
import pytest

from cohortium_messages.lightgbm import LightgbmParams
from cohortium_messages.lightgbm_names import ALIASES, UNSUPPORTED, said_of_parameter

FOREIGN_TO_LIGHTGBM = {"gamma"}
"""Names that people bring from other libraries."""


@pytest.fixture
def names() -> dict[str, list[str]]:
    """LightGBM's own list: main names, and the aliases of each."""
    basic = pytest.importorskip("lightgbm.basic", reason="the training extra is not installed")
    found: dict[str, list[str]] = basic._ConfigAliases._get_all_param_aliases()
    return found


class TestAgainstLightgbm:
    """What is said covers what the library knows: no parameter of LightGBM gets "not a field here" for an answer."""

    @pytest.mark.torch
    def test_every_parameter_is_in_the_list_or_refused_with_a_reason(self, names: dict[str, list[str]]) -> None:
        fields = set(LightgbmParams.model_fields)
        assert fields <= set(names)
        assert not fields & set(UNSUPPORTED)
        assert set(UNSUPPORTED) | fields == set(names)

    @pytest.mark.torch
    def test_every_alias_leads_to_the_librarys_main_name(self, names: dict[str, list[str]]) -> None:
        known = {alias: main for main, aliases in names.items() for alias in aliases if alias != main}
        ours = {alias: main for alias, main in ALIASES.items() if alias not in FOREIGN_TO_LIGHTGBM}
        assert ours == known

    @pytest.mark.torch
    def test_of_each_there_is_something_to_say(self, names: dict[str, list[str]]) -> None:
        for main, aliases in names.items():
            for name in {main, *aliases} - set(LightgbmParams.model_fields):
                assert said_of_parameter(name) is not None


def test_a_name_that_lightgbm_does_not_know_is_left_to_the_near_misses() -> None:
    assert said_of_parameter("numleaves") is None
    assert said_of_parameter("num_leaves") is None


def test_default_parameters_are_lightgbms_own() -> None:
    """One is not: `max_bin`, where 255 would quadruple what a sum costs for next to no accuracy."""
    lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")
    rows = np.arange(200.0).reshape(-1, 1)
    data = lightgbm.Dataset(rows, rows[:, 0] > 100, params={"verbosity": -1})
    text = lightgbm.train({"objective": "binary", "verbosity": -1}, data, 1).model_to_string()
    written = dict(
        line.strip("[]").split(": ", 1) for line in text.split("parameters:")[1].splitlines() if ": " in line
    )
    for name, value in LightgbmParams().given().items():
        if name in written and name != "max_bin":
            assert float(written[name]) == float(value), name
    assert written["max_bin"] == "255"
