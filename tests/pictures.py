"""Made-up pictures of 8 x 8 pixels in two classes, and a study of them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 8
LOCAL_PROMISE: dict[str, Any] = {
    "mode": "local",
    "epsilon": 8,
    "delta": 1e-4,
    "sampling_rate": 0.2,
    "patients": 60,
    "evaluation_epsilon": 4,
}
SUMMED_PROMISE = LOCAL_PROMISE | {"mode": "distributed", "sampling_rate": 0.5, "patients": 180}


def pictures(rows: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A bright bar somewhere in noise: upright for label 1, lying for label 0."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, size=rows)
    inputs = generator.normal(scale=0.3, size=(rows, SIDE, SIDE)).astype(np.float32)
    for picture, label, place in zip(inputs, labels, generator.integers(0, SIDE, size=rows), strict=True):
        bar = picture[:, place] if label else picture[place]
        bar += 1.5
    return inputs.reshape(rows, SIDE * SIDE), labels.astype(np.float32)


def study_text(
    *,
    image: dict[str, int] | None = None,
    channels: list[int] | None = None,
    first: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    rounds: int = 2,
) -> str:
    """A study file of `torch.cnn`; `first` says what the first feature is."""
    pixel = {"type": "float", "range": [-4, 4]}
    features = [{"name": f"p{place}"} | pixel for place in range(SIDE * SIDE)]
    if first is not None:
        features[0] = {"name": "p0"} | first
    local = {"optimizer": "sgd", "lr": 0.5} if privacy else {"epochs": 2, "optimizer": "adam", "lr": 0.01}
    study = {
        "apiVersion": "cohortium/study/1",
        "name": "pictures",
        "purpose": "tell upright bars from lying ones",
        "dataset": {
            "features": features,
            "label": {"name": "upright", "type": "binary"},
            "split": {"test": 0.3, "seed": 7},
        },
        "recipe": {
            "trainer": "torch.cnn",
            "image": image or {"height": SIDE, "width": SIDE},
            "channels": channels or [4, 8],
            "local": local,
        },
        "federation": {
            "min_sites": 3,
            "rounds": rounds,
            "deadlines": {"ready_s": 60, "upload_s": 20, "echo_s": 10, "unmask_s": 20},
        },
        "governance": "trial",
    }
    return json.dumps(study if privacy is None else study | {"privacy": privacy})


def write_table(path: Path, rows: int, seed: int) -> Path:
    """A hospital's table of pictures, as CSV."""
    inputs, labels = pictures(rows, seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"p{place}" for place in range(SIDE * SIDE)), "upright"])
        for pixels, label in zip(inputs, labels, strict=True):
            writer.writerow([*(f"{pixel:.4f}" for pixel in pixels), int(label)])
    return path
