"""One machine of LightGBM's own distributed training over sockets: rank, ports, folder. Writes its model text."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import lightgbm
import numpy as np


def main(rank: int, ports: list[int], folder: Path) -> None:
    random = np.random.default_rng(11)
    rows = random.normal(size=(1200, 4))
    rows[:, 1] = random.integers(0, 30, size=1200)
    labels = (rows[:, 0] + np.sin(rows[:, 1]) + random.normal(size=1200) > 0).astype(int)
    rows[random.random(1200) < 0.2, 2] = np.nan
    mine = slice(rank, None, len(ports))
    params = {
        "objective": "binary",
        "tree_learner": "data",
        "num_machines": len(ports),
        "machines": ",".join(f"127.0.0.1:{port}" for port in ports),
        "local_listen_port": ports[rank],
        "time_out": 1,
        "num_leaves": 7,
        "num_threads": 1,
        "verbosity": -1,
        "min_data_per_group": 5,
        "pre_partition": True,
    }
    names = ["age", "ward", "bmi", "x-1"]
    table = lightgbm.Dataset(rows[mine], labels[mine], feature_name=names, categorical_feature=[1], params=params)
    text = lightgbm.train(params, table, num_boost_round=6).model_to_string()
    (folder / f"model-{rank}.txt").write_text(text)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(port) for port in sys.argv[2].split(",")], Path(sys.argv[3]))
