"""A feature's unit is part of what hospitals approve; a study without one is the study that it always was."""

from typing import Any

from cohortium_messages.study import Study
from model_stage import STUDY


def with_unit(unit: str | None) -> Study:
    number, category = STUDY["dataset"]["features"]
    named: dict[str, Any] = {name: value for name, value in number.items() if name != "unit"}
    if unit is not None:
        named["unit"] = unit
    return Study.model_validate(STUDY | {"dataset": STUDY["dataset"] | {"features": [named, category]}})


def test_a_unit_is_in_the_digest_and_none_leaves_it_as_it_was() -> None:
    plain = with_unit(None).canonical()
    assert b'"range":[18,110],"type":"int"}' in plain
    assert b'"unit":null' not in plain
    assert plain.replace(b'"type":"int"}', b'"type":"int","unit":"a"}') == with_unit("a").canonical()
    assert with_unit("a").digest() != with_unit("mo").digest()
