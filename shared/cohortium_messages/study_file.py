"""Reads a study file, and says of each mistake where it is, what it is and what to do about it.

YAML is taken as plain data: no tags, no anchors or aliases, no key twice, at most 256 KiB. Text, numbers and truth
values are not turned into each other, so `levels: [0, 1]` is a mistake and `levels: ["0", "1"]` is not.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, get_args

import rfc8785
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cohortium_messages.lightgbm import LightgbmParams
from cohortium_messages.lightgbm_names import said_of_parameter
from cohortium_messages.study import Study
from cohortium_messages.study_checks import MISSING_VALUES, Finding, Place, cross_checks, same_value, shown

__all__ = (
    "MAX_STUDY_BYTES",
    "MISSING_VALUES",
    "Problem",
    "StudyFileError",
    "canonical_study",
    "parse_study",
    "same_value",
    "study_from_canonical",
)

MAX_STUDY_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` and `column` count from 1; `field` is dotted, as in `dataset.features[2].range`."""

    line: int
    column: int
    field: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"line {self.line}, column {self.column}: {where}{self.fact}\n    {self.remedy}"


class StudyFileError(ValueError):
    """The study file cannot be used. `problems` holds every mistake found, in the order of the file."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        ordered = tuple(sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column)))
        mistakes = "1 mistake" if len(ordered) == 1 else f"{len(ordered)} mistakes"
        super().__init__("\n".join([f"{file}: {mistakes}", *(f"  {problem}" for problem in ordered)]))
        self.file = file
        self.problems = ordered


Checks = Callable[[Study], Iterable[Finding]]


def parse_study(text: str, *, file: str = "study.yaml", also: Checks | None = None) -> Study:
    """The study that a YAML text describes. Raises `StudyFileError`; `file` is only for its text.

    `also` looks for what cannot be seen without more than the file, such as a privacy plan that cannot be kept
    (`cohortium_privacy.study_plans`); it is asked about a study that is right otherwise.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_STUDY_BYTES:
        remedy = f"A study file has at most {MAX_STUDY_BYTES // 1024} KiB. Is this the right file?"
        raise StudyFileError(file, (Problem(1, 1, "", "the file is too large", remedy),))
    document = _Document(text, file)
    try:
        study = Study.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [document.problem(*_explained(detail)) for detail in _relevant(document, details)]
        raise StudyFileError(file, tuple(problems)) from None
    for checks in (cross_checks, also):
        if checks is not None and (problems := [document.problem(*finding) for finding in checks(study)]):
            raise StudyFileError(file, tuple(problems))
    return study


def canonical_study(study: Study) -> bytes:
    """RFC 8785 JSON with all defaults written out. Its SHA-256 is `study.digest()`."""
    return rfc8785.dumps(study.model_dump(mode="json"))


def study_from_canonical(data: bytes) -> Study:
    """The study that these bytes hold. Raises `ValueError` unless they are exactly what `canonical_study` makes."""
    study = Study.model_validate_json(data, strict=True)
    if canonical_study(study) != data:
        raise ValueError("the study is not in canonical form")
    return study


# ----------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Composes nodes only. Plain scalars as in YAML 1.2: 1e-3 is a number; `yes`, dates and 12:30 are text."""

    depth = 0
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - declared so by PyYAML

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases (& and *) are not used here: write it out", event.start_mark
            )
        if self.depth == MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG: Final = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _name, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9]{1,400}", [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+0123456789."]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


class _Document:
    """The plain data of a YAML text, and where each part of it stands."""

    def __init__(self, text: str, file: str) -> None:
        self._marks: dict[Place, tuple[int, int]] = {(): (1, 1)}
        self._problems: list[Problem] = []
        self.data: Any = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            fact = f"not valid YAML: {error.problem or error.context}"
            remedy = "Check indentation, colons and quotes near this line."
            raise StudyFileError(file, (Problem(line, column, "", fact, remedy),)) from None
        except yaml.YAMLError:
            fact, remedy = "not valid YAML: a character that text files do not have", "Save the file as UTF-8 text."
            raise StudyFileError(file, (Problem(1, 1, "", fact, remedy),)) from None
        if node is not None:
            self.data = self._plain(node, ())
        if not isinstance(self.data, dict):
            self._problems.append(self.problem((), "is not a study", "Begin with `apiVersion: cohortium/study/1`."))
        if self._problems:
            raise StudyFileError(file, tuple(self._problems))

    def problem(self, place: Place, fact: str, remedy: str) -> Problem:
        """At `place`, or at its nearest part that is written in the file."""
        known = place
        while known not in self._marks:
            known = known[:-1]
        return Problem(*self._marks[known], _dotted(place), fact, remedy)

    def at(self, place: Place) -> Any:
        """The data at `place`; None where there is none."""
        found = self.data
        for step in place:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def _plain(self, node: yaml.Node, place: Place) -> Any:
        self._marks.setdefault(place, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._plain(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, place)
        match node.tag.removeprefix(_TAG):
            case "str":
                return node.value
            case "null":
                return None
            case "bool":
                return node.value.lower() == "true"
            case "int":
                return int(node.value)
            case "float":
                return float(node.value.replace(".inf", "inf").replace(".nan", "nan").lower())
        self._problems.append(self.problem(place, f"has the YAML tag {node.tag}", "Write plain text or numbers."))
        return None

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "(a list or block as key)"
            inner = (*place, name)
            mark = (key.start_mark.line + 1, key.start_mark.column + 1)
            if name in found:
                fact = f"stands twice, first in line {self._marks[inner][0]}"
                self._problems.append(Problem(*mark, _dotted(inner), fact, "Keep one of them."))
                continue
            self._marks[inner] = mark
            found[name] = self._plain(value, inner)
        return found


def _dotted(place: Place) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")


# ------------------------------------------------------------------------------------------------ what pydantic says

_SHAPES: Final = {
    "apiVersion": "apiVersion: cohortium/study/1",
    "range": "range: [low, high], the least and greatest value that can be true",
    "levels": 'levels: ["0", "1"], the values that the column can have',
    "split": "split: {column: split, train: train, test: test}, or split: {test: 0.3, seed: 7}",
    "label": "label: {name: disease, type: binary}",
    "hidden": "hidden: [32, 16], the width of each hidden layer",
    "image": "image: {height: 8, width: 8}, the pixels whose columns are the features",
    "channels": "channels: [8, 16], the width of each convolution",
    "trainer": "trainer: torch.logistic, or another trainer",
    "type": "type: float, int or category",
}
_UNIONS: Final[tuple[tuple[Place, int], ...]] = (
    (("recipe",), 1),
    (("privacy",), 1),
    (("dataset", "label"), 2),
    (("dataset", "split"), 2),
    (("dataset", "features"), 3),
)
_NAME_REMEDY: Final = "Use lower-case letters, digits and hyphens, at most 63."
_COLUMN_REMEDY: Final = "A column's name has letters, digits, `_`, `.` and `-`, and begins with a letter or `_`."
_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list, such as [a, b]",
    "model": "a block of fields",
    "model_attributes": "a block of fields",
    "dict": "a block of fields",
}


def _relevant(document: _Document, details: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Leaves out what is said about the kind of split that was not meant, and what follows from an inner mistake."""
    split = document.at(("dataset", "split"))
    by_column = isinstance(split, dict) and ("column" in split or "train" in split)
    other = "SplitFraction" if by_column else "SplitColumn"
    places = [detail["loc"] for detail in details]
    for detail in details:
        place = detail["loc"]
        if detail["type"] == "default_factory_not_called":
            continue
        follows = any(inner[: len(place)] == place and inner != place for inner in places)
        if place[:3] != ("dataset", "split", other) and not (detail["type"] == "too_short" and follows):
            yield detail


def _without_tags(loc: Place) -> tuple[Place, str]:
    """Pydantic puts the chosen branch of a union into the path. The path in the file, and the last branch."""
    depth = next((depth for start, depth in _UNIONS if loc[: len(start)] == start), len(loc))
    if len(loc) <= depth:
        return loc, ""
    return loc[:depth] + loc[depth + 1 :], str(loc[depth])


def _explained(detail: ErrorDetails) -> tuple[Place, str, str]:
    place, branch = _without_tags(detail["loc"])
    context, value = detail.get("ctx", {}), shown(detail["input"])
    last = place[-1] if place else ""
    match detail["type"]:
        case "missing" if isinstance(last, int):
            return place[:-1], "has too few values", f"Write {_shape(place[-2], place)}."
        case "missing":
            return place, "is missing", f"Add {_shape(last, place)}."
        case "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            return (*place, tag), "is missing", f"Add {_shape(tag, place)}."
        case "union_tag_invalid":
            tag = str(context["discriminator"]).strip("'")
            return (*place, tag), f"is {shown(context['tag'])}", f"Use one of {context['expected_tags']}."
        case "extra_forbidden":
            return place, *_unknown_field(place, branch)
        case "literal_error":
            return place, f"is {value}", f"Use {context['expected']}."
        case "string_type":
            return place, f"is {value}, not text", f'Write text, in quotes where it looks like a number: "{value}".'
        case "string_pattern_mismatch":
            return place, f"is {value}", _NAME_REMEDY if place == ("name",) else _COLUMN_REMEDY
        case "value_error":
            fact = str(context["error"])
            field = fact.split()[0]
            inside = isinstance(detail["input"], dict) and field in detail["input"]
            return (*place, field) if inside else place, fact, "Correct it, or leave it out."
        case kind if kind.removesuffix("_type") in _TYPES:
            return place, f"is {value}", f"Write {_TYPES[kind.removesuffix('_type')]}."
    rule = detail["msg"].replace("Input should", "It should").replace(" after validation", "")
    return place, f"is {value}", f"{rule.replace('Tuple', 'The list')}."


def _shape(name: str | int, place: Place) -> str:
    if name == "type" and place[:2] == ("dataset", "label"):
        return "type: binary, multiclass, number or count"
    if place == ("privacy", "mode"):
        return "mode: local, distributed, site or none"
    return _SHAPES.get(str(name), f"{name}: with a value")


def _unknown_field(place: Place, branch: str) -> tuple[str, str]:
    """Fact and remedy. Of LightGBM's parameters more is known than that they are no fields."""
    name, trees = str(place[-1]), branch == "lightgbm"
    if trees and place == ("recipe", name) and name in LightgbmParams.model_fields:
        return "is not a field here", f"LightGBM's parameters stand under params: write it there as params.{name}."
    known = said_of_parameter(name) if trees and place[:-1] in (("recipe",), ("recipe", "params")) else None
    return known or ("is not a field here", _suggestion(place, branch))


def _suggestion(place: Place, branch: str) -> str:
    fields = _fields_at(place[:-1], branch)
    close = difflib.get_close_matches(str(place[-1]), fields, n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Fields here are {', '.join(fields)}."


def _fields_at(place: Place, branch: str) -> list[str]:
    """Names that a block may have; `branch` tells which of several kinds of block it is."""
    models: list[type[BaseModel]] = [Study]
    for step in place:
        if isinstance(step, str):
            found = [model.model_fields[step] for model in models if step in model.model_fields]
            models = [model for field in found for model in _models(field.annotation)]
    chosen = [model for model in models if branch == model.__name__ or _is_branch(model, branch)]
    return sorted({name for model in (chosen or models) for name in model.model_fields})


def _is_branch(model: type[BaseModel], branch: str) -> bool:
    return any(
        branch in get_args(model.model_fields[tag].annotation)
        for tag in ("type", "trainer", "mode")
        if tag in model.model_fields
    )


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
