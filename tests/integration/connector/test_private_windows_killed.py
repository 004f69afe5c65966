"""`kill -9` anywhere between reserving, training, saving and uploading: one charge, one noise, one vector."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("dp_accounting", reason="the privacy extra is not installed")

from connector_private import ROUNDS
from private_dying import POINTS, RUN, SEEDS, WINDOW, Platform

from cohortium_connector.store.tables import noise_seed
from cohortium_privacy.ledger_state import Holding

HERE = Path(__file__).parent


@dataclass
class Dying:
    process: "subprocess.Popen[str]"

    def __call__(self, folder: Path, mode: str, point: str | None = None) -> bool:
        """Play the window; whether it was killed. It must end well otherwise."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "mode": mode, "point": point}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["killed"] or answer["code"] == 0
        return bool(answer["killed"])


@pytest.fixture(scope="module")
def dying() -> Iterator[Dying]:
    paths = [HERE, HERE.parents[1], HERE.parents[1] / "unit" / "connector"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    with subprocess.Popen(
        [sys.executable, str(HERE / "private_dying.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        yield Dying(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


@dataclass(frozen=True)
class Record:
    """What is on the hospital's disk."""

    held: Holding | None
    uploads: tuple[bytes, ...]
    products: tuple[bytes, ...]
    told_seeds: tuple[str, ...]
    kept_seeds: tuple[str, ...]


async def read(folder: Path, mode: str) -> Record:
    """The ledger, opened as the connector opens it (and so checked), and the files."""
    world = Platform(folder, mode)
    app = await world.build()
    await app.desk.charges.ledger.open(app.db)
    held = (await world.ledger()).of_run(RUN, "training")
    async with app.db.reading("seeds") as tx:
        kept = [row.seed.hex() for row in await tx.rows(sa.select(noise_seed.c.seed))]
    await app.db.close()
    spool = folder / "spool"
    told = (folder / SEEDS).read_text().split() if (folder / SEEDS).exists() else []
    return Record(
        held[0] if held else None,
        tuple(path.read_bytes() for path in sorted((spool / "uploads").glob("*.bin"))),
        tuple(path.read_bytes() for path in sorted((spool / "products").glob("*.vector"))),
        tuple(told),
        tuple(kept),
    )


CHARGED_EARLIER = ("begin_private_work", "training", "upload_saved")
"""Where local training is charged otherwise than the rest."""
LOCAL_POINTS = [point for point in POINTS if point.startswith(CHARGED_EARLIER)]


@pytest.mark.parametrize(
    ("mode", "point"),
    [*(("distributed", point) for point in POINTS), *(("local", point) for point in LOCAL_POINTS)],
)
async def test_one_window_is_charged_once_and_has_one_noise(
    point: str, mode: str, dying: Dying, tmp_path: Path
) -> None:
    assert dying(tmp_path, mode, point)
    between = await read(tmp_path, mode)
    if between.held is not None:
        assert (between.held.reserved + between.held.committed, between.held.releases) == (ROUNDS, 0)
        assert between.held.committed <= 1
    if not between.products and between.told_seeds:
        assert set(between.kept_seeds) == set(between.told_seeds)
    assert not dying(tmp_path, mode)
    after = await read(tmp_path, mode)
    assert after.held is not None
    assert (after.held.reserved, after.held.committed, dict(after.held.bound)) == (ROUNDS - 1, 1, {WINDOW: 0})
    assert len(set(after.told_seeds)) == 1
    assert after.kept_seeds == ()
    assert len(after.uploads) == 1
    assert set(between.products) <= set(after.products)
    assert len(after.products) == 1
