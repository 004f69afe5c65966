"""How the commands speak: facts as tables or JSON, errors as one clear message and an exit code."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from cohortium_cli.operator import OperatorError
from cohortium_kit.errors import CohortiumError
from cohortium_messages.study_file import StudyFileError

OK, FAILED, USAGE = 0, 1, 2
console = Console()
errors = Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fail(text: str, *, code: int = FAILED) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    errors.print("[bold red]error:[/]", end=" ")
    errors.print(text, markup=False, highlight=False)
    raise typer.Exit(code)


@contextmanager
def friendly() -> Iterator[None]:
    """Turn errors that are meant for people into their text; anything else stays a traceback, for it is our bug."""
    try:
        yield
    except (CohortiumError, OperatorError, FileExistsError) as error:
        fail(str(error))
    except StudyFileError as error:
        fail(str(error), code=USAGE)
    except KeyboardInterrupt:
        fail("interrupted", code=130)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """A plain table, or a sentence where there is nothing to show."""
    if not rows:
        console.print(empty)
        return
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column)
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


def show(value: Any, *, as_json: bool, human: Callable[[], None]) -> None:
    """The same facts for a program or for a person."""
    if as_json:
        print_json(value)
    else:
        human()
