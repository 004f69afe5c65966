"""The model card: what is known of a model by record, and the places that people have to fill in."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cohortium_aggregator.store.runs import Evaluated, ModelVersion, Run
from cohortium_aggregator.store.windows import LastSum

TO_FILL = "TO BE COMPLETED by the study's investigators before any use."


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
        "training": {
            "mode": study.federation.mode,
            "rounds": versions - 1,
            "server": study.federation.server.model_dump(mode="json"),
            "training_rows": version.preprocessing.training_rows,
            "sites": version.preprocessing.sites,
        },
        "inputs": list(version.preprocessing.input_names()),
        "label": study.dataset.label.name,
        "metrics": [
            {
                "round": one.round,
                **one.result.model_dump(mode="json", exclude={"model"}),
                "version": one.result.model.version,
            }
            for one in evaluations
        ],
        "secure_sum": None if sums is None else sums.facts(),
        "privacy": {
            "mode": study.privacy.mode,
            "statement": "No formal privacy guarantee: hospitals saw only sums of each other's updates; "
            "what the published model itself reveals about its training data is not bounded.",
        },
        "intended_use": TO_FILL,
        "out_of_scope_use": TO_FILL,
        "limitations": TO_FILL,
        "ethical_considerations": TO_FILL,
        "contact": TO_FILL,
    }


def card_text(facts: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    model, training = facts["model"], facts["training"]
    lines = [
        f"# Model card: {facts['study']}",
        "",
        f"Purpose: {facts['purpose']}",
        "",
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
        "",
        "## Privacy",
        "",
        str(facts["privacy"]["statement"]),
        "",
        "## Evaluation on the sites' test rows",
        "",
        *_metric_lines(facts["metrics"]),
        "",
    ]
    for title, field in (
        ("Intended use", "intended_use"),
        ("Use out of scope", "out_of_scope_use"),
        ("Limitations", "limitations"),
        ("Ethical considerations", "ethical_considerations"),
        ("Contact", "contact"),
    ):
        lines += [f"## {title}", "", str(facts[field]), ""]
    return "\n".join(lines)


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
