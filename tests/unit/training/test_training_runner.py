"""The training process: what it does, what it cannot do, and what happens when it dies."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from cohortium_connector.training.base import open_model
from cohortium_connector.training.isolation import CannotIsolate, cut_network
from cohortium_connector.training.jobs import (
    MAX_LINE_BYTES,
    ComputeStatistics,
    ConsentSource,
    DataSource,
    Evaluate,
    Ping,
    TakeCohort,
    TrainLocally,
)
from cohortium_connector.training.runner import (
    IsolationUnavailable,
    TrainerCrashed,
    TrainerTimeout,
    TrainingFailed,
    TrainingRefused,
    TrainingRunner,
)
from cohortium_messages.study_file import parse_study
from cohortium_protocol.metrics import metrics_from_sums
from cohortium_protocol.parameters import initial_parameters, layout_of, to_safetensors
from cohortium_protocol.statistics import preprocessing_from_sums

STUDIES = Path(__file__).resolve().parents[2] / "studies"
STUDY = parse_study((STUDIES / "example.yaml").read_text())
NOISE = parse_study((STUDIES / "noise.yaml").read_text())
ROWS = "50,0,120,0,train\n60,1,,1,train\n70,1,140,1,test\n45,0,130,0,test\n"


def _can_isolate() -> bool:
    """Whether this machine lets a process give up its network: asked of a process that ends at once."""
    code = "from cohortium_connector.training.isolation import cut_network; cut_network()"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=60).returncode == 0


CAN_ISOLATE = _can_isolate()
needs_isolation = pytest.mark.skipif(not CAN_ISOLATE, reason="no network namespaces for this user on this machine")


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[TrainingRunner]:
    lines: list[str] = []
    isolation = "require" if CAN_ISOLATE else "warn"
    async with TrainingRunner(work_dir=tmp_path / "work", isolation=isolation, say=lines.append) as runner:
        yield runner


@pytest.fixture
def table(tmp_path: Path) -> DataSource:
    table = DataSource(path=str(tmp_path / "site.csv"))
    write_table(table)
    return table


def write_table(table: DataSource, *more: str) -> None:
    Path(table.path).write_text("age,sex,trestbps,disease,split\n" + ROWS + "".join(more))


def is_gone(pid: int) -> bool:
    """Ended, or waiting to be collected by whoever is its parent now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen in a minute")


def noise_job(tmp_path: Path, round_: int = 1) -> TrainLocally:
    model = tmp_path / "model.f32"
    np.zeros(100_000, dtype="<f4").tofile(model)
    return TrainLocally(
        study=NOISE,
        source=DataSource(path="/nonexistent"),
        model_path=str(model),
        update_path=str(tmp_path / f"update-{round_}.f32"),
        round=round_,
        site_index=1,
    )


@needs_isolation
async def test_the_process_is_isolated(runner: TrainingRunner) -> None:
    assert (await runner.run(Ping())).isolated


@needs_isolation
def test_an_isolated_process_reaches_no_listener_and_has_no_rights() -> None:
    """The same steps as the training process takes, and then an attempt to get out."""
    attempt = """
import os, socket, sys
from cohortium_connector.training.isolation import cut_network, drop_rights, scrub_environment
inherited = int(sys.argv[2])
cut_network(); drop_rights(os.getppid()); scrub_environment(1)
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
    sys.exit("connected")
except OSError as error:
    print(error)
try:
    os.fstat(inherited)
    sys.exit("descriptor still open")
except OSError:
    pass
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert int(status["CapEff"], 16) in (0, 2), status["CapEff"]
assert int(status["CapBnd"], 16) in (0, 2), status["CapBnd"]
assert status["NoNewPrivs"].strip() == "1"
assert "SECRET" not in os.environ
assert os.umask(0) == 0o077
"""
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run(
            [sys.executable, "-c", attempt, str(listener.getsockname()[1]), str(read)],
            env=os.environ | {"SECRET": "x"},
            pass_fds=[read],
            capture_output=True,
            text=True,
            timeout=60,
        )
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    os.close(read)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert "unreachable" in done.stdout or "refused" in done.stdout


async def test_a_process_that_cannot_be_isolated_does_not_start(tmp_path: Path) -> None:
    """A small process in place of the real one says what it says where the kernel refuses."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho \'{"ready":false,"reason":"unshare says EPERM"}\'\nexit 78\n')
    program.chmod(0o755)
    async with TrainingRunner(work_dir=tmp_path, python=str(program)) as runner:
        with pytest.raises(IsolationUnavailable, match=r"EPERM.*isolation to warn"):
            await runner.run(Ping())


def test_the_refusal_to_isolate_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def unshare(self, flags: int) -> int:
            return -1

    monkeypatch.setattr("cohortium_connector.training.isolation._libc", Refusing)
    with pytest.raises(CannotIsolate, match="unshare says"):
        cut_network()


async def test_statistics_are_written_as_integers(runner: TrainingRunner, table: DataSource, tmp_path: Path) -> None:
    path = tmp_path / "sums.i64"
    done = await runner.run(ComputeStatistics(study=STUDY, source=table, vector_path=str(path)))
    assert (done.train_rows, done.test_rows) == (2, 2)
    assert np.fromfile(path, dtype="<i8")[-4:].tolist() == [2, 2, 1, 1]
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.torch
async def test_a_round_at_one_site(runner: TrainingRunner, table: DataSource, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the training extra is not installed")
    sums, rules, model = tmp_path / "sums.i64", tmp_path / "rules.json", tmp_path / "model.safetensors"
    await runner.run(ComputeStatistics(study=STUDY, source=table, vector_path=str(sums)))
    preprocessing = preprocessing_from_sums(STUDY, np.fromfile(sums, dtype="<i8"), 1)
    rules.write_bytes(preprocessing.canonical())
    layout = layout_of(STUDY.recipe, preprocessing.inputs)
    base = initial_parameters(layout, 0)
    model.write_bytes(to_safetensors(layout, base))
    flat = tmp_path / "model.f32"
    base.tofile(flat)
    assert (open_model(flat, layout) == open_model(model, layout)).all()

    updates = []
    for path in (model, flat, flat):
        job = TrainLocally(
            study=STUDY,
            source=table,
            preprocessing_path=str(rules),
            model_path=str(path),
            update_path=str(tmp_path / "update.f32"),
            round=len(updates) // 2,
            site_index=1,
        )
        done = await runner.run(job)
        assert (done.rows, done.parameters) == (2, layout.size)
        updates.append(np.fromfile(tmp_path / "update.f32", dtype="<f4"))
    assert updates[0].size == layout.size
    assert (updates[0] == updates[1]).all(), "the same task gives the same update again"

    counts = tmp_path / "counts.i64"
    job = Evaluate(
        study=STUDY,
        source=table,
        preprocessing_path=str(rules),
        model_path=str(flat),
        vector_path=str(counts),
    )
    assert (await runner.run(job)).rows == 2
    assert metrics_from_sums(np.fromfile(counts, dtype="<i8"), STUDY.metrics).rows == 2
    other = STUDY.model_copy(update={"purpose": "another"})
    with pytest.raises(TrainingRefused, match="MODEL_REFUSED"):
        await runner.run(job.model_copy(update={"study": other}))


async def test_noise_needs_neither_rows_nor_torch(runner: TrainingRunner, tmp_path: Path) -> None:
    job = noise_job(tmp_path)
    done = await runner.run(job)
    update = np.fromfile(job.update_path, dtype="<f4")
    assert done.parameters == update.size == 100_000
    assert 0 < np.abs(update).max() <= 1.001e-3
    assert done.norm_l2 == pytest.approx(np.linalg.norm(update), rel=1e-5)
    sums = ComputeStatistics(study=NOISE, source=job.source, vector_path=str(tmp_path / "sums.i64"))
    assert (await runner.run(sums)).train_rows == 1
    evaluate = Evaluate(
        study=NOISE,
        source=job.source,
        preprocessing_path="/nonexistent",
        model_path=job.model_path,
        vector_path=str(tmp_path / "counts.i64"),
    )
    assert (await runner.run(evaluate)).rows == 0


async def test_a_refusal_has_a_code_and_rows_only_in_the_local_lines(
    runner: TrainingRunner, table: DataSource, tmp_path: Path
) -> None:
    write_table(table, "500,1,120,1,train\n")
    job = ComputeStatistics(study=STUDY, source=table, vector_path=str(tmp_path / "sums.i64"))
    with pytest.raises(TrainingRefused) as caught:
        await runner.run(job)
    refused = caught.value
    assert (refused.code, refused.column, refused.count) == ("VALUE_OUT_OF_RANGE", "age", 1)
    assert "5" not in str(refused)
    await eventually(lambda: len(runner.local_lines) > 0)
    assert list(runner.local_lines) == ["VALUE_OUT_OF_RANGE: column age: 1 times; rows 5"]
    assert (await runner.run(Ping())).done == "ping", "the process goes on after a refusal"


async def test_paths_may_be_relative(
    runner: TrainingRunner, table: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = DataSource(path=Path(table.path).name)
    assert (await runner.run(ComputeStatistics(study=STUDY, source=beside, vector_path="sums.i64"))).train_rows == 2
    assert (tmp_path / "sums.i64").is_file()


async def test_a_table_that_changed_is_read_again(runner: TrainingRunner, table: DataSource, tmp_path: Path) -> None:
    job = ComputeStatistics(study=STUDY, source=table, vector_path=str(tmp_path / "sums.i64"))
    assert (await runner.run(job)).train_rows == 2
    assert (await runner.run(job)).train_rows == 2
    write_table(table, "50,1,120,1,train\n")
    assert (await runner.run(job)).train_rows == 3


async def test_a_killed_process_is_an_error_and_the_next_job_has_a_new_one(
    runner: TrainingRunner, tmp_path: Path
) -> None:
    await runner.run(Ping())
    first = runner.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    job = asyncio.create_task(runner.run(noise_job(tmp_path)))
    await asyncio.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(TrainerCrashed, match="SIGKILL"):
        await job
    await runner.run(noise_job(tmp_path, 2))
    assert runner.pid not in (None, first)


async def test_a_process_that_died_between_jobs_is_replaced(runner: TrainingRunner) -> None:
    await runner.run(Ping())
    first = runner.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: runner.pid is None)
    await runner.run(Ping())
    assert runner.pid not in (None, first)


async def test_a_job_that_takes_too_long_is_killed(runner: TrainingRunner) -> None:
    await runner.run(Ping())
    first = runner.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(TrainerTimeout):
        await runner.run(Ping(), timeout_s=0.2)
    assert runner.pid is None
    await runner.run(Ping())


async def test_cancelling_a_job_kills_its_process(runner: TrainingRunner) -> None:
    await runner.run(Ping())
    first = runner.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    job = asyncio.create_task(runner.run(Ping()))
    await asyncio.sleep(0.1)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert runner.pid is None
    assert is_gone(first)


async def test_jobs_wait_for_each_other_and_the_loop_goes_on(tmp_path: Path) -> None:
    isolation = "require" if CAN_ISOLATE else "warn"
    async with TrainingRunner(work_dir=tmp_path, isolation=isolation, artificial_delay_s=0.3) as runner:
        await runner.run(Ping())
        started = time.monotonic()
        jobs = [asyncio.create_task(runner.run(noise_job(tmp_path, round_))) for round_ in (1, 2)]
        turns = 0
        while not all(job.done() for job in jobs):
            await asyncio.sleep(0.01)
            turns += 1
        assert all(job.result().parameters == 100_000 for job in jobs)
        assert time.monotonic() - started >= 0.6
        assert turns > 20


def test_the_process_does_not_outlive_its_connector(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, signal
from pathlib import Path
from cohortium_connector.training.jobs import Ping
from cohortium_connector.training.runner import TrainingRunner
async def main():
    runner = TrainingRunner(work_dir=Path({str(tmp_path)!r}), isolation="warn")
    await runner.run(Ping())
    print(runner.pid, flush=True)
    os.kill(runner.pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    asyncio.run(eventually(lambda: is_gone(int(done.stdout))))


def test_a_line_without_end_stops_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cohortium_connector.training.worker", "--isolation=warn"],
        input=b"x" * (MAX_LINE_BYTES + 1),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert b"longer than a line may be" in done.stderr


async def test_the_isolated_process_asks_the_hospitals_files_who_may_be_used(
    runner: TrainingRunner, table: DataSource, tmp_path: Path
) -> None:
    """A process of its own, without a network: it must reach the consents, and then read the others' rows no more."""
    rows = "".join(f"p{place},{row}\n" for place, row in enumerate(ROWS.splitlines()))
    (tmp_path / "site.csv").write_text("mrn,age,sex,trestbps,disease,split\n" + rows)
    consents, optout = tmp_path / "consents.csv", tmp_path / "optout.txt"
    consents.write_text("person_id,decision\np0,permit\np1,deny\np2,permit\np3,permit\n")
    optout.write_text("p3\n")
    for file in (consents, optout):
        file.chmod(0o400)
    consent = ConsentSource(kind="table", path=str(consents))
    source = table.model_copy(update={"person_column": "mrn", "consent": consent, "optout_path": str(optout)})
    at, folder = datetime(2026, 6, 1, tzinfo=UTC), tmp_path / "patients"
    folder.mkdir(mode=0o700)
    job = TakeCohort(source=source, required=True, at=at, context=bytes(16), salt=bytes(32), folder=str(folder))
    taken = await runner.run(job, timeout_s=60)
    assert (taken.persons, taken.permitted, taken.excluded) == (4, 2, {"denied": 1, "opted_out": 1})
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert {str(file) for file in folder.iterdir()} == {taken.permitted_path, taken.tags_path}
    permitted = source.model_copy(update={"permitted_path": taken.permitted_path})
    statistics = ComputeStatistics(study=STUDY, source=permitted, vector_path=str(tmp_path / "stats.i64"))
    done = await runner.run(statistics, timeout_s=60)
    assert (done.train_rows, done.test_rows) == (1, 1)
    next(folder.glob("permitted-*.json")).unlink()
    other = statistics.model_copy(
        update={"source": permitted.model_copy(update={"site_column": "sex", "site_value": "0"})}
    )
    with pytest.raises(TrainingFailed):  # a list that is gone permits nobody
        await runner.run(other, timeout_s=60)
