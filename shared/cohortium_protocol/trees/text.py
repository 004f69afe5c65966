"""LightGBM model text: read as hostile input, and written in one canonical form.

LightGBM 4.7 reads its own text without looking: an objective with more classes than the header has, a parameter without
a colon, a range of a feature without its second number, a tree size that is wrong, all end the process or write to
memory that is not its own. So no text may reach it that `check_model_text` has not read. What is accepted, LightGBM
loads, predicts with, explains, dumps and saves again.

    tree                          the header: what the model is of and for
    version=v4 ...
    tree_sizes=765 778            bytes of each tree's block, its line `Tree=` included

    Tree=0                        the blocks (`tree_text`), an empty line after each field list, another after the block
    ...
    end of trees

    feature_importances:          splits with a gain above 0, by feature, most first
    parameters:                   `[name: value]` lines; in a canonical text the study's own, no path, no address
    end of parameters

    pandas_categorical:null

Blocks are kept as they stand: a text that was read and rendered has the same trees, byte for byte.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortium_protocol.trees.tree_text import FLOAT, Tree, TreeLimits, TreeModelRefused, check_tree

__all__ = [
    "LEAST",
    "MAX_BYTES",
    "ModelText",
    "Tree",
    "TreeModelRefused",
    "check_blocks",
    "check_header",
    "check_model_text",
    "gains_and_splits",
    "header_of",
    "make_header",
    "render",
    "tree_blocks",
]

MAX_BYTES: Final = 256 << 20
MAX_PARAMETER_BYTES: Final = 1 << 20
LEAST: Final = 1e-300
"""What is nearer to 0 is written as 0: LightGBM does not read subnormal numbers."""

_PRINTABLE = re.compile(rb"[\n\x20-\x7e]*+")
_SIZES = re.compile(r"[1-9][0-9]{0,9}(?: [1-9][0-9]{0,9})*+")
_INFO = re.compile(rf"none|\[{FLOAT}:{FLOAT}\]|-?[0-9]{{1,10}}(?::-?[0-9]{{1,10}})*+")
_TREE_LINE = re.compile(r"Tree=[0-9]{1,10}\n")
_TREE_START = re.compile(r"^(?=Tree=)", re.MULTILINE)
_TAIL = re.compile(
    r"end of trees\n\nfeature_importances:\n((?:[^\n=]++=[^\n]++\n)*+)"
    r"(?:\nparameters:\n((?:[^\n]++\n)*+)\nend of parameters\n)?\npandas_categorical:null\n"
)
_PARAMETER = re.compile(r"\[([a-z][a-z0-9_]{0,63}): (.*)\]")
_NUMBERS = re.compile(rf"(?:{FLOAT}(?:,{FLOAT})*+)?")
_WORD = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_,]*+)?")

_WORDS: Final = frozenset(
    (
        *("boosting", "objective", "metric", "tree_learner", "device_type", "data_sample_strategy"),
        "monotone_constraints_method",
    )
)
"""Parameters whose values are words; of all others LightGBM wants numbers, and does not load a text with a word."""
_PLACES: Final = frozenset(
    (
        *("data", "valid", "machines", "machine_list_filename", "parser_config_file"),
        *("forcedsplits_filename", "forcedbins_filename"),
    )
)
"""Files and addresses. A model that is refitted would open them, so they stay empty."""

_OBJECTIVES: Final = {
    "binary": "binary sigmoid:1",
    "multiclass": "multiclass num_class:{classes}",
    "regression": "regression",
    "poisson": "poisson",
}


@dataclass(frozen=True, slots=True, eq=False)
class ModelText:
    """A model text that was checked.

    `classes`: trees of one boosting round, 1 unless multiclass. `header`: the lines before `tree_sizes=`. `trees` stand
    round by round, in a round by class.
    """

    header: str
    objective: str
    features: tuple[str, ...]
    classes: int
    trees: tuple[Tree, ...]

    @property
    def rounds(self) -> int:
        """Boosting rounds."""
        return len(self.trees) // self.classes


def check_model_text(
    data: bytes,
    *,
    features: tuple[str, ...],
    classes: int,
    max_trees: int,
    max_leaves: int,
    objective: str,
    categories: Mapping[str, int] | None = None,
) -> ModelText:
    """`data` as a model that LightGBM 4.7 may load.

    `classes`: trees of one round; `max_trees`: trees in all; `max_leaves`: of one tree; `objective`: LightGBM's name;
    `categories`: of each category feature, how many codes its column has, where that is known (the columns of
    `Binning.tree_columns`). Raises `TreeModelRefused`, which names the rule and the tree. Linear in the size of `data`.
    """
    text = _printable(data)
    start = text.find("\ntree_sizes=") + 1
    _check(start > 0, "missing_key", "tree_sizes is missing")
    header = check_header(text[:start].encode(), features=features, classes=classes, objective=objective)
    line = text[start : text.find("\n", start)]
    sizes = line.removeprefix("tree_sizes=")
    _check(_SIZES.fullmatch(sizes) is not None, "tree_sizes", "not a list of sizes; a model has at least one tree")
    count = sizes.count(" ") + 1
    _check(count <= max_trees, "tree_count", f"{count} trees, and the study has at most {max_trees}")
    _check(count % classes == 0, "tree_count", f"{count} trees are no whole rounds of {classes}")
    first = start + len(line) + 2
    _check(text[first - 2 : first] == "\n\n", "layout", "no empty line after tree_sizes")
    ends = list(accumulate(map(int, sizes.split(" ")), initial=first))
    codes = None if categories is None else {features.index(name): count for name, count in categories.items()}
    limits = TreeLimits(len(features), max_leaves, codes)
    for number, place in enumerate(ends[:-1]):
        _check_start(text, number, place)
    _check(text.startswith("end of trees\n", ends[-1]), "tree_sizes", "the trees do not end where the sizes say")
    blocks = enumerate(pairwise(ends))
    trees = tuple(check_tree(text[slice(*span)], number, limits) for number, span in blocks)
    model = ModelText(header, objective, features, classes, trees)
    _check_tail(text[ends[-1] :], model)
    return model


def check_header(data: bytes, *, features: tuple[str, ...], classes: int, objective: str) -> str:
    """A header as `header_of` cuts it. Raises `TreeModelRefused`."""
    lines = _printable(data).split("\n")
    _check(lines[0] == "tree" and lines[-1] == "", "layout", "a header begins with the line `tree`")
    pairs = [line.partition("=") for line in lines[1:-1]]
    found = {name: value for name, _, value in pairs}
    _check(len(found) == len(pairs), "duplicate_key", "a line of the header stands twice")
    expected = {
        "version": "v4",
        "num_class": str(classes),
        "num_tree_per_iteration": str(classes),
        "label_index": "0",
        "max_feature_idx": str(len(features) - 1),
        "objective": _objective_line(objective, classes),
        "feature_names": " ".join(features),
    }
    missing = {*expected, "feature_infos"} - found.keys()
    unknown = found.keys() - {*expected, "feature_infos", "monotone_constraints"}
    _check(not missing, "missing_key", f"the header has no {min(missing, default='')}")
    _check(not unknown and all(sign for _, sign, _ in pairs), "unknown_key", "the header has a line of its own")
    for name, value in expected.items():
        _check(found[name] == value, name, "not what the study says")
    infos = found["feature_infos"].split(" ")
    well_formed = len(infos) == len(features) and all(map(_INFO.fullmatch, infos))
    _check(well_formed, "feature_infos", "not one range or one list of codes for each feature")
    if "monotone_constraints" in found:
        signs = found["monotone_constraints"].split(" ")
        well_formed = len(signs) == len(features) and set(signs) <= {"-1", "0", "1"}
        _check(well_formed, "monotone_constraints", "not -1, 0 or 1 for each feature")
    return "\n".join(lines)


def check_blocks(
    data: bytes, *, features: int, max_trees: int, max_leaves: int, codes: Mapping[int, int] | None = None
) -> tuple[Tree, ...]:
    """Blocks of trees one after the other, whatever their numbers, such as those of one boosting round.

    `features`: how many there are; `codes`: of each category feature, by its place, how many codes it has. Raises
    `TreeModelRefused`, whose `tree` counts from 0.
    """
    blocks = tree_blocks(_printable(data))
    _check(0 < len(blocks) <= max_trees, "tree_count", f"{len(blocks)} trees, and at most {max_trees} may be here")
    _check(sum(map(len, blocks)) == len(data), "layout", "there is more here than trees")
    limits = TreeLimits(features, max_leaves, codes)
    for number, block in enumerate(blocks):
        _check(_TREE_LINE.match(block) is not None, "tree_number", "a tree without its number", number)
    return tuple(check_tree(block, number, limits) for number, block in enumerate(blocks))


def header_of(text: str) -> str:
    """The lines before `tree_sizes=`, each with its line end. Raises `TreeModelRefused` when there is no such line."""
    head, found, _ = text.partition("\ntree_sizes=")
    _check(found != "", "missing_key", "tree_sizes is missing")
    return head + "\n"


def tree_blocks(text: str) -> tuple[str, ...]:
    """The blocks of a model text, or those of a text that is only blocks, as they stand. Nothing in them is checked."""
    end = text.find("\nend of trees")
    starts = [match.start() for match in _TREE_START.finditer(text, 0, end + 1 or len(text))]
    return tuple(text[start:stop] for start, stop in pairwise([*starts, end + 1 or len(text)]))


def make_header(
    features: Sequence[str], infos: Sequence[str], *, objective: str, classes: int, monotone: Sequence[int] = ()
) -> str:
    """A header for trees that LightGBM has not grown. `infos`: by feature, `[low:high]` of a number, the codes
    `0:1:2` of a category; `monotone`: -1, 0 or 1 by feature, or nothing. Raises `TreeModelRefused`."""
    lines = [
        "tree",
        "version=v4",
        f"num_class={classes}",
        f"num_tree_per_iteration={classes}",
        "label_index=0",
        f"max_feature_idx={len(features) - 1}",
        f"objective={_objective_line(objective, classes)}",
        f"feature_names={' '.join(features)}",
        *([f"monotone_constraints={' '.join(map(str, monotone))}"] if monotone else []),
        f"feature_infos={' '.join(infos)}",
    ]
    header = "\n".join(lines) + "\n"
    return check_header(header.encode(), features=tuple(features), classes=classes, objective=objective)


def render(header: str, blocks: Sequence[str], parameters: Mapping[str, object]) -> bytes:
    """The canonical model text of a header and blocks that were checked. The blocks are numbered anew from 0.

    `parameters`: what the text tells of its making; `Booster.refit` reads the objective there. Raises
    `TreeModelRefused` for a value that LightGBM would not read again, and for a block without its number, features or
    gains.
    """
    numbered = []
    for number, block in enumerate(blocks):
        found = _TREE_LINE.match(block)
        _check(found is not None, "tree_number", "a tree without its number", number)
        numbered.append(f"Tree={number}\n" + block.partition("\n")[2])
    names = header.partition("\nfeature_names=")[2].partition("\n")[0].split(" ")
    counts = _split_counts(blocks, len(names))
    used = sorted((place for place in range(len(names)) if counts[place]), key=lambda place: -counts[place])
    lines = [f"[{name}: {_parameter_value(value)}]" for name, value in parameters.items()]
    _check_parameters(lines, None, None)
    pieces = [
        header,
        f"tree_sizes={' '.join(str(len(block)) for block in numbered)}\n\n",
        *numbered,
        "end of trees\n\nfeature_importances:\n",
        *(f"{names[place]}={counts[place]}\n" for place in used),
        "\nparameters:\n",
        *(f"{line}\n" for line in lines),
        "\nend of parameters\n\npandas_categorical:null\n",
    ]
    return "".join(pieces).encode("ascii")


def gains_and_splits(model: ModelText) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """By feature: the sum of the gains of its splits, and their number. As LightGBM counts: gains above 0 only."""
    gains = np.zeros(len(model.features), dtype=np.float64)
    splits = np.zeros(len(model.features), dtype=np.int64)
    for tree in model.trees:
        useful = tree.split_gain > 0
        np.add.at(gains, tree.split_feature[useful], tree.split_gain[useful])
        np.add.at(splits, tree.split_feature[useful], 1)
    return gains, splits


def _check(holds: bool, rule: str, detail: str, tree: int | None = None) -> None:
    if not holds:
        raise TreeModelRefused(rule, tree, detail)


def _printable(data: bytes) -> str:
    _check(0 < len(data) <= MAX_BYTES, "size", f"{len(data)} bytes, and 1 to {MAX_BYTES} are read")
    _check(
        _PRINTABLE.fullmatch(data) is not None, "charset", "there are other bytes than printable ASCII and line ends"
    )
    return data.decode("ascii")


def _objective_line(objective: str, classes: int) -> str:
    _check(objective in _OBJECTIVES, "objective", "unknown here")
    _check((classes > 1) == (objective == "multiclass"), "num_class", f"{classes} classes do not fit {objective}")
    return _OBJECTIVES[objective].format(classes=classes)


def _check_start(text: str, number: int, place: int) -> None:
    found = _TREE_LINE.match(text, place)
    _check(found is not None and text[place - 1] == "\n", "tree_sizes", "no tree begins where the sizes say", number)
    _check(text.startswith(f"Tree={number}\n", place), "tree_number", "here stands a tree with another number", number)


def _check_tail(tail: str, model: ModelText) -> None:
    _check(tail.endswith("\npandas_categorical:null\n"), "pandas_categorical", "the last line is not null")
    found = _TAIL.fullmatch(tail)
    if found is None:
        raise TreeModelRefused("layout", None, "the end is not importances, parameters and the last line")
    splits = gains_and_splits(model)[1]
    expected = {name: str(count) for name, count in zip(model.features, splits.tolist(), strict=True) if count}
    pairs = [line.partition("=") for line in found[1].splitlines()]
    said = {name: count for name, _, count in pairs}
    _check(len(said) == len(pairs) and said == expected, "importances", "not the number of splits of each feature")
    if found[2] is not None:
        _check_parameters(found[2].splitlines(), model.objective, model.classes)


def _check_parameters(lines: Iterable[str], objective: str | None, classes: int | None) -> None:
    """Each line is `[name: value]` with a value of its kind; what is said of objective and classes is true."""
    known: dict[str, str] = {}
    size = 0
    for line in lines:
        size += len(line)
        _check(size <= MAX_PARAMETER_BYTES, "parameters", "the parameters are too long")
        found = _PARAMETER.fullmatch(line)
        if found is None:
            raise TreeModelRefused("parameters", None, "a line is not [name: value]")
        name, value = found.groups()
        grammar = _WORD if name in _WORDS else _NUMBERS
        _check(name not in known, "parameters", f"{name} stands twice")
        _check(name not in _PLACES or value == "", "parameters", f"{name} names a file or an address: leave it empty")
        _check(grammar.fullmatch(value) is not None, "parameters", f"{name} has a value of another kind")
        known[name] = value
    _check(known.get("boosting", "gbdt") == "gbdt", "parameters", "boosting is not gbdt")
    _check(known.get("linear_tree", "0") == "0", "linear", "linear trees")
    if objective is not None:
        _check(known.get("objective", objective) == objective, "objective", "the parameters name another one")
        _check(known.get("num_class", str(classes)) == str(classes), "num_class", "the parameters name another number")


def _parameter_value(value: object) -> str:
    match value:
        case bool():
            return str(int(value))
        case int() | str():
            return str(value)
        case float():
            return repr(0.0 if abs(value) < LEAST else value).removesuffix(".0")
        case list() | tuple():
            return ",".join(map(_parameter_value, value))
    raise TypeError(f"a parameter is a number, a word or a list of numbers, not {type(value).__name__}")


def _split_counts(blocks: Sequence[str], features: int) -> list[int]:
    """Splits with a gain above 0, by feature."""
    counts = [0] * features
    for number, block in enumerate(blocks):
        fields = dict(
            line.split("=", 1) for line in block.split("\n") if line.startswith(("split_feature=", "split_gain="))
        )
        _check(len(fields) == 2, "missing_key", "a field is missing", number)
        pairs = zip(fields["split_feature"].split(), fields["split_gain"].split(), strict=True)
        for feature, gain in pairs:
            counts[int(feature)] += float(gain) > 0
    return counts
