"""What training processes are asked and what they make, seen where a connector gives its jobs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium_connector.training.jobs import TrainLocally
from cohortium_connector.training.runner import TrainingRunner


@dataclass(frozen=True, slots=True)
class Made:
    """One local training: the job, the bytes of the model it began with, and of the update it left."""

    job: TrainLocally
    model: bytes
    update: bytes

    @property
    def hospital(self) -> str:
        """The name of its table's file."""
        return Path(self.job.source.path).stem

    @property
    def base(self) -> np.ndarray:
        return np.frombuffer(self.model, dtype="<f4")

    @property
    def words(self) -> np.ndarray:
        """The integers of a private update."""
        return np.frombuffer(self.update, dtype="<i8")


def watch_training(monkeypatch: pytest.MonkeyPatch) -> list[Made]:
    """A list that fills with every local training of connectors in this process."""
    seen: list[Made] = []
    run = TrainingRunner.run

    async def watched(runner: TrainingRunner, job: Any, **more: Any) -> Any:
        answer = await run(runner, job, **more)
        if isinstance(job, TrainLocally):
            seen.append(read_made(job))
        return answer

    monkeypatch.setattr(TrainingRunner, "run", watched)
    return seen


def read_made(job: TrainLocally) -> Made:
    """What a job that is just done began with and left."""
    assert not job.model_path.endswith(".safetensors")
    return Made(job, Path(job.model_path).read_bytes(), Path(job.update_path).read_bytes())


def once_each(seen: list[Made]) -> dict[tuple[int, str], Made]:
    """By round, from 0, and hospital. A training that was made twice must have come out the same."""
    found: dict[tuple[int, str], Made] = {}
    for made in seen:
        same = found.setdefault((made.job.round, made.hospital), made)
        assert same.update == made.update
    return found
