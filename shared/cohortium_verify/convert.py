"""A log in another system's language, for a SIEM, a FHIR server or a lineage tool; and the command that writes it.

Any log: a study's, from its audit bundle, or one whose entries were fetched by themselves, such as the platform's with
sign-ins and refusals. Nothing is written of a log in which one entry does not hold.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast, get_args

from cohortium_messages.events import SiteEnrolled
from cohortium_messages.governance import Manifest, TrustDocument
from cohortium_messages.ids import StudyId
from cohortium_protocol.signing import site_key_id
from cohortium_verify import log
from cohortium_verify.bundle import BundleError, open_bundle, read_lines, read_model
from cohortium_verify.command import OptionRefused, bundle_in, read_notes
from cohortium_verify.formats import fhir_lines, prov_json, syslog_lines
from cohortium_verify.log import Entry
from cohortium_verify.report import EXIT_PROVEN, EXIT_REFUTED, EXIT_UNREADABLE

Format = Literal["fhir", "syslog", "prov"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
ABOUT: Final = (
    "Write an audit log in another system's language. Only a log whose signatures all hold is written. The result "
    "proves nothing by itself. Exits: 0 written, 1 the log does not hold, 2 unreadable."
)
FOLDER_HELP: Final = "a folder of `cohortium audit export`, or a simulation's result"
ENTRIES_HELP: Final = "in place of a folder: a log's entries, all from the first one on, as /logs/LOG/entries has them"
TRUST_HELP: Final = "with --entries: the federation's trust document, from somebody you trust"
MANIFEST_HELP: Final = "with --entries of a study: its membership manifests, for the hospitals' keys; repeat"
CHECKPOINT_HELP: Final = (
    "with --entries: the checkpoint of exactly these; without one nothing shows that none is missing"
)
FROM_HELP: Final = "write entries from this place on, for a file that has the older ones already; not for prov"
TO_HELP: Final = "fhir: AuditEvent R4, NDJSON. syslog: RFC 5424. prov: W3C PROV-JSON, the lineage"


class NotHeld(Exception):
    """The log is not as its emitters signed it, or not whole. The text says what, and where."""


@dataclass(frozen=True, slots=True)
class LogFiles:
    """A log as it was fetched; nothing is checked yet. `where`: what an error calls it. `checkpoints`: names and notes;
    where there are any, the entries must be exactly those of the last one."""

    where: str
    trust: TrustDocument
    manifests: tuple[Manifest, ...]
    raw: tuple[bytes, ...]
    checkpoints: tuple[tuple[str, str], ...]

    @classmethod
    def of_folder(cls, folder: Path) -> "LogFiles":
        """A bundle, or what was exported of the platform's log, which has no manifests. Raises `BundleError`."""
        bundle = open_bundle(bundle_in(folder))
        manifests = bundle.manifests() if (bundle.folder / "manifests").exists() else ()
        return cls(str(bundle.folder), bundle.trust(), manifests, bundle.entries(), bundle.checkpoints())

    @classmethod
    def of_files(
        cls, entries: Path, trust: Path, manifests: Sequence[Path] = (), checkpoint: Path | None = None
    ) -> "LogFiles":
        """Files that were fetched one by one. Raises `BundleError`, and `OptionRefused` for the checkpoint."""
        notes = () if checkpoint is None else read_notes(checkpoint, 1)
        return cls(
            str(entries),
            read_model(TrustDocument, trust.parent, trust.name),
            tuple(read_model(Manifest, one.parent, one.name) for one in manifests),
            read_lines(entries.parent, entries.name),
            tuple((one.name, one.note) for one in notes),
        )

    def held(self) -> tuple[str, list[Entry]]:
        """The log's origin and its entries, each of which its emitter signed. Raises `NotHeld`."""
        study = self.manifests[-1].study_id if self.manifests else _study_of(self.raw[0])
        origin = f"{self.trust.federation}/audit/{study or '-'}"
        keys = log.known_keys(self.trust.services, self.manifests)
        if study is None:
            # Hospitals report faults there, and are in no manifest of it: enrolment has said whose key is whose.
            for entry in log.read_entries(self.raw, keys, None)[0]:
                if isinstance(entry.message, SiteEnrolled):
                    keys[site_key_id(entry.message.site_id)] = frozenset({entry.message.identity_pk})
        entries, failures = log.read_entries(self.raw, keys, study)
        roots, unsigned = log.read_checkpoints(self.checkpoints, self.trust.services.audit, origin)
        failures += unsigned
        if roots:
            failures += log.check_roots(log.MerkleTree(self.raw), roots, ()).failures
        if failures:
            raise NotHeld(f"{self.where}: {failures[0]}")
        return origin, entries


def converted(files: LogFiles, to: Format, first: int = 0) -> tuple[str, int]:
    """The log in this language from the entry `first` on, and how many entries that are. Raises `NotHeld`."""
    origin, entries = files.held()
    if to == "prov":
        return json.dumps(prov_json(entries, origin), indent=1) + "\n", len(entries)
    wanted = [entry for entry in entries if entry.index >= first]
    lines = fhir_lines(wanted, origin) if to == "fhir" else syslog_lines(wanted, origin)
    return "".join(f"{line}\n" for line in lines), len(wanted)


def files_named(
    folder: Path | None,
    entries: Path | None,
    trust: Path | None,
    manifests: Sequence[Path],
    checkpoint: Path | None,
) -> LogFiles:
    """The log that options name: a folder, or its files. Raises `OptionRefused` and `BundleError`."""
    if folder is not None:
        if entries or trust or manifests or checkpoint:
            raise OptionRefused("a folder holds all that is needed: leave out --entries and what goes with it")
        return LogFiles.of_folder(folder)
    if entries is None or trust is None:
        raise OptionRefused("name a folder, or --entries with --trust")
    return LogFiles.of_files(entries, trust, manifests, checkpoint)


def _study_of(line: bytes) -> StudyId | None:
    """Whose log begins with this entry; what is no entry is told of where all are read."""
    try:
        study = json.loads(line)["event"].get("study")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return StudyId(study) if isinstance(study, str) else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", type=Path, nargs="?", help=FOLDER_HELP)
    parser.add_argument("--entries", type=Path, help=ENTRIES_HELP)
    parser.add_argument("--trust", type=Path, help=TRUST_HELP)
    parser.add_argument("--manifest", type=Path, action="append", default=[], help=MANIFEST_HELP)
    parser.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="N", help=FROM_HELP)
    parser.add_argument("--to", choices=FORMATS, required=True, help=TO_HELP)
    parser.add_argument("--out", "-o", type=Path, required=True, help="the file to write")


def run(options: argparse.Namespace) -> int:
    """Write the file; returns the exit code."""
    try:
        files = files_named(options.folder, options.entries, options.trust, options.manifest, options.checkpoint)
        text, count = converted(files, cast("Format", options.to), options.first)
        options.out.write_text(text, encoding="utf-8", newline="\n")
    except (NotHeld, OptionRefused, BundleError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_REFUTED if isinstance(error, NotHeld) else EXIT_UNREADABLE
    sys.stdout.write(f"{options.out}: {count} entries\n")
    return EXIT_PROVEN


def main(argv: Sequence[str] | None = None) -> int:
    """0 written, 1 the log does not hold, 2 unreadable or wrong options."""
    parser = argparse.ArgumentParser(prog="cohortium-audit-convert", description=ABOUT)
    add_arguments(parser)
    return run(parser.parse_args(argv))
