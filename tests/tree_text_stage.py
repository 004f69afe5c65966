"""Genuine LightGBM models for tests of model texts, small edits of them, and the process that they are tried in."""

import json
import re
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

FEATURES = ("age", "ward", "bmi", "x-1")
CODES = {"ward": 40}
CLASSES = {"binary": 1, "multiclass": 3, "regression": 1, "poisson": 1}
TESTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Genuine:
    """A text that LightGBM wrote, and what `check_model_text` is told of its study."""

    text: str
    objective: str
    rules: dict[str, Any] = field(hash=False)

    @property
    def data(self) -> bytes:
        return self.text.encode()


def table(rows: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a category of 40 codes and missing numbers, and the signal that labels are made from."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, 4))
    values[:, 1] = random.integers(0, 40, size=rows)
    signal = values[:, 0] + np.sin(values[:, 1]) + 0.5 * values[:, 2] * values[:, 3]
    values[random.random(rows) < 0.2, 2] = np.nan
    return values, signal + 0.5 * random.normal(size=rows)


def labels_for(objective: str, signal: np.ndarray) -> np.ndarray:
    match objective:
        case "binary":
            return (signal > 0).astype(np.int64)
        case "multiclass":
            return np.digitize(signal, [-0.7, 0.7])
        case "poisson":
            return np.floor(np.exp(np.clip(signal, -2, 2)))
    return signal * 3.0


@lru_cache(maxsize=16)
def genuine(objective: str = "multiclass", rounds: int = 4, leaves: int = 8) -> Genuine:
    import lightgbm

    values, signal = table()
    params: dict[str, Any] = {
        "objective": objective,
        "num_leaves": leaves,
        "num_threads": 1,
        "verbosity": -1,
        "min_data_per_group": 5,
        "cat_smooth": 1,
        "monotone_constraints": [1, 0, 0, 0],
    }
    if objective == "multiclass":
        params["num_class"] = 3
    names = {"feature_name": list(FEATURES), "categorical_feature": [1]}
    data = lightgbm.Dataset(values, labels_for(objective, signal), params={"verbosity": -1, "max_bin": 63}, **names)
    text = lightgbm.train(params, data, num_boost_round=rounds).model_to_string()
    return Genuine(text, objective, rules_for(objective, rounds, leaves))


def rules_for(objective: str, rounds: int, leaves: int) -> dict[str, Any]:
    classes = CLASSES[objective]
    return {
        "features": FEATURES,
        "classes": classes,
        "max_trees": rounds * classes,
        "max_leaves": leaves,
        "objective": objective,
        "categories": CODES,
    }


def resized(text: str) -> str:
    """The text with the `tree_sizes` that its blocks have now: what stands in a block is then all that is wrong."""
    head, _, rest = text.partition("\nTree=")
    trees, end, tail = rest.partition("end of trees")
    blocks = ("Tree=" + trees).replace("\nTree=", "\n\0Tree=").split("\0")
    sizes = " ".join(str(len(block.encode())) for block in blocks)
    return re.sub(r"tree_sizes=[^\n]*", f"tree_sizes={sizes}", head, count=1) + "\n" + "".join(blocks) + end + tail


def edited(text: str, line: str, new: str, tree: int = 0) -> str:
    """The text with another value in field `line` of a tree, and the right sizes."""
    start = text.index(f"\nTree={tree}\n")
    place = text.index(f"\n{line}=", start) + 1
    return resized(text[:place] + f"{line}={new}" + text[text.index("\n", place) :])


def values_of(text: str, line: str, tree: int = 0) -> list[str]:
    """The values of field `line` of a tree."""
    start = text.index(f"\nTree={tree}\n")
    place = text.index(f"\n{line}=", start) + len(line) + 2
    return text[place : text.index("\n", place)].split(" ")


def with_value(text: str, line: str, place: int, new: str, tree: int = 0) -> str:
    """The text with another value in one place of field `line` of a tree."""
    values = values_of(text, line, tree)
    values[place] = new
    return edited(text, line, " ".join(values), tree)


class Gate:
    """The process of `tree_text_child.py`, which tries each text in a fork of its own."""

    def __init__(self) -> None:
        command = [sys.executable, str(TESTS / "tree_text_child.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tries(self, text: str, rules: dict[str, Any], *, unchecked: bool = False) -> dict[str, Any]:
        """How it ended: `refused` with the rule, `used`, `raised` with the error, or `signal`."""
        order = json.dumps({"text": text, "unchecked": unchecked} | rules).encode()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("<I", len(order)) + order)
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)


ODD = (
    *(
        "",
        "0",
        "-1",
        "1",
        "2",
        "3",
        "7",
        "31",
        "255",
        "-128",
        "1e308",
        "-1e-320",
        "1e999",
        "nan",
        "-inf",
        "0x1F",
        "1_0",
    ),
    *(
        "2147483647",
        "2147483648",
        "-2147483649",
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "0.5",
        "1e-5",
        "+1",
    ),
    *("1e+15", "-0", "00", ".5", "5.", "abc", "=", "Tree=0", "end of trees", "null", "[a: b]", "x"),
)
"""Values that readers of numbers have stumbled over."""


def mutated(text: str, random: Random) -> str:
    """One to three edits of a text: a value, a line or some bytes; most with right sizes, so that they get far."""
    sizes = random.random() < 0.75
    for _ in range(random.randint(1, 3)):
        text = random.choice((_other_value, _other_value, _other_value, _other_line, _other_bytes))(text, random)
    return resized(text) if sizes and "\nTree=" in text and "end of trees" in text else text


def _other_value(text: str, random: Random) -> str:
    lines = text.split("\n")
    places = [place for place, line in enumerate(lines) if "=" in line or line.startswith("[")]
    place = random.choice(places)
    name, sign, rest = lines[place].partition("=" if "=" in lines[place] else ": ")
    values = rest.split(" ")
    at = random.randrange(len(values))
    match random.randrange(5):
        case 0:
            values[at] = random.choice(ODD)
        case 1:
            values[at] = str(random.randint(-40, 40))
        case 2:
            values[at] = random.choice(values)
        case 3:
            values.insert(at, random.choice(values))
        case _:
            digits = values[at]
            cut = random.randrange(len(digits) + 1)
            values[at] = digits[:cut] + random.choice("0123456789.e-+ :x") + digits[cut + 1 :]
    lines[place] = name + sign + " ".join(values)
    return "\n".join(lines)


def _other_line(text: str, random: Random) -> str:
    lines = text.split("\n")
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(3):
        case 0:
            lines[one], lines[other] = lines[other], lines[one]
        case 1:
            del lines[one]
        case _:
            lines.insert(one, lines[other])
    return "\n".join(lines)


def _other_bytes(text: str, random: Random) -> str:
    start = random.randrange(len(text))
    stop = min(len(text), start + random.choice((0, 1, 1, 2, 8, 200)))
    filling = "".join(
        chr(random.choice((9, 10, 13, 0, 32, 45, 46, 48, 57, 61, 93, 127, 200))) for _ in range(stop - start)
    )
    return text[:start] + random.choice(("", filling)) + text[stop:]
