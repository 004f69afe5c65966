"""One machine of LightGBM's own distributed training over sockets, for comparison: `python socket_site.py`.

Reads jobs from its standard input, one JSON line each, and answers each with one. The rows, the bins, the weights and
the parameters are those of the training process; only the network is LightGBM's.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cohortium_connector.training import lightgbm_
from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_connector.training.weights import row_weights
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.trees.binning import tree_columns
from cohortium_protocol.trees.bins import Binning


def grow(job: dict[str, Any]) -> str:
    study = Study.model_validate(job["study"])
    assert isinstance(study.recipe, LightgbmRecipe)
    binning = Binning.from_canonical(Path(job["binning"]).read_bytes())
    train = read_table(study, DataSource(path=job["table"])).train
    bins = lightgbm_.make_bins(binning)
    labels = train.labels.astype(np.float64)
    data = lightgbm_.training_set(
        bins, tree_columns(binning, train), labels, weights=row_weights(study, study.recipe, labels)
    )
    parameters = lightgbm_.booster_parameters(study, study.recipe, bins, threads=1)
    parameters |= {
        "tree_learner": "data",
        "num_machines": len(job["ports"]),
        "machines": ",".join(f"127.0.0.1:{port}" for port in job["ports"]),
        "local_listen_port": job["ports"][job["rank"]],
        "time_out": 1,
    }
    booster = lightgbm_.make_booster(parameters | job["extra"], data)
    try:
        for _ in range(study.boosting_rounds):
            if booster.update():
                break
        return str(booster.model_to_string(num_iteration=-1))
    finally:
        booster.free_network()


answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the library writes lines of its own from other threads
for line in sys.stdin:
    answers.write(json.dumps(grow(json.loads(line))) + "\n")
    answers.flush()
