"""The study that is played: small, quick, and of every update it is known what it must be."""

from cohortium_messages.study import Study
from cohortium_sim.storm.operations import Scenario

PARAMETERS = 24


def study_of(scenario: Scenario) -> Study:
    """A study whose every update is known in advance, and any two differ."""
    colluding = None if scenario.cohort is None else (scenario.cohort - 1) // 3
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "storm",
            "purpose": "Find what breaks",
            "dataset": {
                "features": [{"name": "unused", "type": "float", "range": [0, 1], "missing": "impute"}],
                "label": {"name": "label", "type": "binary"},
                "split": {"test": 0.5},
            },
            "recipe": {"trainer": "benchmark.noise", "parameters": PARAMETERS},
            "federation": {
                "mode": scenario.mode,
                "rounds": scenario.rounds,
                "min_sites": 3 if colluding is None else colluding + 2,
                "participants": scenario.cohort,
                "collusion": colluding,
                "buffer": 3,
                "max_staleness": 2,
                "seed": scenario.seed % 1000,
                "compression": {"clip_norm_l2": 0.2, "ring_bits": scenario.ring_bits},
                "recruiting_deadline_s": 240,
                "deadlines": {"ready_s": 20, "upload_s": 10, "echo_s": 10, "unmask_s": 10, "expire_s": 60},
            },
            "metrics": [],
        }
    )
