"""The model card: what is known of a model by record, and the places that people have to fill in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cohortium_aggregator.store.runs import Evaluated, ModelVersion, Run
from cohortium_aggregator.store.trainings import Training
from cohortium_aggregator.store.windows import LastSum
from cohortium_messages.privacy import PrivacyStatement
from cohortium_messages.runs import FeatureImportance
from cohortium_protocol.trees.binning import Binning

TO_FILL = "TO BE COMPLETED by the study's investigators before any use."
PRIVACY = (
    "No formal privacy guarantee: nobody saw more of a hospital's update than the sum over the cohort, "
    "but what the published model itself reveals about its training data is not bounded."
)
RELEASE_NOTE = (
    "A candidate, unless release.dsse.json lies beside it and `cohortium model check` accepts both. What a test of "
    "this model's privacy found, where there was one, is signed in that file."
)
IN_CLEAR = (
    " While LightGBM grew the trees, the splits that it found on opened sums, and the trees themselves, were seen by "
    "the aggregator and by every site of the cohort."
)
COHORT_CHANGED = (
    " The cohort changed while the model was grown: whoever saw sums of the same rows before and after can compute "
    "the part of the sites in which the cohorts differ."
)
METRICS = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "brier": "Brier",
    "log_loss": "Log loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}
MOST_FEATURES = 30
FOR_PEOPLE = (
    ("intended_use", "Intended use"),
    ("out_of_scope_use", "Use out of scope"),
    ("limitations", "Limitations"),
    ("ethical_considerations", "Ethical considerations"),
    ("contact", "Contact"),
)


@dataclass(frozen=True, slots=True)
class Papers:
    """What a bundle is made from."""

    run: Run
    version: ModelVersion
    versions: int
    evaluations: Sequence[Evaluated]
    sums: LastSum | None
    training: Training | None


def card_facts(papers: Papers, promised: PrivacyStatement) -> dict[str, Any]:
    """The card as data. `promised`: what the study's privacy block comes to."""
    run, version = papers.run, papers.version
    study, rules = run.study, version.preprocessing
    sums = papers.sums.facts() if papers.sums is not None else None
    facts = {
        "format": "cohortium/card/1",
        "study": study.name,
        "study_digest": study.digest().hex(),
        "run": run.run_id,
        "purpose": study.purpose,
        "made_at": datetime.fromtimestamp(version.made_at, UTC).isoformat(),
        "model": {
            "version": version.version,
            "model_hash": version.model_hash.hex(),
            "parameters": version.parameters,
            "parameters_sha256": version.parameters_sha256.hex(),
            "recipe": study.recipe.model_dump(mode="json"),
        },
        "training": _training_facts(papers),
        "inputs": list(rules.feature_names() if isinstance(rules, Binning) else rules.input_names()),
        "label": study.dataset.label.name,
        "metrics": [_metric_facts(one) for one in papers.evaluations],
        "secure_sum": sums if papers.training is None else papers.training.facts(),
        "privacy": promised.model_dump(mode="json") | {"statement": _statement(papers.training, promised)},
        "release": RELEASE_NOTE,
        **{field: TO_FILL for field, _ in FOR_PEOPLE},
    }
    if version.trees is not None:
        facts["trees"] = _tree_facts(papers)
    return facts


def _statement(training: Training | None, promised: PrivacyStatement) -> str:
    if promised.mode != "none":
        return " ".join((*promised.sentences, f"It relies on: {'; '.join(promised.relies_on)}."))
    if training is None:
        return PRIVACY
    return PRIVACY + IN_CLEAR + (COHORT_CHANGED if training.cohort_changes else "")


def _tree_facts(papers: Papers) -> dict[str, Any]:
    """Of a model of trees: what was minimised, how many rounds, and how much each feature is used."""
    study, version = papers.run.study, papers.version
    return {
        "objective": study.objective,
        "rounds": version.trees,
        "trees_per_round": study.trees_per_round,
        "features": len(study.dataset.features),
        "importance": [one.model_dump(mode="json") for one in _importance(papers)],
    }


def _importance(papers: Papers) -> tuple[FeatureImportance, ...]:
    """As the last evaluation of this version found it, the most used feature first."""
    of_version = [one.result for one in papers.evaluations if one.result.model == papers.version.ref]
    found = of_version[-1].importance if of_version else None
    return tuple(sorted(found or (), key=lambda one: (-(one.shap or 0.0), -one.gain, one.name)))


def _training_facts(papers: Papers) -> dict[str, Any]:
    federation, version = papers.run.study.federation, papers.version
    return {
        "mode": federation.mode,
        "rounds": papers.versions - 1 if version.trees is None else version.trees,
        "server": federation.server.model_dump(mode="json"),
        "training_rows": version.preprocessing.training_rows,
        "sites": version.preprocessing.sites,
    }


def _metric_facts(one: Evaluated) -> dict[str, Any]:
    found = one.result.model_dump(mode="json", exclude={"model", "importance"})
    return {"round": one.round, "version": one.result.model.version, **found}


def card_text(facts: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    lines = [f"# Model card: {facts['study']}", "", f"Purpose: {facts['purpose']}", "", *_fact_lines(facts), ""]
    lines += ["## Privacy", "", str(facts["privacy"]["statement"]), "", *_privacy_lines(facts["privacy"])]
    lines += ["## Evaluation on the sites' test rows", "", *_metric_lines(facts["metrics"]), ""]
    lines += _importance_lines(facts["trees"]["importance"] if "trees" in facts else ())
    for field, title in FOR_PEOPLE:
        lines += [f"## {title}", "", str(facts[field]), ""]
    return "\n".join(lines)


def _fact_lines(facts: Mapping[str, Any]) -> list[str]:
    model, training = facts["model"], facts["training"]
    counted = facts["privacy"]["mode"] == "none"
    return [
        "| Fact | Value |",
        "| --- | --- |",
        f"| Model version | {model['version']} |",
        f"| Model hash | `{model['model_hash']}` |",
        f"| Recipe | {model['recipe']['trainer']} |",
        f"| Parameters | {model['parameters']} |",
        f"| Sites | {training['sites']} |",
        f"| {'Training rows (all sites)' if counted else 'Patients (public number)'} | {training['training_rows']} |",
        _growth_line(facts),
        f"| Run | `{facts['run']}` |",
        f"| Study digest | `{facts['study_digest']}` |",
        f"| Release | {facts['release']} |",
        f"| Made | {facts['made_at']} |",
        *_secure_sum_lines(facts["secure_sum"]),
    ]


def _privacy_lines(privacy: Mapping[str, Any]) -> list[str]:
    """The numbers of a promise; none where there is none."""
    if privacy["mode"] == "none":
        return []
    spent = f"{privacy['epsilon_rdp']:.4g} by Rényi, {privacy['epsilon_pld']:.4g} by privacy-loss distributions"
    noise = f"{privacy['noise_multiplier']:.4g}, sampling rate {privacy['sampling_rate']:g}, {privacy['steps']} steps"
    return [
        "| Promise | Value |",
        "| --- | --- |",
        f"| Unit | one {privacy['unit']} |",
        f"| ε | at most {privacy['epsilon']:g}; the plan costs {spent} |",
        f"| δ | {privacy['delta']:g} |",
        f"| Mechanism | {privacy['mechanism']} |",
        f"| Noise multiplier | {noise} |",
        "",
    ]


def _growth_line(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    if (trees := facts.get("trees")) is None:
        return f"| Updates applied | {training['rounds']} ({training['mode']}, {training['server']['optimizer']}) |"
    return f"| Boosting rounds | {trees['rounds']} of {trees['trees_per_round']} trees ({trees['objective']}) |"


def _secure_sum_lines(sums: Mapping[str, Any] | None) -> list[str]:
    if sums is None:
        return []
    if "sessions" in sums:
        return [
            f"| Secure sums | {sums['sums']} in {sums['sessions']} sessions, n = {sums['n']} of {sums['n']} |",
            f"| Changes of the cohort | {sums['cohort_changes']} |",
        ]
    return [
        f"| Last secure sum | n = {sums['n']}, t = {sums['t']}, c = {sums['c']}, k_min = {sums['k_min']} |",
        f"| Ring | {sums['ring_bits']} bits |",
    ]


def _metric_lines(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with a column for each metric that some round has."""
    if not metrics:
        return ["No evaluation was made."]
    shown = [name for name in METRICS if any(one[name] is not None for one in metrics)]
    noisy = [one["count_noise"] for one in metrics if one["count_noise"] is not None]
    said = [f"From counts with noise of a standard deviation of {max(noisy):.4g} rows each.", ""] if noisy else []
    lines = [
        *said,
        _row("Round", "Version", "Rows", *(METRICS[name] for name in shown)),
        _row(*["---"] * (3 + len(shown))),
    ]
    for one in metrics:
        values = ["–" if one[name] is None else f"{one[name]:.4f}" for name in shown]
        lines.append(_row(one["round"], one["version"], one["rows"], *values))
    return lines


def _importance_lines(importance: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The features that the trees use most."""
    if not importance:
        return
    yield from ("## What the trees use", "", _row("Feature", "Mean of absolute SHAP", "Gain", "Splits"))
    yield _row(*["---"] * 4)
    for one in importance[:MOST_FEATURES]:
        shap = "–" if one["shap"] is None else f"{one['shap']:.4g}"
        yield _row(one["name"], shap, f"{one['gain']:.4g}", one["splits"])
    yield ""


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
