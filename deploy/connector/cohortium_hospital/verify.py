"""`cohortium-connector verify FOLDER --config FILE`: a bundle held against what this hospital has by itself.

Its configuration pins the officers' keys; its witness has written down how far it saw each study's log. Nothing else is
needed, and nothing is asked of anybody.
"""

import argparse
from pathlib import Path

from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.witness import WitnessBook
from cohortium_messages.ids import StudyId
from cohortium_verify import command
from cohortium_verify.bundle import BundleError, open_bundle
from cohortium_verify.kept import KnownCheckpoint, OwnAnchors


def verify(options: argparse.Namespace) -> int:
    """Print the report; returns the exit code. Raises `ConfigurationError` for a configuration, or a witness' file,
    that cannot be read."""
    return command.run(options, None if options.config is None else own_anchors(options.config, options.directory))


def own_anchors(config: Path, directory: Path) -> OwnAnchors:
    """What the hospital of this configuration holds about the study of a bundle. Raises `ConfigurationError`."""
    settings = ConnectorSettings.load(config)
    notes: list[KnownCheckpoint] = []
    seen: dict[int, bytes] = {}
    study = _study_of(directory)
    if study is not None:
        state = WitnessBook(settings.spool_dir / "witness").state(study)
        seen = {**state.roots, **({state.size: state.root} if state.size else {})}
        found = (("the checkpoint that this hospital cosigned", state.note), ("the fork it was shown", state.fork))
        notes = [KnownCheckpoint(f"{what} (witness/{study}.json)", note) for what, note in found if note]
    return OwnAnchors(settings.governance_keys, settings.governance_threshold, str(config), notes, seen)


def _study_of(directory: Path) -> StudyId | None:
    """Of a bundle that says; the verifier itself says what is wrong with one that does not."""
    try:
        return open_bundle(command.bundle_in(directory)).manifests()[-1].study_id
    except BundleError:
        return None
