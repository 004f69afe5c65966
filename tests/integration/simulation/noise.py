"""What a federation of the noise trainer must have computed: every opened sum, recomputed from the declared cohorts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cohortium_connector.training.noise import NoiseTrainer
from cohortium_connector.training.work import task_seed
from cohortium_messages.status import RunStatus
from cohortium_messages.study import Study

PARAMETERS = 20_000
CLIP = 0.2
"""Noise of ±1e-3 on 20,000 parameters has a norm of 0.082: nothing is clipped, and the grid is fine."""


def noise_study(rounds: int, **federation: object) -> Study:
    """Every site's every update is known in advance, and any two differ in every parameter."""
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "name": "noise",
            "purpose": "Check every sum",
            "dataset": {
                "features": [{"name": "unused", "type": "float", "range": [0, 1], "missing": "impute"}],
                "label": {"name": "label", "type": "binary"},
                "split": {"test": 0.5},
            },
            "recipe": {"trainer": "benchmark.noise", "parameters": PARAMETERS},
            "federation": {
                "rounds": rounds,
                "min_sites": 3,
                "compression": {"clip_norm_l2": CLIP},
                "deadlines": {"ready_s": 30, "upload_s": 20, "echo_s": 20, "unmask_s": 20, "expire_s": 120},
                **federation,
            },
            "metrics": [],
        }
    )


def update(study: Study, base_version: int, site: str, order: Sequence[str]) -> NDArray[np.float32]:
    """The update that this site makes from this version; `order` are the site ids as the manifest has them."""
    base = np.zeros(PARAMETERS, dtype=np.float32)
    seed = task_seed(study.federation.seed, base_version, order.index(site))
    trained = NoiseTrainer(study.recipe).train(base, None, epochs=1, seed=seed)  # type: ignore[arg-type]
    return np.concatenate(list(trained.slices))


def expected_model(study: Study, status: RunStatus) -> NDArray[np.float64]:
    """Zeros, and for each round the mean of its cohort's updates: nobody twice, nobody else, nobody missing."""
    ids: Mapping[str, str] = {site.name: site.site_id for site in status.sites}
    order = sorted(ids.values())
    model = np.zeros(PARAMETERS)
    for done in status.rounds_done:
        updates = [update(study, done.model_version - 1, ids[name], order) for name in done.cohort]
        model += np.mean(updates, axis=0)
    return model


def released_model(folder: Path) -> NDArray[np.float32]:
    """The exported model's parameters."""
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate([tensor.ravel() for tensor in tensors.values()])


def error_bound(rounds: int) -> float:
    """Four sites' grid step, as far as rounding can add up over the rounds: well under one update's size, 1e-3."""
    step = 6 * CLIP / np.sqrt(PARAMETERS) / (2**15 / 4)
    return float(rounds * 6 * step)
