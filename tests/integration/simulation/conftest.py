"""What makes these federations cheaper and changes nothing that they show."""

import pytest

from cohortium_sim import simulate


@pytest.fixture(autouse=True)
def shared_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training processes for the hospitals of one process, as with many hospitals: each that loads torch costs more
    than a round. Where every part is a process of its own, each hospital has its own."""
    monkeypatch.setattr(simulate, "OWN_TRAINERS", 0)
