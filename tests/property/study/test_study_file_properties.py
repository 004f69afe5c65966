"""Whatever text is given, the answer is a study or a list of places."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_messages.lightgbm import LightgbmParams
from cohortium_messages.lightgbm_names import ALIASES, UNSUPPORTED
from cohortium_messages.study_file import StudyFileError, canonical_study, parse_study, study_from_canonical
from examples import examples

STUDIES = Path(__file__).resolve().parents[2] / "studies"
EXAMPLES = [(STUDIES / f"{name}.yaml").read_text() for name in ("example", "heart-trees", "heart-random-trees")]
PARAMETERS = sorted({*LightgbmParams.model_fields, *ALIASES, *UNSUPPORTED})
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["apiVersion", "name", "purpose", "dataset", "recipe", "federation", "metrics", "privacy", "other"]


def read(text: str) -> None:
    try:
        study = parse_study(text)
    except StudyFileError as error:
        problems = error.problems
    else:
        assert study_from_canonical(canonical_study(study)) == study
        return
    assert problems
    assert all(problem.line >= 1 and problem.fact and problem.remedy for problem in problems)


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_list_of_mistakes(text: str) -> None:
    read(text)


@given(st.dictionaries(st.sampled_from(KEYS), PLAIN))
def test_any_data_is_a_study_or_a_list_of_mistakes(data: dict[str, object]) -> None:
    read(json.dumps(data))


@settings(max_examples=examples(300))
@given(st.data())
def test_a_study_with_one_line_spoilt_is_a_study_or_a_list_of_mistakes(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(EXAMPLES)).splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    start = data.draw(st.integers(0, len(lines[place])))
    lines[place] = lines[place][:start] + data.draw(st.text(max_size=5)) + lines[place][start + 2 :]
    read("\n".join(lines))


@given(st.dictionaries(st.sampled_from(PARAMETERS) | st.text(max_size=8), PLAIN, max_size=4))
def test_any_parameters_of_lightgbm_are_a_study_or_a_list_of_mistakes(params: dict[str, object]) -> None:
    head = EXAMPLES[1].split("  params:\n")[0]
    tail = "federation:" + EXAMPLES[1].split("federation:")[1]
    read(f"{head}  params: {json.dumps(params)}\n{tail}")
