"""This hospital as a witness of its studies' logs: what it has cosigned, and with which key.

In files of their own, not in the spool's database: a restored copy of the database must not make the witness forget
what it has signed. A witness that has lost its files has a new key, and says so in the log.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog
from pydantic import Field, ValidationError

from cohortium_connector.spool import own_key, write_synced
from cohortium_kit.errors import ConfigurationError
from cohortium_messages.ids import Bytes32, StudyId, Wire
from cohortium_protocol.notes import Checkpoint
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.witness import NOTHING, Held

log = structlog.get_logger(__name__)

SEEN_KEPT = 64
DAMAGED: Final = "WITNESS_DAMAGED"
"""The code of a study whose file cannot be read: what it held, and whether it told of a fork, is not known."""


class SeenRoot(Wire):
    """An earlier state of a log that this witness cosigned."""

    size: int = Field(ge=1)
    root: Bytes32


class WitnessState(Wire):
    """The newest checkpoint of a study's log that this witness cosigned. `fork`: one that does not continue it."""

    size: int = Field(ge=0, default=NOTHING.size)
    root: Bytes32 = NOTHING.root
    note: str = ""
    named: Bytes32 | None = None
    """The key that was announced in the log."""
    fork: str | None = None
    seen: tuple[SeenRoot, ...] = Field(default=(), max_length=SEEN_KEPT)
    """What was held before: a task may come later than a newer checkpoint."""

    @property
    def held(self) -> Held:
        return Held(self.size, self.root)

    @property
    def roots(self) -> dict[int, bytes]:
        return {one.size: one.root for one in self.seen}

    def after(self, checkpoint: Checkpoint, note: str) -> "WitnessState":
        """The state that holds this checkpoint, which continues the one held."""
        seen = (*self.seen, SeenRoot(size=self.size, root=self.root))[-SEEN_KEPT:] if self.size else ()
        return self.model_copy(update={"size": checkpoint.size, "root": checkpoint.root, "note": note, "seen": seen})


@lru_cache(maxsize=32)
def _parsed(content: bytes) -> WitnessState:
    """A file is read at each look, and what it says is worked out once: it is asked for some fifteen times a round."""
    return WitnessState.model_validate_json(content)


class WitnessBook:
    """The files of a witness: its key, and a state for each study. Each write is on the disk when it returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def key(self) -> IdentityKey:
        """The key of this witness alone; made when it is first asked for. Read each time: once the file is gone, a
        connector that runs must not sign a forgotten log with the key that signed what was forgotten."""
        return own_key(self._folder / "key")

    def state(self, study: StudyId) -> WitnessState:
        """What is held of a study's log. Raises `ConfigurationError` if the file cannot be read."""
        file = self._file(study)
        try:
            return _parsed(file.read_bytes())
        except FileNotFoundError:
            return WitnessState()
        except (ValidationError, OSError) as fault:
            what = fault.strerror if isinstance(fault, OSError) else "it is damaged"
            remedy = "to begin anew as a witness: `cohortium-connector trust-logs-anew --yes`"
            raise ConfigurationError(f"{file} cannot be read ({what}); {remedy}") from None

    def save(self, study: StudyId, state: WitnessState) -> None:
        """Persist a state. Before anything is signed that follows from it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_synced(self._file(study), state.model_dump_json().encode())

    def note_named(self, study: StudyId, key: bytes) -> None:
        """Remember that this key was announced in the study's log. Where that cannot be written, it is said again."""
        try:
            self.save(study, self.state(study).model_copy(update={"named": key}))
        except OSError as error:
            log.warning("witness_name_not_noted", study=study, error=type(error).__name__)

    def forked(self) -> tuple[StudyId, ...]:
        """The studies whose log showed this hospital two histories. Of damaged files `damaged` tells."""
        return tuple(study for study, state in self._states().items() if state is not None and state.fork is not None)

    def damaged(self) -> tuple[StudyId, ...]:
        """The studies whose file cannot be read, and may have told of a fork."""
        return tuple(study for study, state in self._states().items() if state is None)

    def keep_evidence(self, study: StudyId, state: WitnessState) -> Path:
        """Write both notes into one file, divided by `----`: for people, and for `cohortium verify --checkpoint`."""
        file = self._folder / f"{study}.fork.txt"
        write_synced(file, f"{state.note}\n----\n{state.fork}".encode())
        return file

    def begin_anew(self) -> None:
        """Forget everything, the key too: after people have settled what happened."""
        (self._folder / "key").unlink(missing_ok=True)  # first: the old key must not meet an empty book
        for path in self._folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def _states(self) -> dict[StudyId, WitnessState | None]:
        """What is held of each study, by its name; None for a damaged file."""
        found: dict[StudyId, WitnessState | None] = {}
        for study in sorted(StudyId(path.stem) for path in self._folder.glob("*.json")):
            try:
                found[study] = self.state(study)
            except ConfigurationError:
                found[study] = None
        return found

    def _file(self, study: StudyId) -> Path:
        return self._folder / f"{study}.json"
