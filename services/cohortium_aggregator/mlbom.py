"""The model's bill of materials: a CycloneDX 1.6 document whose subject is the model, with its model card.

For tools that keep inventories; everything in it is also in the card or the schema. The format is ECMA-424's.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from cohortium_aggregator.card import METRICS
from cohortium_messages.model_schema import ModelSchema
from cohortium_messages.study import NumberFeature

MLBOM: Final = "mlbom.cdx.json"
_SCHEMA: Final = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_MODEL, _DATA = "model", "training-data"
_FAMILIES: Final = {"lightgbm": "gradient-boosted decision trees", "lightgbm.random_trees": "random decision trees"}


def mlbom(facts: Mapping[str, Any], schema: ModelSchema, digests: Mapping[str, bytes]) -> dict[str, Any]:
    """`facts`: the card's; `digests`: SHA-256 of every other file of the bundle. The same bundle gives the same
    document."""
    model = facts["model"]
    files = [_file(name, digest) for name, digest in sorted(digests.items())]
    return {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid5(NAMESPACE_URL, f"urn:cohortium:{facts['run']}:{model['model_hash']}").urn,
        "version": 1,
        "metadata": {"timestamp": facts["made_at"], "component": _component(facts, schema)},
        "components": [_data(facts, schema), *files],
        "dependencies": [{"ref": _MODEL, "dependsOn": [_DATA, *(one["bom-ref"] for one in files)]}],
    }


def _component(facts: Mapping[str, Any], schema: ModelSchema) -> dict[str, Any]:
    model = facts["model"]
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": facts["study"],
        "version": str(model["version"]),
        "description": facts["purpose"],
        "modelCard": _card(facts, schema),
        "properties": _properties(
            {
                "run": facts["run"],
                "study_digest": facts["study_digest"],
                "model_hash": model["model_hash"],
                "parameters_sha256": model["parameters_sha256"],
                "sites": facts["training"]["sites"],
            }
        ),
    }


def _file(name: str, digest: bytes) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": digest.hex()}]
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes}


def _data(facts: Mapping[str, Any], schema: ModelSchema) -> dict[str, Any]:
    training = facts["training"]
    described = {
        "type": "dataset",
        "name": f"rows of {facts['study']} at {training['sites']} hospitals",
        "classification": "confidential",
        "description": f"{training['training_rows']} training rows; none of them left its hospital",
        "contents": {"properties": _properties({one.name: one.type for one in schema.inputs})},
    }
    return {"type": "data", "bom-ref": _DATA, "name": f"{facts['study']} training data", "data": [described]}


def _card(facts: Mapping[str, Any], schema: ModelSchema) -> dict[str, Any]:
    classifies = schema.output.kind in ("probability", "probabilities")
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "classification" if classifies else "regression",
            "architectureFamily": _FAMILIES.get(schema.trainer, "neural network"),
            "modelArchitecture": schema.trainer,
            "datasets": [{"ref": _DATA}],
            "inputs": [{"format": text} for text in _inputs(schema)],
            "outputs": [{"format": _output(schema)}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(facts))},
        "considerations": {
            "useCases": [facts["purpose"], facts["intended_use"]],
            "technicalLimitations": [facts["limitations"], facts["out_of_scope_use"]],
            "ethicalConsiderations": [
                {"name": facts["ethical_considerations"]},
                {"name": "Privacy of the patients whose rows were learnt from", "mitigationStrategy": _privacy(facts)},
            ],
        },
        "properties": _properties({f"privacy:{name}": facts["privacy"][name] for name in ("mode", "epsilon", "delta")}),
    }


def _privacy(facts: Mapping[str, Any]) -> str:
    return str(facts["privacy"]["statement"])


def _inputs(schema: ModelSchema) -> Iterator[str]:
    for one in schema.inputs:
        if isinstance(one, NumberFeature):
            unit = f" {one.unit}" if one.unit else ""
            yield f"{one.name}: {one.type} from {one.range[0]:g} to {one.range[1]:g}{unit}, missing: {one.missing}"
        else:
            yield f"{one.name}: one of {', '.join(one.levels)}; missing: {one.missing}"


def _output(schema: ModelSchema) -> str:
    output = schema.output
    match output.kind:
        case "probability":
            return f"probability that {schema.label.name} is {output.classes[1]}"
        case "probabilities":
            return f"probabilities that {schema.label.name} is {', '.join(output.classes)}"
    return f"{output.kind.replace('_', ' ')} of {schema.label.name}"


def _metrics(facts: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Those of the version that is bundled."""
    for one in facts["metrics"]:
        if one["version"] == facts["model"]["version"]:
            for name in METRICS:
                if one.get(name) is not None:
                    rows = f"test rows of all sites ({one['rows']})"
                    yield {"type": name, "value": f"{one[name]:.6g}", "slice": rows}


def _properties(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"cohortium:{name}", "value": str(value)} for name, value in facts.items() if value is not None]
