"""Every field that a line of the log is given stands in it: the filter drops names that it does not know, in silence
for whoever wrote the line."""

import ast
from collections.abc import Iterator
from pathlib import Path

from cohortium_kit import logging as kit_logging

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of `log.LEVEL` and of `allow_fields` in what we run, with its place."""
    for file in sorted([*ROOT.glob("services/**/*.py"), *ROOT.glob("shared/**/*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "allow_fields",
                *(f"log.{at}" for at in LEVELS),
            }:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def test_no_field_of_a_log_line_is_dropped_by_its_name() -> None:
    found = list(calls())
    allowed = kit_logging._allowed | {
        str(ast.literal_eval(name))
        for _, call in found
        if ast.unparse(call.func) == "allow_fields"
        for name in call.args
    }
    lines = [(place, call) for place, call in found if ast.unparse(call.func) != "allow_fields"]
    assert len(lines) > 100, "the log is called by another name: this test looks at nothing"
    unseen = [
        f"{place}: {field.arg or 'a field behind **, which nobody can look up'}"
        for place, call in lines
        for field in call.keywords
        if field.arg not in {"exc_info", *allowed}
    ]
    assert not unseen, "allow the name in cohortium_kit.logging, or use one that is there: " + "; ".join(unseen)
