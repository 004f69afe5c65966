"""Site mode, which needs fifty hospitals: so many, simulated. What is released has the noise that was promised."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.integration.simulation.watched_training import Made, once_each, read_made, watch_training
from tests.studies.fifty_hospitals import write_hospitals

from cohortium_connector.training import private_jobs
from cohortium_connector.training.base import Examples, Trained
from cohortium_connector.training.data import read_table
from cohortium_connector.training.jobs import DataSource, PrivateWork, TrainDone, TrainLocally
from cohortium_connector.training.torch_ import TorchTrainer
from cohortium_connector.training.work import Desk, task_seed
from cohortium_messages.privacy import SitePrivacy
from cohortium_messages.secure_sum import NoiseSpec
from cohortium_messages.study import MlpRecipe, Study
from cohortium_messages.study_file import parse_study
from cohortium_privacy.lattice import Lattice
from cohortium_privacy.public_inputs import public_rules
from cohortium_privacy.study_plans import plan_findings, statement_of
from cohortium_privacy.windows import noise_for, plan_for, update_scale
from cohortium_protocol.metrics import exact_auc
from cohortium_protocol.parameters import from_safetensors, initial_parameters
from cohortium_protocol.statistics import Preprocessing, design_matrix
from cohortium_sim.plan import Plan, SiteTable, check_plan
from cohortium_sim.simulate import run_plan

HOSPITALS, LEAST, COLLUDING = 50, 40, 8
STUDY = Path(__file__).parents[2] / "studies" / "fifty-hospitals.yaml"

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1800)]


def test_site_mode_without_its_messages(tmp_path: Path) -> None:
    """The training and the sums alone: quick, and the same checks."""
    study = parse_study(STUDY.read_text(encoding="utf-8"), file=STUDY.name, also=plan_findings)
    sites = tuple(SiteTable(name, path) for name, path in write_hospitals(tmp_path / "sites", HOSPITALS).items())
    made: dict[tuple[int, str], Made] = {}
    model = initial_parameters(trainer_of(study).layout, study.federation.seed)
    for round_ in range(study.rounds):
        of_round = [trained(study, site, tmp_path, model, (round_, index)) for index, site in enumerate(sites)]
        total = np.sum([one.words for one in of_round], axis=0)
        model = model + (total * update_scale(study, noise_of(of_round[0]), HOSPITALS)).astype(np.float32)
        made |= {(round_, one.hospital): one for one in of_round}
    np.testing.assert_array_equal(check_rounds(study, made), model)
    check_learning(study, sites, model)


def trained(study: Study, site: SiteTable, folder: Path, model: np.ndarray, place: tuple[int, int]) -> Made:
    """One hospital's job, done as its training process does it."""
    (folder / "base.model").write_bytes(model.astype("<f4").tobytes())
    (folder / "rules.json").write_bytes(rules_of(study).canonical())
    noise = noise_for(study, "update", plan_for(study, HOSPITALS, LEAST, COLLUDING), LEAST, COLLUDING)
    assert noise is not None
    job = TrainLocally(
        study=study,
        source=DataSource(path=str(site.path)),
        preprocessing_path=str(folder / "rules.json"),
        model_path=str(folder / "base.model"),
        update_path=str(folder / "update.vector"),
        round=place[0],
        site_index=place[1],
        private=PrivateWork(noise=noise, seed=bytes([7, *place]) + bytes(29), sites=HOSPITALS),
    )
    answer = Desk(isolated=False).answer(job)
    assert isinstance(answer, TrainDone), answer
    return read_made(job)


@pytest.mark.long
async def test_site_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = parse_study(STUDY.read_text(encoding="utf-8"), file=STUDY.name, also=plan_findings)
    sites = tuple(SiteTable(name, path) for name, path in write_hospitals(tmp_path / "sites", HOSPITALS).items())
    seen = watch_training(monkeypatch)
    plan = check_plan(Plan(study=study, sites=sites, out=tmp_path / "out", timeout_s=1500))
    outcome = await run_plan(plan, live=False)
    assert (outcome.surprises, outcome.result.state) == ((), "FINISHED")
    check_statement(plan)
    made = once_each(seen)
    assert {round_ for round_, _ in made} == set(range(study.rounds))
    model = check_rounds(study, made)
    exported = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    np.testing.assert_array_equal(from_safetensors(trainer_of(study).layout, exported), model)


def check_statement(plan: Plan) -> None:
    """Result, card and log name the hospital as what is protected."""
    promised = statement_of(plan.study)
    assert (promised.mode, promised.unit, promised.epsilon, promised.steps) == ("site", "hospital", 8.0, 2)
    said = json.loads((plan.out / "result.json").read_text(encoding="utf-8"))["privacy"]
    card = json.loads((plan.out / "model" / "card.json").read_text(encoding="utf-8"))["privacy"]
    for document in (said, card):
        assert {name: document[name] for name in promised.model_dump()} == promised.model_dump(mode="json")
    logged = "\n".join(file.read_text(encoding="utf-8") for file in sorted((plan.out / "audit").rglob("*.json*")))
    assert logged.count('"reason":"PLANNED"') == HOSPITALS, "training alone: nothing is evaluated in this mode"
    assert promised.sentences[0] in logged


def check_rounds(study: Study, made: dict[tuple[int, str], Made]) -> np.ndarray:
    """Each model is the one before, moved by the mean of exactly what the hospitals uploaded; and what was put on the
    clipped updates is the noise of the plan. Returns the last model."""
    trainer, lattice = trainer_of(study), lattice_of(study)
    model, noises = initial_parameters(trainer.layout, study.federation.seed), []
    for round_ in range(study.rounds):
        of_round = [one for (number, _), one in made.items() if number == round_]
        assert len(of_round) == HOSPITALS
        for one in of_round:
            np.testing.assert_array_equal(one.base, model)
        noise = noise_of(of_round[0])
        total = np.sum([one.words for one in of_round], axis=0)
        clean = [private_jobs._clipped(lattice, one.base, again(study, one)) for one in of_round]
        assert max(np.linalg.norm(words) for words in clean) <= lattice.sensitivity
        noises.append((total - np.sum(clean, axis=0)).astype(np.float64))
        mean = (total * update_scale(study, noise, HOSPITALS)).astype(np.float32)
        model = model + mean
    check_noise(study, np.concatenate(noises), noise.site_sigma)
    return model


def check_noise(study: Study, noise: np.ndarray, site_sigma: float) -> None:
    """The shares of the fewest hospitals that a sum can have, but for those that may collude, are the plan's noise; in
    the sums of all 50 there is as much as 50 shares have."""
    plan = plan_for(study, HOSPITALS, LEAST, COLLUDING)
    assert plan is not None
    promised = plan.noise_multiplier * lattice_of(study).sensitivity
    assert site_sigma * math.sqrt(LEAST - COLLUDING) >= promised
    expected = site_sigma * math.sqrt(HOSPITALS)
    spread = 4 / math.sqrt(2 * len(noise))
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(expected, rel=spread)
    assert abs(np.mean(noise)) < 4 * expected / math.sqrt(len(noise))


def check_learning(study: Study, sites: tuple[SiteTable, ...], model: np.ndarray) -> None:
    """With all that noise, after two rounds: better than a coin. Only where the noise is the same each time: a whole
    federation draws it anew, and some draws drown what was learnt."""
    tables = [read_table(study, DataSource(path=str(site.path))).test for site in sites]
    inputs = np.concatenate([design_matrix(rules_of(study), rows) for rows in tables])
    scores = trainer_of(study).scores(model, inputs)
    assert exact_auc(scores, np.concatenate([rows.labels for rows in tables])) > 0.55


def again(study: Study, made: Made) -> Trained:
    """The hospital's training once more, without clip and noise."""
    train = read_table(study, made.job.source).train
    examples = Examples(design_matrix(rules_of(study), train), train.labels.astype(np.float32))
    seed = task_seed(study.federation.seed, made.job.round, made.job.site_index)
    return trainer_of(study).train(made.base, examples, epochs=study.recipe.local.epochs, seed=seed)


def noise_of(made: Made) -> NoiseSpec:
    assert made.job.private is not None
    return made.job.private.noise


def trainer_of(study: Study) -> TorchTrainer:
    assert isinstance(study.recipe, MlpRecipe)
    return TorchTrainer(study.recipe, rules_of(study).inputs, study.federation.proximal_mu)


def lattice_of(study: Study) -> Lattice:
    assert isinstance(study.privacy, SitePrivacy)
    return Lattice(study.privacy.clip, trainer_of(study).layout.size)


def rules_of(study: Study) -> Preprocessing:
    rules = public_rules(study, HOSPITALS)
    assert isinstance(rules, Preprocessing)
    return rules
