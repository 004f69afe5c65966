"""One machine of LightGBM's own distributed training over sockets, for `bench_trees` to compare with.

Rows, bins, weights and parameters are those of the connectors; only the network is LightGBM's. One job on standard
input, one answer on standard output, both a line of JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import DataSource
from cohortium_messages.ids import Wire
from cohortium_messages.study import LightgbmRecipe, Study
from cohortium_protocol.trees.binning import tree_columns
from cohortium_protocol.trees.bins import Binning
from cohortium_protocol.trees.text import header_of, render, tree_blocks


class SocketJob(Wire):
    """Grow all trees of `study` on this table, as machine `rank` of those that listen on `ports` of the loopback."""

    study: Study
    binning_path: str
    table_path: str
    text_path: str
    """Where the first machine writes the model's text."""
    ports: tuple[int, ...]
    rank: int


def grow(job: SocketJob) -> float:
    """Seconds from the first tree to the last."""
    from cohortium_connector.training import lightgbm_

    assert isinstance(job.study.recipe, LightgbmRecipe)  # noqa: S101 - the benchmark's own study
    binning = Binning.from_canonical(Path(job.binning_path).read_bytes())
    train = read_table(job.study, DataSource(path=job.table_path)).train
    bins = lightgbm_.make_bins(binning)
    data = lightgbm_.training_set(bins, tree_columns(binning, train), train.labels.astype(np.float64))
    network: dict[str, Any] = {
        "tree_learner": "data",
        "num_machines": len(job.ports),
        "machines": ",".join(f"127.0.0.1:{port}" for port in job.ports),
        "local_listen_port": job.ports[job.rank],
        "time_out": 1,
    }
    parameters = lightgbm_.booster_parameters(job.study, job.study.recipe, bins, threads=1)
    booster = lightgbm_.make_booster(parameters | network, data)
    try:
        begun = time.monotonic()
        for _ in range(job.study.boosting_rounds):
            if booster.update():
                break
        seconds = time.monotonic() - begun
        if job.rank == 0:
            text = booster.model_to_string(num_iteration=-1)
            Path(job.text_path).write_bytes(render(header_of(text), tree_blocks(text), {}))
    finally:
        booster.free_network()
    return seconds


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library writes lines of its own
    seconds = grow(SocketJob.model_validate_json(sys.stdin.readline()))
    answers.write(json.dumps({"seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
