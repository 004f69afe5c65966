"""Checkpoints that a reader kept from earlier: a note in a file, several in one, or what a hospital's witness wrote.

A witness keeps the newest note that it cosigned as JSON (`witness/<study>.json`: `note`, and `fork` if the log showed
it another history), and both notes of a fork as text, divided by a line of four hyphens (`witness/<study>.fork.txt`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_DIVIDED: Final = re.compile(r"^----$", re.MULTILINE)


class NotKept(Exception):
    """The file holds no checkpoint. The text says why, and continues the file's name."""


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """A note that the reader kept. `name`: what a report calls it."""

    name: str
    note: str


@dataclass(frozen=True, slots=True)
class OwnAnchors:
    """What a hospital holds a bundle to by itself: the officers' keys that its configuration pins, and what its witness
    saw of the log. `where`: what a report calls the configuration. `seen`: sizes of the log that the hospital cosigned,
    with their roots; it wrote them down itself, so they need no signature."""

    keys: tuple[bytes, ...]
    threshold: int
    where: str
    notes: Sequence[KnownCheckpoint] = ()
    seen: Mapping[int, bytes] = field(default_factory=dict)


def read_kept(text: str, file: str, number: int) -> tuple[KnownCheckpoint, ...]:
    """The notes of a file's text, each under its own name. `number`: which of the files given this is, from 1.

    What stands in a note is not looked at here. Raises `NotKept` for a file without any note.
    """
    given = "the checkpoint you gave"
    if text.lstrip().startswith("{"):
        found = _of_witness(text)
        return tuple(KnownCheckpoint(f"{given} ({number}: {file}, {what})", note) for what, note in found)
    parts = _DIVIDED.split(text)
    if not text.strip() or not any(part.strip() for part in parts):
        raise NotKept("is empty; give a file with a checkpoint in it")
    if len(parts) == 1:
        return (KnownCheckpoint(f"{given} ({number})", text),)
    # A part without any text is a witness that held nothing yet; empty lines beside the dividing line are not signed.
    return tuple(
        KnownCheckpoint(f"{given} ({number}: {file}, note {place} of {len(parts)})", part.strip("\n") + "\n")
        for place, part in enumerate(parts, 1)
        if part.strip()
    )


def _of_witness(text: str) -> list[tuple[str, str]]:
    """What a witness's state holds: the note that it cosigned, and the one that does not continue it."""
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        raise NotKept("begins as JSON and is none; give the file as the witness wrote it") from None
    held, fork = state.get("note", ""), state.get("fork") or ""
    if not isinstance(held, str) or not isinstance(fork, str):
        raise NotKept("is not a witness's state: its note or its fork is not text; give witness/<study>.json")
    found = [(what, note) for what, note in (("the note held", held), ("the fork", fork)) if note]
    if not found:
        raise NotKept(
            "is JSON without a note: either no witness's state, or of a witness that has cosigned nothing yet"
        )
    return found
