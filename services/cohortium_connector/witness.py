"""This hospital as a witness of its studies' logs: what it has cosigned, and with which key.

In files of their own, not in the spool's database: a restored copy of the database must not make the witness forget
what it has signed. A witness that has lost its files has a new key, and says so in the log.
"""

from pathlib import Path

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
        """What is held of a study's log. Raises `ConfigurationError` if the file is damaged."""
        file = self._file(study)
        try:
            return WitnessState.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return WitnessState()
        except ValidationError:
            raise ConfigurationError(
                f"{file} is damaged; to begin anew as a witness delete {self._folder} and start the connector again"
            ) from None

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
        """The studies whose log showed this hospital two histories."""
        studies = sorted(StudyId(path.stem) for path in self._folder.glob("*.json"))
        return tuple(study for study in studies if self.state(study).fork is not None)

    def keep_evidence(self, study: StudyId, state: WitnessState) -> Path:
        """Write both notes into one file, for people and for `cohortium verify --checkpoint`."""
        file = self._folder / f"{study}.fork.txt"
        write_synced(file, f"{state.note}\n----\n{state.fork}".encode())
        return file

    def begin_anew(self) -> None:
        """Forget everything, the key too: after people have settled what happened."""
        (self._folder / "key").unlink(missing_ok=True)  # first: the old key must not meet an empty book
        for path in self._folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def _file(self, study: StudyId) -> Path:
        return self._folder / f"{study}.json"
