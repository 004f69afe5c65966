"""Where the ledger stood, written down beside the database: a copy of the database alone does not reach there.

A ledger that is older than its anchor is a restored backup: what was charged since is not in it, so its budgets would
be spent twice.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cohortium_connector.ledger.errors import LedgerBroken
from cohortium_connector.spool import write_synced
from cohortium_messages.ids import Bytes32
from cohortium_privacy.ledger_state import Head


class _Anchor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int
    entry_hash: Bytes32


@dataclass(frozen=True, slots=True)
class Anchor:
    """The file. It may lag behind the ledger by what was written when the process was killed; it is never ahead."""

    path: Path

    def read(self) -> Head:
        """Where the ledger stood at least; the beginning if nothing was written yet. Raises `LedgerBroken`."""
        try:
            known = _Anchor.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return Head()
        except ValidationError:
            raise LedgerBroken(f"{self.path} is damaged; restore it together with spool.db") from None
        return Head(known.sequence, known.entry_hash)

    def write(self, head: Head) -> None:
        """Replace it, at once and for good."""
        anchor = _Anchor(sequence=head.sequence, entry_hash=head.entry_hash)
        write_synced(self.path, anchor.model_dump_json().encode() + b"\n")
