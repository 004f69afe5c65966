"""The training process: is it cut off from the network, do its libraries work, how long does a small model take; and
the tables that the settings name, of which nothing is read."""

import csv
import os
import random
import time
from pathlib import Path

from cohortium_connector.preflight.findings import Finding, failed, ok, skipped, warning
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.training.jobs import DataSource, NamedSource, Ping, TrainBaselines
from cohortium_connector.training.runner import (
    IsolationUnavailable,
    TrainerCrashed,
    TrainerTimeout,
    TrainingFailed,
    TrainingRunner,
)
from cohortium_messages.preflight import PROBE_FEATURES, PROBE_HIDDEN, PROBE_PASSES, PROBE_ROWS, PROBE_TEST
from cohortium_messages.study import Study

LIMIT_S = 180.0
SEED = 20_260_101


def probe_study() -> Study:
    """A small network on made-up rows: the same at every site, so that their times compare."""
    features = [{"name": f"x{number}", "type": "float", "range": [-4, 4]} for number in range(PROBE_FEATURES)]
    return Study.model_validate(
        {
            "apiVersion": "cohortium/study/1",
            "governance": "trial",
            "name": "preflight",
            "purpose": "Measure this machine with rows that are made up",
            "dataset": {"features": features, "label": {"name": "y", "type": "binary"}, "split": {"test": PROBE_TEST}},
            "recipe": {
                "trainer": "torch.mlp",
                "hidden": list(PROBE_HIDDEN),
                "local": {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "lr": 0.05},
            },
            "federation": {"rounds": PROBE_PASSES, "min_sites": 3},
            "metrics": ["auc"],
        }
    )


def write_rows(path: Path) -> None:
    """The made-up table. The generator is a fixed one: these are no secrets, and sites must have the same rows."""
    source = random.Random(SEED)  # noqa: S311
    with path.open("w", encoding="ascii", newline="") as file:
        table = csv.writer(file)
        table.writerow([*(f"x{number}" for number in range(PROBE_FEATURES)), "y"])
        for _ in range(PROBE_ROWS):
            row = [max(-4.0, min(4.0, source.gauss(0, 1))) for _ in range(PROBE_FEATURES)]
            table.writerow([*(f"{value:.4f}" for value in row), int(sum(row[:5]) + source.gauss(0, 1) > 0)])


async def try_training(runner: TrainingRunner, folder: Path) -> tuple[list[Finding], float | None]:
    """Isolation and training, and the seconds of the second of two trainings: the first one loads the libraries."""
    try:
        pong = await runner.run(Ping(), timeout_s=LIMIT_S)
    except IsolationUnavailable:
        return [failed("isolation", "NOT_ISOLATED"), skipped("training")], None
    except (TrainingFailed, TrainerCrashed, TrainerTimeout) as error:
        return [skipped("isolation"), failed("training", "TRAINING_FAILED", error=type(error).__name__)], None
    isolation = ok("isolation") if pong.isolated else warning("isolation", "NOT_ISOLATED")
    table = folder / "preflight.csv"
    try:
        write_rows(table)
        job = TrainBaselines(study=probe_study(), sites=(NamedSource(name="here", source=DataSource(path=str(table))),))
        seconds = 0.0
        for _ in range(2):
            began = time.monotonic()
            await runner.run(job, timeout_s=LIMIT_S)
            seconds = time.monotonic() - began
    except (TrainingFailed, TrainerCrashed, TrainerTimeout) as error:
        return [isolation, failed("training", "TRAINING_FAILED", error=type(error).__name__)], None
    finally:
        table.unlink(missing_ok=True)
    return [isolation, ok("training", seconds=round(seconds, 2))], seconds


def data(settings: ConnectorSettings) -> Finding:
    """Whether each file that a study's settings name (its table, who consented, who opted out) can be read, and not be
    written, by this account. No byte of it is kept. One that is missing counts before one that is writable."""
    if not settings.datasets:
        return skipped("data", "NO_DATA_YET")
    writable: Finding | None = None
    for study, source in settings.datasets.items():
        for path in _files(source):
            try:
                with path.open("rb") as file:
                    file.read(1)
            except OSError as error:
                return failed("data", "DATA_MISSING", study=study, path=str(path), error=error.strerror or "")
            # root may write everywhere; what counts there is whether the mount lets it.
            if writable is None and os.access(path, os.W_OK):
                writable = warning("data", "DATA_WRITABLE", study=study, path=str(path))
    return writable or ok("data", tables=len(settings.datasets))


def _files(source: DataSource) -> list[Path]:
    named = (source.path, source.consent.path if source.consent else None, source.optout_path)
    return [Path(path) for path in named if path is not None]
