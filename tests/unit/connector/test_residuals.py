"""What a round leaves out of an update: kept whole, given to one window at a time, and worth it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortium_connector.feedback import Feedback, keep_residual, scratch, with_residual
from cohortium_connector.store import residuals
from cohortium_connector.store.residuals import Residual
from cohortium_kit.db import Database
from cohortium_kit.migrate import migrate
from cohortium_messages.ids import RunId
from cohortium_messages.secure_sum import MAX_CHUNK_BYTES, VectorSpec
from cohortium_protocol.codec import RoundingStream
from cohortium_protocol.floats import FloatFile
from cohortium_protocol.grid import GridCodec

RUN = RunId("11111111-1111-4111-8111-111111111111")
ONE, TWO = b"1" * 16, b"2" * 16
SITES, DIMENSION, ROUNDS, KEEP, RATE = 4, 2048, 40, 0.1, 0.3
Vector = NDArray[np.float32]


def spec(round_: int) -> VectorSpec:
    return VectorSpec(
        encoding="grid",
        dimension=DIMENSION,
        ring_bits=16,
        rotate=True,
        rotation_seed=bytes([round_]) * 32,
        keep=KEEP,
        keep_seed=bytes([round_ + 100]) * 32,
        clip_norm_l2=200.0,
        range_factor=6.0,
        weight_cap=1,
        chunk_bytes=MAX_CHUNK_BYTES,
    )


@contextmanager
def stored(path: Path, values: Vector) -> Iterator[FloatFile]:
    path.write_bytes(values.astype("<f4").tobytes())
    handle = os.open(path, os.O_RDONLY)
    try:
        yield FloatFile(handle, len(values))
    finally:
        os.close(handle)


def send(folder: Path, update: Vector, round_: int, feedback: Feedback | None) -> Vector:
    """What the platform reads of this update, alone; the residual is written as a site does."""
    codec = GridCodec(spec(round_), SITES)
    own = np.zeros(codec.kept, dtype=np.float32)
    seed = bytes([round_]) * 31 + bytes([len(update) % 251])
    with stored(folder / "update", update) as file:
        if feedback is None:
            encoder = codec.encoder(file, staleness=0, rows=1, uniforms=RoundingStream(seed))
            for index in range(codec.plan.chunk_count):
                encoder.decode_own(index, encoder.chunk(index), own)
        else:
            with with_residual(file, feedback) as both, scratch(folder / "own.part", codec.kept) as decoded:
                encoder = codec.encoder(both, staleness=0, rows=1, uniforms=RoundingStream(seed))
                for index in range(codec.plan.chunk_count):
                    encoder.decode_own(index, encoder.chunk(index), decoded)
                own[:] = decoded[:]
                keep_residual(encoder, decoded, DIMENSION, feedback)
    sent = np.zeros(DIMENSION, dtype=np.float32)
    codec.spread(own, sent)
    return sent


def read(path: Path) -> Vector:
    return np.frombuffer(path.read_bytes(), dtype="<f4")


def test_what_is_sent_and_what_is_left_over_are_the_update_and_what_was_left_over_before(tmp_path: Path) -> None:
    chance = np.random.default_rng(7)
    first, second = (chance.normal(size=DIMENSION).astype(np.float32) for _ in range(2))
    one, two = Feedback(None, tmp_path / "one"), Feedback(tmp_path / "one", tmp_path / "two")
    sent = send(tmp_path, first, 1, one)
    np.testing.assert_allclose(sent + read(one.after), first, atol=1e-5)
    assert np.count_nonzero(sent) <= KEEP * DIMENSION + 1
    again = send(tmp_path, second, 2, two)
    np.testing.assert_allclose(sent + again + read(two.after), first + second, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two", "update"]


@pytest.mark.parametrize("content", [None, b"", b"short"], ids=["gone", "empty", "of another length"])
def test_a_residual_that_is_not_whole_is_none(tmp_path: Path, content: bytes | None) -> None:
    """A copy of the spool was restored: the update goes without, rather than with anything else."""
    before = tmp_path / "before"
    if content is not None:
        before.write_bytes(content)
    update = np.ones(DIMENSION, dtype=np.float32)
    with stored(tmp_path / "update", update) as file, with_residual(file, Feedback(before, tmp_path / "after")) as both:
        np.testing.assert_array_equal(both[:], update)


def loss(model: Vector, wanted: list[Vector]) -> float:
    return float(np.mean([np.sum((model - one) ** 2) for one in wanted]))


def test_training_converges_better_with_feedback_than_without(tmp_path: Path) -> None:
    """Gradient steps of four sites whose optima differ, a tenth of the coordinates a round."""
    chance = np.random.default_rng(3)
    wanted = [chance.normal(size=DIMENSION).astype(np.float32) for _ in range(SITES)]
    best = loss(np.mean(wanted, axis=0), wanted)
    ends = {}
    for feeds in (False, True):
        model = np.zeros(DIMENSION, dtype=np.float32)
        for round_ in range(ROUNDS):
            steps = []
            for site, optimum in enumerate(wanted):
                before = tmp_path / f"{site}-{round_ - 1}"
                feedback = Feedback(before if round_ else None, tmp_path / f"{site}-{round_}") if feeds else None
                steps.append(send(tmp_path, RATE * (optimum - model) * KEEP, round_, feedback))
            model = model + np.mean(steps, axis=0)
        ends[feeds] = loss(model, wanted) - best
    assert ends[True] < 0.6 * ends[False]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/spool.db", schema="connector")
    await migrate(made, "cohortium_connector")
    yield made
    await made.close()


async def ends(database: Database, window_id: bytes, *, released: bool = False, freed: bool = False) -> Residual | None:
    async def end(tx: object) -> None:
        await residuals.settle(tx, RUN, window_id, released=released, freed=freed, by="test")  # type: ignore[arg-type]

    await database.run("end", end)
    async with database.reading("find") as tx:
        return await residuals.find(tx, RUN)


async def take(database: Database, window_id: bytes) -> Residual | None:
    return await database.run("take", lambda tx: residuals.take(tx, RUN, window_id, by="test"))


async def test_a_residual_is_in_one_open_window_at_a_time(database: Database) -> None:
    assert await take(database, ONE) == Residual(RUN, None, ONE)
    assert await take(database, ONE) == Residual(RUN, None, ONE), "made again after a crash"
    assert await take(database, TWO) is None
    assert await ends(database, TWO, released=True) == Residual(RUN, None, ONE), "it had nothing"
    assert await ends(database, ONE, released=True) == Residual(RUN, ONE, None)
    assert await ends(database, ONE) == Residual(RUN, ONE, None), "an end that is told twice"
    assert await take(database, TWO) == Residual(RUN, ONE, TWO)


async def test_what_follows_from_a_windows_end(database: Database) -> None:
    await take(database, ONE)
    await ends(database, ONE, released=True)
    await take(database, TWO)
    assert await ends(database, TWO, freed=True) == Residual(RUN, ONE, None), "as before: no sum can hold it"
    await take(database, TWO)
    assert await ends(database, TWO) == Residual(RUN, None, None), "it may be in a sum: nothing of it is sent again"
    await database.run("forget", lambda tx: residuals.forget(tx, RUN))
    assert await ends(database, TWO) is None
