"""Topic matching against the definition, written as a regular expression."""

import re

from hypothesis import given
from hypothesis import strategies as st

from cohortium_kit._memory_queue import key_matches

words = st.sampled_from(["a", "b", "site", ""])
keys = st.lists(words, min_size=1, max_size=6).map(".".join)
patterns = st.lists(st.sampled_from(["a", "b", "site", "*", "#"]), min_size=1, max_size=6).map(".".join)


def by_definition(pattern: str, key: str) -> bool:
    """`#` takes any number of whole words: so every word, in pattern and key, ends with a dot here."""
    parts = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    expression = "".join(parts.get(part, re.escape(part) + r"\.") for part in pattern.split("."))
    return re.fullmatch(expression, key + ".") is not None


@given(patterns, keys)
def test_topic_matching_is_its_definition(pattern: str, key: str) -> None:
    assert key_matches(pattern, key) == by_definition(pattern, key)
