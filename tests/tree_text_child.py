"""A process that reads model texts from its standard input and gives each to a fork of itself.

Frames: length (4 bytes, little-endian) and a pickle-free JSON order; the answer is a JSON line. A fork first asks the
validator, as every part of the system does; only a text that passes is loaded by LightGBM, predicted with, explained,
dumped and saved. With `unchecked`, LightGBM gets the text as it is. How the fork ended is the answer.
"""

import json
import os
import resource
import signal
import struct
import sys
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import lightgbm
import numpy as np

from cohortium_protocol.trees.predict import raw_scores
from cohortium_protocol.trees.text import TreeModelRefused, check_model_text

SECONDS = 30
MOST_DIFFERENCE = 1e-9


def matrix(features: int) -> np.ndarray:
    """Rows that come past every kind of split: numbers, codes, missing values, codes that no level has."""
    random = np.random.default_rng(7)
    rows = random.normal(size=(64, features)) * 3
    rows[:, 1] = random.integers(-1, 45, size=64)
    rows[random.random(rows.shape) < 0.15] = np.nan
    return rows


def use(text: str) -> np.ndarray:
    """All that anybody does with a model."""
    model = lightgbm.Booster(model_str=text)
    rows = matrix(model.num_feature())
    raw = model.predict(rows, raw_score=True, num_threads=1)
    for way in ({}, {"pred_contrib": True}, {"pred_leaf": True}):
        model.predict(rows, num_threads=1, **way)
    model.dump_model()
    model.model_to_string()
    model.feature_importance("gain")
    return raw


def course(order: dict[str, Any]) -> dict[str, Any]:
    text, unchecked = order.pop("text"), order.pop("unchecked")
    if unchecked:
        use(text)
        return {"end": "used"}
    try:
        order["features"] = tuple(order["features"])
        model = check_model_text(text.encode("latin-1"), **order)
    except TreeModelRefused as refused:
        return {"end": "refused", "rule": refused.rule, "tree": refused.tree}
    raw = use(text)
    scores = raw_scores(model, matrix(len(model.features)))
    scale = 1.0 + float(np.abs(raw).max())
    return {"end": "used", "trees": len(model.trees), "difference": float(np.abs(scores - raw).max()) / scale}


def in_a_fork(order: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        answer: dict[str, Any] = {"end": "raised", "error": "something that is no Exception"}
        try:
            answer = course(order)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            answer["error"] = f"{type(error).__name__}: {error}"[:300]
        finally:
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"end": "signal", "signal": signal.Signals(os.WTERMSIG(status)).name}
    return json.loads(said)


def main() -> None:
    while head := sys.stdin.buffer.read(4):
        order = json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
        sys.stdout.write(json.dumps(in_a_fork(order)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
