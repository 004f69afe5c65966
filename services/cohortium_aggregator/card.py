"""The model card: what is known of a model by record, and the places that people have to fill in."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cohortium_aggregator.store.runs import Evaluated, ModelVersion, Run
from cohortium_aggregator.store.windows import LastSum

TO_FILL = "TO BE COMPLETED by the study's investigators before any use."
PRIVACY = (
    "No formal privacy guarantee: nobody saw more of a hospital's update than the sum over the cohort, "
    "but what the published model itself reveals about its training data is not bounded."
)
FOR_PEOPLE = (
    ("intended_use", "Intended use"),
    ("out_of_scope_use", "Use out of scope"),
    ("limitations", "Limitations"),
    ("ethical_considerations", "Ethical considerations"),
    ("contact", "Contact"),
)


def card_facts(
    run: Run, version: ModelVersion, evaluations: Sequence[Evaluated], sums: LastSum | None, versions: int
) -> dict[str, Any]:
    """The card as data."""
    study = run.study
    return {
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
        "training": _training_facts(run, version, versions),
        "inputs": list(version.preprocessing.input_names()),
        "label": study.dataset.label.name,
        "metrics": [_metric_facts(one) for one in evaluations],
        "secure_sum": None if sums is None else sums.facts(),
        "privacy": {"mode": study.privacy.mode, "statement": PRIVACY},
        **{field: TO_FILL for field, _ in FOR_PEOPLE},
    }


def _training_facts(run: Run, version: ModelVersion, versions: int) -> dict[str, Any]:
    federation = run.study.federation
    return {
        "mode": federation.mode,
        "rounds": versions - 1,
        "server": federation.server.model_dump(mode="json"),
        "training_rows": version.preprocessing.training_rows,
        "sites": version.preprocessing.sites,
    }


def _metric_facts(one: Evaluated) -> dict[str, Any]:
    found = one.result.model_dump(mode="json", exclude={"model"})
    return {"round": one.round, "version": one.result.model.version, **found}


def card_text(facts: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    lines = [f"# Model card: {facts['study']}", "", f"Purpose: {facts['purpose']}", "", *_fact_lines(facts), ""]
    lines += ["## Privacy", "", str(facts["privacy"]["statement"]), ""]
    lines += ["## Evaluation on the sites' test rows", "", *_metric_lines(facts["metrics"]), ""]
    for field, title in FOR_PEOPLE:
        lines += [f"## {title}", "", str(facts[field]), ""]
    return "\n".join(lines)


def _fact_lines(facts: Mapping[str, Any]) -> list[str]:
    model, training = facts["model"], facts["training"]
    return [
        "| Fact | Value |",
        "| --- | --- |",
        f"| Model version | {model['version']} |",
        f"| Model hash | `{model['model_hash']}` |",
        f"| Recipe | {model['recipe']['trainer']} |",
        f"| Parameters | {model['parameters']} |",
        f"| Sites | {training['sites']} |",
        f"| Training rows (all sites) | {training['training_rows']} |",
        f"| Updates applied | {training['rounds']} ({training['mode']}, {training['server']['optimizer']}) |",
        f"| Run | `{facts['run']}` |",
        f"| Study digest | `{facts['study_digest']}` |",
        f"| Made | {facts['made_at']} |",
        *_secure_sum_lines(facts["secure_sum"]),
    ]


def _secure_sum_lines(sums: Mapping[str, Any] | None) -> list[str]:
    if sums is None:
        return []
    return [
        f"| Last secure sum | n = {sums['n']}, t = {sums['t']}, c = {sums['c']}, k_min = {sums['k_min']} |",
        f"| Ring | {sums['ring_bits']} bits |",
    ]


def _metric_lines(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    if not metrics:
        return ["No evaluation was made."]
    lines = ["| Round | Version | Rows | AUC | Accuracy | Brier |", "| --- | --- | --- | --- | --- | --- |"]
    for one in metrics:
        shown = ["–" if one[name] is None else f"{one[name]:.4f}" for name in ("auc", "accuracy", "brier")]
        lines.append(f"| {one['round']} | {one['version']} | {one['rows']} | {' | '.join(shown)} |")
    return lines
