"""Every rule of the reader of model texts has a text that breaks it, made from a genuine one, and no process dies of
any."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from cohortium_protocol.trees import text, tree_text
from tree_text_stage import Gate, edited, genuine, resized, values_of, with_value

lightgbm = pytest.importorskip("lightgbm", reason="the training extra is not installed")

Edit = Callable[[str], str]


def field(line: str, place: int, new: str) -> Edit:
    """Another value in one place of a field of the first tree."""
    return lambda text: with_value(text, line, place, new)


def whole(line: str, new: str) -> Edit:
    """Another whole field of the first tree."""
    return lambda text: edited(text, line, new)


def swap(old: str, new: str) -> Edit:
    """The first `old` becomes `new`; sizes stay as they are."""

    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


def in_tree(old: str, new: str) -> Edit:
    """The first `old` after the beginning of the trees becomes `new`, and the sizes are right."""

    def edit(text: str) -> str:
        start = text.index("\nTree=0\n")
        assert old in text[start:]
        return resized(text[:start] + text[start:].replace(old, new, 1))

    return edit


def shorter(line: str) -> Edit:
    return lambda text: edited(text, line, " ".join(values_of(text, line)[:-1]))


def header_line(name: str, new: str) -> Edit:
    def edit(text: str) -> str:
        place = text.index(f"\n{name}=") + 1
        return text[:place] + new + text[text.index("\n", place) :]

    return edit


def category_node(text: str, kind: int = 1) -> int:
    """The first node that splits a category, or (kind 0) a number."""
    return next(place for place, value in enumerate(values_of(text, "decision_type")) if int(value) & 1 == kind)


def at_category(line: str, new: str) -> Edit:
    return lambda text: with_value(text, line, category_node(text), new)


def at_number(line: str, new: str) -> Edit:
    return lambda text: with_value(text, line, category_node(text, 0), new)


def endless(text: str, decision: str) -> str:
    """The first split of a number parts what is missing from all numbers (decision 8), or nothing from nothing."""
    return at_number("decision_type", decision)(at_number("threshold", "inf")(text))


def set_used_twice(text: str) -> str:
    nodes = [place for place, value in enumerate(values_of(text, "decision_type")) if int(value) & 1]
    assert len(nodes) > 1
    return with_value(text, "threshold", nodes[1], values_of(text, "threshold")[nodes[0]])


def child_twice(text: str) -> str:
    left, right = values_of(text, "left_child"), values_of(text, "right_child")
    inner = next(value for value in left + right if int(value) > 0)
    place = next(place for place, value in enumerate(right) if int(value) < 0 and place < int(inner))
    return with_value(text, "right_child", place, inner)


def last_tree_away(text: str) -> str:
    start = text.rindex("\nTree=") + 1
    return resized(text[:start] + text[text.index("end of trees") :])


def first_round(text: str) -> str:
    start, end = text.index("Tree=0\n"), text.index("end of trees")
    return text[:start].replace("\ntree_sizes=", "\ntree_sizes=\n#", 1).split("#")[0] + "\n" + text[end:]


def without_line(text: str, line: str) -> str:
    """The text without a field of the first tree."""
    place = text.index(f"\n{line}=") + 1
    return resized(text[:place] + text[text.index("\n", place) + 1 :])


def code_beyond_levels(text: str) -> str:
    words = values_of(text, "cat_threshold")
    place = int(values_of(text, "cat_boundaries")[1]) - 1
    words[place] = "4294967295"
    return edited(text, "cat_threshold", " ".join(words))


MALFORMED: dict[str, tuple[str, Edit]] = {
    # the shape of a tree
    "a left child far outside": ("child", field("left_child", 0, "999999999")),
    "a right child far outside": ("child", field("right_child", 0, "-999")),
    "a child beyond 32 bits": ("child", field("left_child", 0, "9999999999")),
    "a node is its own child": ("tree", field("left_child", 2, "2")),
    "a child stands before its parent": ("tree", field("left_child", 3, "1")),
    "the root is a child": ("tree", field("left_child", 1, "0")),
    "a node hangs under two": ("tree", child_twice),
    "a leaf hangs under two": ("tree", whole("right_child", " ".join(["-1"] * 7))),
    "a leaf too many": ("lengths", whole("num_leaves", "7")),
    "more leaves than the study has": ("leaves", whole("num_leaves", "2147483647")),
    "no leaf": ("leaves", whole("num_leaves", "0")),
    "a negative number of leaves": ("leaves", whole("num_leaves", "-8")),
    "a child missing": ("lengths", shorter("left_child")),
    "no children": ("lengths", whole("right_child", "")),
    # splits
    "a feature beyond the last": ("split_feature", field("split_feature", 0, "4")),
    "a negative feature": ("split_feature", field("split_feature", 0, "-1")),
    "a feature that is no number": ("number", field("split_feature", 0, "x")),
    "a threshold that is not a number": ("finite", at_number("threshold", "nan")),
    "an endless threshold": ("finite", at_number("threshold", "-inf")),
    "an endless threshold that parts nothing": ("finite", lambda text: endless(text, "10")),
    "an endless set of codes": ("finite", at_category("threshold", "inf")),
    "a threshold missing": ("lengths", shorter("threshold")),
    "zero as missing": ("decision_type", at_number("decision_type", "4")),
    "a kind of missing value that is none": ("decision_type", at_number("decision_type", "12")),
    "a kind of split beyond 8 bits": ("decision_type", at_number("decision_type", "264")),
    "a negative kind of split": ("decision_type", at_number("decision_type", "-8")),
    "a default side of a category": ("decision_type", at_category("decision_type", "3")),
    "an endless gain": ("finite", field("split_gain", 0, "inf")),
    # categories
    "a set of codes too many": (
        "lengths",
        lambda text: edited(text, "num_cat", str(int(values_of(text, "num_cat")[0]) + 1)),
    ),
    "a negative number of sets": ("categories", whole("num_cat", "-3")),
    "sets that nobody counts": ("categories", whole("num_cat", "0")),
    "boundaries that fall": ("categories", lambda text: with_value(text, "cat_boundaries", 1, "0")),
    "boundaries that begin late": ("categories", field("cat_boundaries", 0, "1")),
    "boundaries beyond the words": ("lengths", field("cat_boundaries", -1, "99999")),
    "a negative word": ("categories", field("cat_threshold", 0, "-1")),
    "a word beyond 32 bits": ("categories", field("cat_threshold", 0, "4294967296")),
    "a set that is not there": ("categories", at_category("threshold", "77")),
    "a negative set": ("categories", at_category("threshold", "-1")),
    "half a set": ("categories", at_category("threshold", "0.5")),
    "a set of two splits": ("categories", set_used_twice),
    "a code that the feature does not have": ("categories", code_beyond_levels),
    "a set of codes for a number": ("categories", at_category("split_feature", "0")),
    "a threshold for a category": ("categories", at_number("split_feature", "1")),
    "words without boundaries": ("missing_key", lambda text: without_line(text, "cat_boundaries")),
    # numbers
    "a leaf that is not a number": ("finite", field("leaf_value", 0, "nan")),
    "an endless leaf": ("finite", field("leaf_value", 3, "inf")),
    "a leaf beyond binary64": ("number", field("leaf_value", 0, "1e+999")),
    "a subnormal leaf": ("number", field("leaf_value", 0, "1e-320")),
    "a leaf out of all proportion": ("leaf_value", field("leaf_value", 0, "1e+200")),
    "a hexadecimal leaf": ("number", field("leaf_value", 0, "0x10")),
    "a leaf with an underscore": ("number", field("leaf_value", 0, "1_0")),
    "two spaces between leaves": (
        "number",
        lambda text: edited(text, "leaf_value", "  ".join(values_of(text, "leaf_value"))),
    ),
    "a weight missing": ("lengths", shorter("leaf_weight")),
    "a leaf without patients": ("counts", field("leaf_count", 0, "0")),
    "a node without patients": ("counts", field("internal_count", 0, "0")),
    "a count beyond 31 bits": ("counts", field("leaf_count", 0, "2147483648")),
    "a shrinkage that is a word": ("number", whole("shrinkage", "abc")),
    "linear leaves": ("linear", whole("is_linear", "1")),
    # fields and blocks
    "a field twice": ("duplicate_key", in_tree("is_linear=0\n", "is_linear=0\nis_linear=0\n")),
    "a field of linear trees": ("unknown_key", in_tree("shrinkage=", "leaf_const=0\nshrinkage=")),
    "a line without a value": ("unknown_key", in_tree("shrinkage=", "leaf_features\nshrinkage=")),
    "a field missing": ("missing_key", lambda text: without_line(text, "internal_weight")),
    "an empty line too few": ("layout", in_tree("\n\n\n", "\n\n")),
    "a size too large": ("tree_sizes", lambda text: text.replace("tree_sizes=", "tree_sizes=9", 1)),
    "a size one too small": ("tree_sizes", lambda text: _size(text, -1)),
    "a negative size": ("tree_sizes", swap("tree_sizes=", "tree_sizes=-")),
    "a size that is a word": ("tree_sizes", swap("tree_sizes=", "tree_sizes=x ")),
    "no sizes": ("missing_key", swap("tree_sizes=", "sizes=")),
    "no trees": ("tree_sizes", first_round),
    "half a round": ("tree_count", last_tree_away),
    "a tree with another number": ("tree_number", in_tree("Tree=1\n", "Tree=7\n")),
    "a block that is no tree": ("tree_sizes", swap("Tree=1\n", "Twig=1\n")),
    # the header
    "another beginning": ("layout", swap("tree\n", "forest\n")),
    "another version": ("version", header_line("version", "version=v3")),
    "another number of classes": ("num_class", header_line("num_class", "num_class=1")),
    "rounds of no trees": ("num_tree_per_iteration", header_line("num_tree_per_iteration", "num_tree_per_iteration=0")),
    "another place of the label": ("label_index", header_line("label_index", "label_index=99999")),
    "another number of features": ("max_feature_idx", header_line("max_feature_idx", "max_feature_idx=-2")),
    "more classes in the objective": (
        "objective",
        swap("objective=multiclass num_class:3", "objective=multiclass num_class:100"),
    ),
    "another objective": ("objective", header_line("objective", "objective=lambdarank")),
    "other features": ("feature_names", header_line("feature_names", "feature_names=age ward bmi zip")),
    "a range without its end": ("feature_infos", header_line("feature_infos", "feature_infos=[1 0:1 [0:1] [0:1]")),
    "a range too few": ("feature_infos", header_line("feature_infos", "feature_infos=none none none")),
    "an endless range": ("feature_infos", header_line("feature_infos", "feature_infos=[-inf:inf] 0:1 none none")),
    "a constraint that is none": (
        "monotone_constraints",
        header_line("monotone_constraints", "monotone_constraints=1 0 0 300"),
    ),
    "averaged trees": ("unknown_key", swap("feature_names=", "average_output\nfeature_names=")),
    "a header line twice": ("duplicate_key", swap("version=v4\n", "version=v4\nversion=v4\n")),
    "a header line missing": ("missing_key", swap("label_index=0\n", "")),
    # the end
    "importances that are not those of the trees": ("importances", swap("\nward=", "\nward=9")),
    "importances of another feature": ("importances", swap("\nward=", "\nzip=")),
    "a parameter without a colon": ("parameters", swap("[learning_rate: 0.1]", "[learning_rate 0.1]")),
    "an empty parameter": ("parameters", swap("[learning_rate: 0.1]", "[]")),
    "a word for a number": ("parameters", swap("[learning_rate: 0.1]", "[learning_rate: abc]")),
    "a quoted parameter": ("parameters", swap("[boosting: gbdt]", '[boosting: gb"dt]')),
    "a parameter twice": ("parameters", swap("[learning_rate: 0.1]\n", "[learning_rate: 0.1]\n[learning_rate: 0.1]\n")),
    "another boosting": ("parameters", swap("[boosting: gbdt]", "[boosting: dart]")),
    "an address": ("parameters", swap("[machines: ]", "[machines: 10.0.0.1:80]")),
    "a file": ("parameters", swap("[forcedbins_filename: ]", "[forcedbins_filename: secret]")),
    "a linear model by its parameters": ("linear", swap("[linear_tree: 0]", "[linear_tree: 1]")),
    "another objective in the parameters": ("objective", swap("[objective: multiclass]", "[objective: binary]")),
    "another number of classes in the parameters": ("num_class", swap("[num_class: 3]", "[num_class: 4]")),
    "a section of a parser": (
        "layout",
        swap("\npandas_categorical", "\nparser:\nx\nend of parser\n\npandas_categorical"),
    ),
    "categories of pandas": ("pandas_categorical", swap("pandas_categorical:null", "pandas_categorical:" + "[" * 5000)),
    "something after the end": ("pandas_categorical", lambda text: text + "x\n"),
    "no end of the trees": ("tree_sizes", swap("end of trees", "end of forest")),
    # bytes
    "nothing at all": ("size", lambda text: ""),
    "line ends of another kind": ("charset", lambda text: text.replace("\n", "\r\n")),
    "a NUL": ("charset", swap("version=v4", "version=v4\0")),
    "a tab": ("charset", in_tree("split_feature=", "split_feature=\t")),
    "a letter that is not ASCII": ("charset", swap("age", "\xe4ge")),
}


def _size(text: str, change: int) -> str:
    place = text.index("tree_sizes=") + len("tree_sizes=")
    end = min(text.index(" ", place), text.index("\n", place))
    return text[:place] + str(int(text[place:end]) + change) + text[end:]


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_text_is_refused_by_its_rule(name: str, gate: Gate) -> None:
    rule, edit = MALFORMED[name]
    model = genuine("multiclass")
    malformed = edit(model.text)
    assert malformed != model.text
    found = gate.tries(malformed, model.rules)
    assert (found["end"], found.get("rule")) == ("refused", rule)


def rules_in(source: str) -> set[str]:
    """The rules that a module names where it refuses: an argument of each kind of call that does."""
    place = {"_check": 1, "check": 1, "TreeModelRefused": 0, "ints": 4}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            at = place.get(name, 99)
            if at < len(node.args) and isinstance(node.args[at], ast.Constant):
                found.add(node.args[at].value)
    return found


def test_table_has_a_text_for_every_rule() -> None:
    rules = {rule for module in (text, tree_text) for rule in rules_in(Path(str(module.__file__)).read_text())}
    assert rules - {rule for rule, _ in MALFORMED.values()} == set()
    assert len(MALFORMED) >= 40


@pytest.mark.skipif(lightgbm.__version__ != "4.7.0", reason="seen with LightGBM 4.7.0")
@pytest.mark.parametrize("name", ["rounds of no trees", "a left child far outside"])
def test_lightgbm_alone_is_ended_by_what_is_refused(name: str, gate: Gate) -> None:
    model = genuine("multiclass")
    found = gate.tries(MALFORMED[name][1](model.text), {}, unchecked=True)
    assert found["end"] == "signal"


def test_genuine_text_comes_through_the_same_process(gate: Gate) -> None:
    model = genuine("multiclass")
    found = gate.tries(model.text, model.rules)
    assert (found["end"], found["trees"]) == ("used", 12)
    assert found["difference"] <= 1e-12


def test_split_that_parts_missing_values_from_all_numbers_is_genuine(gate: Gate) -> None:
    model = genuine("multiclass")
    assert "inf" in " ".join(" ".join(values_of(model.text, "threshold", tree)) for tree in range(12)).split()
    found = gate.tries(endless(model.text, "8"), model.rules)
    assert (found["end"], found["difference"] <= 1e-12) == ("used", True)


def test_more_trees_than_the_study_has_are_refused(gate: Gate) -> None:
    model = genuine("multiclass")
    found = gate.tries(model.text, model.rules | {"max_trees": 9})
    assert (found["end"], found["rule"]) == ("refused", "tree_count")


def test_refusal_says_where(gate: Gate) -> None:
    model = genuine("multiclass")
    malformed = edited(model.text, "shrinkage", "x", tree=5)
    assert gate.tries(malformed, model.rules) == {"end": "refused", "rule": "number", "tree": 5}
