"""The operator's path against running services: submit a study, follow its run, fetch the model and its proof."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cohortium_cli.archives import unpack
from cohortium_cli.operator import PLATFORM_LOG, Operator
from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile, RunIdArgument, StudyFile
from cohortium_cli.output import USAGE, done, fail, friendly, read_text, say, show, table
from cohortium_cli.pace_words import paced
from cohortium_messages.ids import STUDY_PATTERN, UUID_PATTERN
from cohortium_messages.problems import sentence
from cohortium_messages.status import PrivacyStatus, RoundStatus, RunStatus, RunSummary, SiteStatus
from cohortium_messages.study_file import parse_study
from cohortium_privacy.study_plans import plan_findings
from cohortium_sim.metric_words import MetricWord, measured
from cohortium_sim.report_words import clean, evaluated, plural

T = TypeVar("T")
SHOWN_ROUNDS = 10
audit_app = typer.Typer(no_args_is_help=True, help="Fetch the log that proves how a model came to be.")


def ask(operator: Path, question: Callable[[Operator], Awaitable[T]]) -> T:
    """Put a question to running services; leaves with a message if they cannot be asked or refuse."""

    async def inside() -> T:
        async with Operator.open(operator) as client:
            return await question(client)

    with friendly():
        return asyncio.run(inside())


def study_submit(file: StudyFile, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Submit a study to the scheduler; it recruits until members are signed in and their hospitals have granted."""
    text = read_text(file, "study file")
    with friendly():
        parse_study(text, file=str(file), also=plan_findings)
    started = ask(operator, lambda client: client.submit(text))

    def human() -> None:
        done(f"run {started.run_id} is {started.state}")
        say(f"  study digest {started.study_digest.hex()}")
        say(f"  follow it with: cohortium run-status {started.run_id}")

    show(started.model_dump(mode="json"), as_json=as_json, human=human)


def runs(operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """List runs, newest first."""
    listed = ask(operator, lambda client: client.runs())
    rows = [[item.run_id, item.study_id, item.state, _counted(item), item.sentence or ""] for item in listed]
    show(
        [item.model_dump(mode="json") for item in listed],
        as_json=as_json,
        human=lambda: table(
            "Runs",
            ["run", "study", "state", "round", "why"],
            rows,
            empty="There are no runs yet; `cohortium study submit FILE` makes one.",
        ),
    )


def _counted(item: RunSummary) -> str:
    if item.boosting is not None:
        return f"{item.boosting.trees}/{item.boosting.rounds} trees"
    return f"{item.round}/{item.rounds}"


def run_status(run_id: RunIdArgument, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Show one run: its rounds, its sites, its open window, and the reason of a refusal."""
    status = ask(operator, lambda client: client.run(checked_run(run_id)))
    show(status.model_dump(mode="json"), as_json=as_json, human=lambda: _print_status(status))


def run_lineage(run_id: RunIdArgument, operator: OperatorFile = OPERATOR_DEFAULT, as_json: Json = False) -> None:
    """Show every model version of a run: whose data it learnt from, and the withdrawals that it is flagged with."""
    found = ask(operator, lambda client: client.lineage(checked_run(run_id)))
    rows = [
        [
            str(one.model.version),
            one.model.model_hash.hex()[:12],
            "" if one.round is None else str(one.round),
            ", ".join(one.sites),
            ", ".join(digest.hex()[:12] for digest in one.flagged),
        ]
        for one in found.versions
    ]

    def human() -> None:
        if found.retrains is not None:
            began = "nothing" if found.start is None else f"version {found.start.version}"
            say(f"takes the place of run {found.retrains}, from {began}")
        table("Models", ["version", "digest", "round", "sites", "withdrawn"], rows, empty="No model was made yet.")

    show(found.model_dump(mode="json"), as_json=as_json, human=human)


def _print_status(status: RunStatus) -> None:
    say(f"{status.study_id} {status.run_id}\n{status.state}, {_reached(status)}")
    if status.sentence:
        say(status.sentence)
    if status.privacy is not None:
        say(_promise(status.privacy))
    if status.window is not None:
        window = status.window
        attempt = f", attempt {window.attempt}" if window.attempt > 1 else ""
        say(f"open window: {window.purpose}, round {window.round}{attempt}, {window.phase}")
        if window.phase == "AUTHORISED":
            say("  no site is asked before the audit log has it; is the audit service up?")
        say(f"  ready: {clean(', '.join(window.ready)) or 'nobody yet'}")
        if window.pace is not None:
            say(f"  {paced(window.pace)}")
    sites = [_site_row(site) for site in status.sites]
    table("Sites", ["site", "state", "updates used", "why"], sites, empty="No members yet.")
    newest = status.rounds_done[-SHOWN_ROUNDS:]
    words = measured(evaluated(one.evaluation) for one in newest)[:1]
    rounds = [_round_row(one, words[0]) for one in newest]
    heads = ["round", "cohort", "dropped", "refused", "seconds", "bytes up", words[0].name]
    table("Newest rounds", heads, rounds, empty="No round has ended yet.")
    if newest and newest[-1].pace is not None:
        say(f"round {newest[-1].number} {paced(newest[-1].pace).replace('waits', 'waited', 1)}")


def _promise(privacy: PrivacyStatus) -> str:
    told = privacy.statement
    if told.epsilon is None or told.delta is None:
        return "privacy: none"
    return (
        f"privacy: {told.mode}, epsilon {told.epsilon:g} at delta {told.delta:g} for each {told.unit} "
        f"({told.accountant}); spent so far: epsilon {privacy.epsilon_spent:.3g}, "
        f"{privacy.sums_charged} of {plural(privacy.sums_planned, 'noisy sum')}"
    )


def _reached(status: RunStatus) -> str:
    boosting = status.boosting
    if boosting is None:
        return f"round {status.round} of {status.rounds}"
    ended = plural(boosting.sessions, "session")
    changed = f", {plural(boosting.cohort_changes, 'change')} of the cohort" if boosting.cohort_changes else ""
    return f"boosting round {boosting.trees} of {boosting.rounds}, {ended} ended{changed}"


def _site_row(site: SiteStatus) -> list[str]:
    return [site.name, site.state, str(site.updates_used), sentence(site.code) if site.code else ""]


def _round_row(one: RoundStatus, word: MetricWord) -> list[str]:
    value = word.of(evaluated(one.evaluation))
    names = [", ".join(group) for group in (one.cohort, one.dropped, one.refused)]
    return [str(one.number), *names, f"{one.seconds:.2f}", str(one.bytes_up), "" if value is None else f"{value:.4f}"]


@audit_app.command("export")
def audit_export(
    study: Annotated[str, typer.Argument(help="The study's name; - for the log of what belongs to no study.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle; must be new or empty.")],
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Fetch a study's whole log with its proofs, as a folder that `cohortium verify` checks offline.

    The platform's log (-: enrolments, sign-ins, refusals) comes as a folder for `cohortium audit convert`.
    """
    if study != PLATFORM_LOG and not re.fullmatch(STUDY_PATTERN, study):
        fail(f"{study!r} is not a study's name; `cohortium runs` lists the studies", code=USAGE)

    def fetch(client: Operator) -> Awaitable[bytes]:
        return client.platform_log() if study == PLATFORM_LOG else client.audit_bundle(study)

    bundle = ask(operator, fetch)
    with friendly():
        files = unpack(bundle, out)

    def human() -> None:
        done(f"{out}: {len(files)} files")
        if study == PLATFORM_LOG:
            say(f"  for your SIEM: cohortium audit convert {out} --to syslog --out FILE")
        else:
            say(f"  check it with: cohortium verify {out} --governance-key KEY …, with the officers' keys")

    show({"study": study, "directory": str(out), "files": list(files)}, as_json=as_json, human=human)


def checked_run(run_id: str) -> str:
    """A run's id that a person typed, if it is one; leaves with a message otherwise."""
    if not re.fullmatch(UUID_PATTERN, run_id):
        fail(f"{run_id!r} is not a run's id; `cohortium runs` lists them", code=USAGE)
    return run_id
