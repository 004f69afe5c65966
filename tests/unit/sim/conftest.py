"""A study and tables to plan simulations with."""

from pathlib import Path

import pytest

from cohortium_messages.study import Study
from cohortium_messages.study_file import parse_study
from cohortium_sim.plan import Plan, SiteTable

STUDY = """\
apiVersion: cohortium/study/1
governance: trial
name: small
purpose: Plan
dataset:
  features: [{name: age, type: float, range: [18, 110]}]
  label: {name: disease, type: binary}
  split: {test: 0.3}
recipe: {trainer: benchmark.noise, parameters: 100}
federation: {rounds: 5, min_sites: 3}
metrics: []
"""


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY)


@pytest.fixture
def plan(study: Study, tmp_path: Path) -> Plan:
    """Three sites, embedded parts, nothing special."""
    table = tmp_path / "table.csv"
    table.write_text("age,disease\n50,1\n")
    return Plan(study=study, sites=tuple(SiteTable(name, table) for name in ("a", "b", "c")), out=tmp_path / "out")
