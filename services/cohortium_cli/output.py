"""How the commands speak: facts as tables or JSON, errors as one clear message and an exit code."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cohortium_cli.operator import OperatorError
from cohortium_kit.errors import CohortiumError, ConfigurationError
from cohortium_kit.logging import configure_logging
from cohortium_messages.study_file import StudyFileError
from cohortium_sim.report_words import clean

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Done; it did not work out; it was asked for wrongly; the person stopped it."""
console = Console()
errors = Console(stderr=True)


class _StandardError:
    """Standard error as it is at the moment of writing: tests and callers may have put another one there."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def quiet_logs() -> None:
    """Log nothing short of our own bugs, on standard error: a command says itself what is wrong, in one message.

    Services, and simulations in their folder, set up logs of their own.
    """
    configure_logging(level="critical", output="console", stream=cast("TextIO", _StandardError()))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Plain text for a person: never taken for markup, and never broken, so that paths and commands can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def done(text: str) -> None:
    """Say that it worked."""
    console.print(Text.assemble(("✓ ", "green"), text), highlight=False, soft_wrap=True)


def fail(text: str, *, code: int = FAILED) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    errors.print(Text.assemble(("error: ", "bold red"), text), highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def friendly(*, code: int = FAILED) -> Iterator[None]:
    """Turn errors that are meant for people into their text; anything else stays a traceback, for it is our bug.

    `code` is the exit code of errors of our own; wrong settings and study files are always wrong usage.
    """
    try:
        yield
    except (ConfigurationError, StudyFileError) as error:
        fail(str(error), code=USAGE)
    except (CohortiumError, OperatorError) as error:
        fail(str(error), code=code)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise
        fail(os_error(error), code=code)
    except KeyboardInterrupt:
        fail("interrupted", code=INTERRUPTED)


def os_error(error: OSError) -> str:
    """What the system said about which file, and what to do where that is plain."""
    if error.filename is None or error.strerror is None:
        return str(error)
    advice = {
        FileExistsError: "; choose another place, or move it away first",
        PermissionError: "; check who may read and write there",
        NotADirectoryError: "; a part of this path is a file",
    }.get(type(error), "")
    return f"{error.filename}: {error.strerror}{advice}"


def read_text(file: Path, what: str = "file") -> str:
    """A text file that a person named; leaves with a message if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        fail(f"there is no {what} {file}", code=USAGE)
    except UnicodeDecodeError as error:
        fail(f"{file} is not UTF-8 text (byte {error.start}); is it the right file?", code=USAGE)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", code=USAGE)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """A plain table, or a sentence where there is nothing to show. Cells come from others: they steer no terminal."""
    if not rows:
        say(empty)
        return
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*[Text(clean(cell)) for cell in row])
    console.print(drawn)


def show(value: Any, *, as_json: bool, human: Callable[[], None]) -> None:
    """The same facts for a program or for a person."""
    if as_json:
        print_json(value)
    else:
        human()
