"""`cohortium-verify FOLDER`: the whole command, for the verifier's own wheel and the hospital's."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cohortium_verify.kept import KnownCheckpoint, NotKept, OwnAnchors, read_kept
from cohortium_verify.report import EXIT_UNREADABLE, VerificationReport
from cohortium_verify.verification import verify_bundle

ABOUT = "Check the audit bundle of a result offline and say what it proves. Exits: 0 proved, 1 refuted, 2 unreadable."
KEY_BYTES = 32


class OptionRefused(Exception):
    """An option is not what it must be. The text says which, why, and what would do."""


def verify_folder(
    directory: Path,
    governance_keys: Sequence[str],
    checkpoints: Sequence[Path],
    quorum: int | None,
    own: OwnAnchors | None = None,
) -> VerificationReport:
    """Verify a result's folder, or the bundle in it; keys in hex, checkpoints as files; `own`: what a hospital has by
    itself. Raises `OptionRefused`."""
    keys = [_public_key(text) for text in governance_keys]
    known = [one for number, file in enumerate(checkpoints, 1) for one in read_notes(file, number)]
    return verify_bundle(bundle_in(directory), keys or None, known_checkpoints=known, quorum=quorum, own=own)


def bundle_in(directory: Path) -> Path:
    """Where the audit bundle of a result's folder lies."""
    return directory / "audit" if (directory / "audit").is_dir() else directory


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise OptionRefused(f"--governance-key {text} is not a public key; it has 64 hexadecimal digits")
    return key


def read_notes(file: Path, number: int) -> tuple[KnownCheckpoint, ...]:
    """The checkpoints in the file that the option's `number`th use names. Raises `OptionRefused`."""
    try:
        return read_kept(file.read_text(encoding="utf-8"), file.name, number)
    except NotKept as error:
        raise OptionRefused(f"--checkpoint {file} {error}") from error
    except FileNotFoundError as error:
        raise OptionRefused(f"there is no checkpoint {file}") from error
    except UnicodeDecodeError as error:
        raise OptionRefused(f"--checkpoint {file} is not text (byte {error.start}); is it the right file?") from error
    except OSError as error:
        raise OptionRefused(f"--checkpoint {file} cannot be read: {error.strerror}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("directory", type=Path, help="a result's folder, or the audit bundle in it")
    parser.add_argument(
        "--governance-key", action="append", default=[], help="an officer's public key that you trust (hex); repeat"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        type=Path,
        help="a checkpoint of this log kept earlier, several divided by a line ----, or a witness's file; repeat",
    )
    parser.add_argument("--quorum", type=_hospitals, help="hospitals that must have cosigned; otherwise the study's")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(options: argparse.Namespace, own: OwnAnchors | None = None) -> int:
    """Print the report; returns the exit code."""
    try:
        report = verify_folder(options.directory, options.governance_key, options.checkpoint, options.quorum, own)
    except OptionRefused as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_UNREADABLE
    text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if options.json else report.text()
    sys.stdout.write(f"{text}\n")
    return report.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """0 proved, 1 refuted, 2 unreadable or wrong options."""
    parser = argparse.ArgumentParser(prog="cohortium-verify", description=ABOUT)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _hospitals(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 200:
        raise argparse.ArgumentTypeError(f"{text} is not a number of hospitals: 0 to 200")
    return value
