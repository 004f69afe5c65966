"""A strict session of a connector whose training process is the real one, with LightGBM in it. No broker is needed."""

import csv
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from connector_strict import TREES, StrictPlay, TreesWorld

from cohortium_connector.training.runner import TrainingRunner
from cohortium_messages.secure_sum import SessionLeft
from cohortium_messages.study import Study
from cohortium_protocol.strict.collector import StepResult
from cohortium_protocol.strict.frames import StepOpener
from cohortium_protocol.strict.session import SiteSession
from cohortium_protocol.strict.steps import Kind

pytest.importorskip("lightgbm")
FEATURES = 8
ROWS = 600


class LightgbmWorld(TreesWorld):
    """The played federation; the connector trains on a table."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        features = [{"name": f"f{number}", "type": "float", "range": [0, 1]} for number in range(FEATURES)]
        self.study = Study.model_validate({**TREES, "dataset": {**TREES["dataset"], "features": features}})
        self.processes: list[TrainingRunner] = []

    def make_runner(self, work_dir: Path) -> TrainingRunner:  # type: ignore[override]
        self.processes.append(TrainingRunner(work_dir=work_dir, isolation="warn"))
        return self.processes[-1]

    def write_table(self) -> Path:
        rng, path = np.random.default_rng(5), self.folder / "table.csv"
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow([*(f"f{number}" for number in range(FEATURES)), "disease"])
            for row in rng.random((ROWS, FEATURES)):
                table.writerow([*row, int(row.mean() + rng.normal(0, 0.1) > 0.5)])
        return path


class EmptyHouses(StrictPlay):
    """The other hospitals have no rows: they add zeros, and found what the connector found."""

    def _asked_by(
        self, session: SiteSession, kind: Kind, length: int, mine: list[bytes], opener: StepOpener, number: int
    ) -> tuple[bytes, ...]:
        content = b"".join(opener.open(frame).content for frame in mine)
        if kind is Kind.SUM:
            return session.sum(np.zeros(length // 8 - 4, dtype=np.int64))
        return session.relay(content) if kind is Kind.RELAY else session.agree(content)

    async def until_agreed(self, letter: bytes) -> StepResult:
        """Step until the sites agree on this kind of thing."""
        while True:
            result = await self.step()
            if result.agreed[:1] == letter:
                return result


@pytest.fixture
async def trees(tmp_path: Path) -> AsyncIterator[LightgbmWorld]:
    world = LightgbmWorld(tmp_path)
    await world.declare()
    async with world.running(datasets={"*": {"path": str(world.write_table())}}):
        await world.join()
        yield world


async def test_a_session_with_lightgbm_is_paused_and_goes_on_from_its_journal(trees: LightgbmWorld) -> None:
    """The second session asks for no sum of the first tree again, and ends with the trees of an undisturbed one."""
    rows = {"total_rows": 4 * ROWS}
    base = trees.model(0)[0]
    whole = await EmptyHouses(trees, trees.training_params(base, rows), trees.manifest()).begin()
    grown = [(await whole.until_agreed(b"T")).agreed for _ in range(3)]
    await whole.until_agreed(b"E")
    await whole.close("PAUSED", "SESSION_LOST")
    await trees.reaches(whole.window_id, "SPENT")

    first = EmptyHouses(trees, trees.training_params(base, rows), trees.manifest())
    await trees.open(first.params)
    await first.fix_roster()
    tree = await first.until_agreed(b"T")
    await first.steps(3)
    await first.close("PAUSED", "SITE_SILENT")
    await trees.reaches(first.window_id, "SPENT")

    spec = {**rows, "trees_done": 1, "chain": tree.chain_after}
    second = EmptyHouses(trees, trees.training_params(base, spec), trees.manifest())
    await trees.open(second.params)
    await second.fix_roster()
    again = [tree.agreed, *[(await second.until_agreed(b"T")).agreed for _ in range(2)]]
    await second.until_agreed(b"E")
    await second.close()
    await trees.reaches(second.window_id, "DONE")

    assert again == grown
    assert b"split_feature=" in grown[0]
    assert second.collector.sums < whole.collector.sums
    for play in (whole, first, second):
        play.one_content_each()
    assert trees.all(SessionLeft) == []
    assert len([process for process in trees.processes if process.pid is not None]) == 1


async def test_a_table_that_changes_while_a_session_waits_for_its_roster_is_refused(trees: LightgbmWorld) -> None:
    base = trees.model(0)[0]
    play = EmptyHouses(trees, trees.training_params(base, {"total_rows": 4 * ROWS}), trees.manifest())
    await trees.open(play.params)
    await trees.give_model(0)
    await trees.reaches(play.window_id, "READY_SENT")
    table = trees.folder / "table.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    await play.fix_roster()
    left = await trees.expect(SessionLeft)
    assert (left.window_id, left.code) == (play.window_id, "DATA_CHANGED")
