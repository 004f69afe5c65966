"""Options and arguments that several commands share, so that they are called and explained alike everywhere."""

from pathlib import Path
from typing import Annotated, Final

import typer

AMQP_DEFAULT: Final = "amqp://guest:guest@127.0.0.1:5672/"
NAMESPACE_DEFAULT: Final = "cohortium"
OPERATOR_DEFAULT: Final = Path("operator.yaml")

Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
OperatorFile = Annotated[
    Path,
    typer.Option("--operator", envvar="COHORTIUM_OPERATOR", help="The operator's settings, a YAML file of `init`."),
]
StudyFile = Annotated[Path, typer.Argument(help="The study file (YAML).")]
RunIdArgument = Annotated[str, typer.Argument(help="The run's id; `cohortium runs` lists them.")]
