"""`kill -9` at every point of every operation: it happened whole or not at all, and doing it again is doing it once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_dying import MEMBERS, W1, hospital
from ledger_stage import Q1, run_id

from cohortium_kit.tables import outbox
from cohortium_messages.ledger import LedgerEvent, LedgerRecorded
from cohortium_privacy.ledger_state import Head, LedgerState

HERE = Path(__file__).parent
STORIES = {
    "sums": ("reserve", "upload", "refund", "close"),
    "local": ("reserve", "train", "upload", "close", "refund"),
    "lost rows": ("reserve", "freeze"),
}


@dataclass
class Dying:
    process: "subprocess.Popen[str]"

    def __call__(self, folder: Path, operation: str, point: int | None = None) -> bool:
        """Do it; whether it was killed. It must end well otherwise."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"folder": str(folder), "operation": operation, "point": point}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["killed"] or answer["code"] == 0
        return bool(answer["killed"])


@pytest.fixture(scope="module")
def dying() -> Iterator[Dying]:
    paths = [HERE, HERE.parents[1] / "unit" / "ledger", HERE.parents[1] / "unit" / "protocol"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    with subprocess.Popen(
        [sys.executable, str(HERE / "ledger_dying.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as process:
        yield Dying(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


@dataclass(frozen=True)
class Record:
    """What a folder holds: the checked state, and how many messages are to leave."""

    state: LedgerState
    messages: int

    def content(self) -> LedgerState:
        """Without the hashes, in which the time of writing is."""
        return replace(self.state, head=Head(self.state.head.sequence))


async def read(folder: Path) -> Record:
    """Opened as the connector opens it: raises if the chain, or its anchor, is not whole."""
    site = hospital(folder)
    await site.start()
    kinds = [LedgerEvent.type_name, LedgerRecorded.type_name]
    async with site.db.reading("messages") as tx:
        count = await tx.scalar(sa.select(sa.func.count()).select_from(outbox).where(outbox.c.type.in_(kinds)))
    state = await site.state()
    await site.stop()
    return Record(state, int(count))


@pytest.mark.parametrize("story", STORIES)
async def test_an_operation_happens_whole_or_not_at_all(story: str, dying: Dying, tmp_path: Path) -> None:
    before_folder = tmp_path / "0"
    site = hospital(before_folder)
    await site.start()
    await site.stop()
    for number, operation in enumerate(STORIES[story], start=1):
        after_folder = tmp_path / str(number)
        shutil.copytree(before_folder, after_folder)
        assert not dying(after_folder, operation)
        before, after = await read(before_folder), await read(after_folder)
        assert not dying(after_folder, operation)  # told twice
        assert await read(after_folder) == after
        assert before.content() != after.content()
        ends = await _kill_everywhere(dying, operation, before_folder, before, after)
        assert ends == {"before", "after"}, operation
        before_folder = after_folder


async def _kill_everywhere(dying: Dying, operation: str, folder: Path, before: Record, after: Record) -> set[str]:
    """Kill it at its first point, at its second, and so on until it has no more. Returns what was on record then."""
    ends = set()
    trial = folder.with_name("trial")
    for point in range(100):
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(folder, trial)
        if not dying(trial, operation, point):
            assert point > 5
            return ends
        found = await read(trial)
        assert found.content() in (before.content(), after.content())
        same = before if found.content() == before.content() else after
        assert found.messages == same.messages
        ends.add("before" if same is before else "after")
        assert not dying(trial, operation)
        again = await read(trial)
        assert (again.content(), again.messages) == (after.content(), after.messages)
    raise AssertionError("the operation never ends")


async def test_what_a_dead_process_charged_is_charged(dying: Dying, tmp_path: Path) -> None:
    """The numbers behind it: one use of three, one window, after many deaths."""
    dying(tmp_path, "reserve")
    deaths = sum(dying(tmp_path, "upload", point) for point in range(12))
    assert deaths >= 5
    (held,) = [one for one in (await read(tmp_path)).state.of_run(run_id(1)) if one.plan.block == Q1]
    assert (held.committed, held.reserved, dict(held.bound)) == (1, 2, {W1: 0})
    assert MEMBERS.view.window_id == W1
    deaths = sum(dying(tmp_path, "refund", point) for point in range(12))
    assert deaths >= 5
    (held,) = [one for one in (await read(tmp_path)).state.of_run(run_id(1)) if one.plan.block == Q1]
    assert (held.committed, held.reserved, held.releases) == (0, 3, 1)
