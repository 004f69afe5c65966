"""All of `contracts/` that is made from code: `python -m cohortium_cli.contracts_command [--check] [DIR]`.

Schemas and AsyncAPI come from the messages alone (`cohortium_messages.export`); the services' HTTP interfaces and
lifecycles need the services, which only the command line may import. `make contracts` writes, `make check` compares.
"""

import sys
from typing import Final

from cohortium_cli.contracts_lifecycle import LIFECYCLES, lifecycle_page
from cohortium_cli.contracts_openapi import SERVICES, openapi_document
from cohortium_messages import export

GENERATED: Final = ("schemas/**/*.json", "asyncapi.yaml", "openapi/*.yaml", "lifecycle/*.md")
"""Where nothing lies that was written by hand."""


def documents() -> dict[str, str]:
    """Path under `contracts/` and text of every generated file."""
    files = export.documents()
    for service in SERVICES:
        files[f"openapi/{service}.yaml"] = export.as_yaml(openapi_document(service))
    for lifecycle in LIFECYCLES:
        files[f"lifecycle/{lifecycle.name}.md"] = lifecycle_page(lifecycle)
    return files


if __name__ == "__main__":
    sys.exit(export.run(documents(), GENERATED))
