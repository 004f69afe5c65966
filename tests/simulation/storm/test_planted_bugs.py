"""The storm finds each of five planted mistakes, and names it, within few seeds.

The budget is in seeds, whatever else the machine does: fifteen take one core half a minute. Each search begins at a
seed that found its mistake when this was written, so that it is over in seconds; after a change of the product it may
take a few more. From seed 0 all are found as well, within the same budget (`long`).
"""

import plants
import pytest

from cohortium_sim.storm.command import storm
from cohortium_sim.storm.ground import Ground
from cohortium_sim.storm.operations import Action

MOST_SEEDS = 15


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("plant", "good", "aim", "says"),
    [
        (plants.double_count, 6, None, "(R6)|was counted in windows|finished vectors"),
        (plants.late_update, 1, None, "was changed after it was shown"),
        (plants.lost_reply, 2, None, "nothing was said for"),
        (plants.withdrawn_site, 2, "withdraw", "withdrew, and then sent"),
        (plants.reused_mask, 1, None, "serves in two windows: its masks can be taken off"),
    ],
    ids=["double-count", "late-update", "lost-reply", "withdrawn-site", "reused-mask"],
)
@pytest.mark.parametrize("from_good", [True, pytest.param(False, marks=pytest.mark.long)], ids=["near", "from-0"])
def test_a_planted_mistake_is_found(
    plant: plants.Plant,
    good: int,
    aim: Action | None,
    says: str,
    from_good: bool,
    ground: Ground,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    first = good if from_good else 0
    for outcome in storm(range(first, first + MOST_SEEDS), ground, aim):
        if outcome.failed:
            assert any(part in outcome.violations[0] for part in says.split("|")), outcome.violations
            return
    pytest.fail(f"not found in {MOST_SEEDS} seeds from {first}")
