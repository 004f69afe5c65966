"""The Helm chart: its values are checked by its schema everywhere, and rendered where there is a Helm.

`pip install helm-python-sdk kubernetes-validate` brings Helm 4 itself, as a library, and Kubernetes' schemas, without a
cluster; 350 MB, so they are no part of the set-up. A `helm` on the path does for the first.
"""

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from cohortium_messages.topology import SERVICE_NAMES

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "cohortium"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = Draft7Validator(json.loads((CHART / "values.schema.json").read_text(encoding="utf-8")))


def given() -> dict[str, Any]:
    """The chart's values with what an operator must add."""
    values = copy.deepcopy(VALUES)
    values["federation"] |= {"trust": '{"federation": "test"}', "governanceKeys": ["ab" * 32, "cd" * 32]}
    return values


def test_the_chart_and_the_project_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert f'version = "{chart["appVersion"]}"' in (CHART.parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def test_the_values_fit_once_the_operator_has_added_the_federation() -> None:
    assert list(SCHEMA.iter_errors(given())) == []
    assert {"/".join(map(str, error.path)) for error in SCHEMA.iter_errors(VALUES)} == {
        "federation/trust",
        "federation/governanceKeys",
    }


def test_every_service_is_in_the_chart() -> None:
    assert set(VALUES["services"]) == set(SERVICE_NAMES)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("federation", "governanceKeys"), ["not a key"]),
        (("federation", "governanceThreshold"), 0),
        (("image", "digest"), "sha256:short"),
        (("services", "connector"), {"secret": "x"}),
        (("network", "broker"), {"port": 5672, "to": []}),
        (("storage", "accessMode"), "ReadOnlyMany"),
        (("surprise",), True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_value_is_refused(path: tuple[str, ...], value: Any) -> None:
    values = given()
    place = values
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert list(SCHEMA.iter_errors(values)) != []


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    helm = shutil.which("helm")
    if helm is None:
        library = pytest.importorskip("helm_python", reason="helm is not installed, nor helm-python-sdk")
        with library.Chart.load(CHART) as chart:
            files = chart.render(values=given(), name="test", namespace="cohortium")
        texts = [text for name, text in files.items() if name.endswith(".yaml")]
        return [document for text in texts for document in yaml.safe_load_all(text) if document]
    file = tmp_path_factory.mktemp("chart") / "values.yaml"
    file.write_text(yaml.safe_dump(given()), encoding="utf-8")
    command = [helm, "template", "test", str(CHART), "--namespace", "cohortium", "--values", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def test_helm_finds_nothing_to_say_but_that_there_is_no_icon() -> None:
    library = pytest.importorskip("helm_python")
    said = library.lint(CHART, values=given())
    assert (said["errors"], [one["error"] for one in said["messages"]]) == ([], ["icon is recommended"])


def test_every_object_fits_kubernetes_schemas(rendered: list[dict[str, Any]]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for one in rendered:
        kubernetes.validate(one, "1.30", strict=True)


def test_every_pod_keeps_the_restricted_pod_security_standard(rendered: list[dict[str, Any]]) -> None:
    deployments = [one["spec"]["template"]["spec"] for one in rendered if one["kind"] == "Deployment"]
    assert len(deployments) == len(SERVICE_NAMES)
    for pod in deployments:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"] + pod["initContainers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_service_has_a_network_policy_that_closes_the_rest(rendered: list[dict[str, Any]]) -> None:
    policies = [one["spec"] for one in rendered if one["kind"] == "NetworkPolicy"]
    assert len(policies) == len(SERVICE_NAMES)
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies)
    assert all(rule.get("to") for policy in policies for rule in policy["egress"])
