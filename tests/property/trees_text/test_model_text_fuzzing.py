"""Whatever the reader of model texts accepts, LightGBM loads, predicts with, explains and saves; the rest it refuses
by a rule, and by nothing else."""

import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium_protocol.trees.text import TreeModelRefused, check_model_text
from examples import examples
from tree_text_stage import CLASSES, Gate, genuine, mutated

pytest.importorskip("lightgbm", reason="the training extra is not installed")

OBJECTIVES = tuple(CLASSES)
SECONDS = 60


def passes(text: str, objective: str, gate: Gate) -> bool:
    """Whether the reader accepts a text; then LightGBM must be content with it too, and give the same scores."""
    rules = genuine(objective).rules
    try:
        check_model_text(text.encode("latin-1"), **rules)
    except TreeModelRefused:
        return False
    found = gate.tries(text, rules)
    assert found["end"] == "used", found
    assert found["difference"] <= 1e-12
    return True


@settings(max_examples=examples(300), deadline=None)
@given(random=st.randoms(use_true_random=False), objective=st.sampled_from(OBJECTIVES))
def test_edited_text_is_refused_or_used(random: Random, objective: str, gate: Gate) -> None:
    passes(mutated(genuine(objective).text, random), objective, gate)


@settings(max_examples=examples(100), deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), objective=st.sampled_from(OBJECTIVES))
def test_text_that_breaks_off_is_refused(share: float, objective: str) -> None:
    model = genuine(objective)
    with pytest.raises(TreeModelRefused):
        check_model_text(model.data[: int(share * len(model.data))], **model.rules)


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_refused_by_a_rule(data: bytes) -> None:
    for beginning in (b"", genuine("binary").data[:400], genuine("binary").data):
        with pytest.raises(TreeModelRefused):
            check_model_text(beginning + data + b"!", **genuine("binary").rules)


@pytest.mark.long
def test_a_minute_of_edited_texts(gate: Gate) -> None:
    random, until = Random(20261), time.monotonic() + SECONDS  # noqa: S311 - a seed to repeat
    tried = accepted = 0
    while time.monotonic() < until:
        objective = random.choice(OBJECTIVES)
        accepted += passes(mutated(genuine(objective).text, random), objective, gate)
        tried += 1
    assert tried > 1_000
    assert tried / 100 < accepted < tried
