"""`cohortium-connector COMMAND --config FILE`. Exit codes: 0 done, 1 failed, 2 configuration or usage."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cohortium_connector import __main__ as connector
from cohortium_connector.commands import LocalSite, StatusView
from cohortium_connector.ledger.local import LocalLedger
from cohortium_connector.ledger.words import lines as ledger_lines
from cohortium_connector.preflight.trial import carry_out
from cohortium_connector.preflight.words import lines
from cohortium_connector.settings import ConnectorSettings
from cohortium_hospital.consent import add_commands as add_consent_commands
from cohortium_hospital.patients import add_commands as add_patient_commands
from cohortium_hospital.patients import add_effect
from cohortium_hospital.verify import verify as run_verify
from cohortium_kit.errors import CohortiumError, ConfigurationError
from cohortium_messages.problems import sentence
from cohortium_protocol.cohorts import cohort_lines
from cohortium_protocol.release import ATTESTATION
from cohortium_verify import command as verifier
from cohortium_verify import convert as converter

T = TypeVar("T")
DONE, FAILED, USAGE = 0, 1, 2
DEFAULT_CONFIG = Path("/etc/cohortium/connector.yaml")
SECOND_LOOK_S = 5.0
_OWN = (
    "this hospital's settings: the bundle must fit the officers' keys in them and what this hospital saw of the log "
    f"(default: {DEFAULT_CONFIG}, if it is there)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(argv)
    if options.command in ("run", "migrate", "check-config"):
        return connector.main([options.command, "--config", str(options.config)])
    try:
        code: int = options.act(options)
    except ConfigurationError as error:
        return _fail(error, USAGE)
    except CohortiumError as error:
        return _fail(error, FAILED)
    return code


def _parser() -> argparse.ArgumentParser:
    about = "Cohortium in the hospital: only sums leave it, and only with your grant."
    parser = argparse.ArgumentParser(prog="cohortium-connector", description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, act: Callable[[argparse.Namespace], int] | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", "-c", type=Path, default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
        command.set_defaults(act=act)
        return command

    add("run", "Run the connector until it is told to stop.")
    add("migrate", "Bring the spool's tables up to date.")
    add("check-config", "Check the settings and name every error in them.")
    add("offers", "Studies that ask for this hospital's grant, and what became of each.", _offers)
    cohort = add("cohort", "The cohort that an approval of a study would freeze now; nothing is granted.", _cohort)
    cohort.add_argument("study", help="the study's name, or the beginning of its digest")
    approve = add("approve", "Grant a study version: from then on this hospital takes part in it.", _approve)
    approve.add_argument("study", help="the study's name, or the beginning of its digest")
    approve.add_argument("--approver", action="append", required=True, help="who approves; repeat for two people")
    withdraw = add("withdraw", "Leave a study at once. One person can always stop.", _withdraw)
    withdraw.add_argument("study", help="the study's name, or the beginning of its digest")
    add_effect(withdraw)
    release = add("sign-release", "Sign the release of a model, after an officer has and its card was read.", _release)
    release.add_argument("model", type=Path, help="the model's folder, unpacked")
    release.add_argument("release", type=Path, help="the release that an officer signed; changed in place")
    add("status", "What this connector is, and what it has in hand.", _status)
    anew = add("trust-logs-anew", "After people have settled why a log forked: take tasks again.", _trust_logs_anew)
    anew.add_argument("--yes", action="store_true", help="yes, people have settled which history is true")
    budget = add("budget", "Check the privacy ledger: what each block of patients has left, and who has it.", _budget)
    budget.add_argument("--report", action="store_true", help="also the tighter epsilon; takes seconds for each block")
    budget.add_argument("--json", action="store_true", help="print the facts as JSON")
    write_off = add("budget-write-off", "Go on with a privacy ledger whose newest rows are lost.", _budget_write_off)
    write_off.add_argument("--yes", action="store_true", help="yes, nothing more may be charged to these patients")
    add("health", "Exit with 0 if the connector is enrolled and the broker takes its messages.", _health)
    add_consent_commands(add)
    add_patient_commands(add)
    preflight = add("preflight", "Try broker, clock, line, machine, training and tables; stop it first.", _preflight)
    preflight.add_argument("--no-send", action="store_true", help="do not tell the platform the outcome")
    verify = commands.add_parser("verify", help=verifier.ABOUT, description=verifier.ABOUT)
    verifier.add_arguments(verify)
    verify.add_argument(
        "--config", "-c", type=Path, default=DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None, help=_OWN
    )
    verify.set_defaults(act=run_verify)
    convert = commands.add_parser("audit-convert", help=converter.ABOUT, description=converter.ABOUT)
    converter.add_arguments(convert)
    convert.set_defaults(act=converter.run)
    for name in ("offers", "preflight", "status"):
        commands.choices[name].add_argument("--json", action="store_true", help="print the facts as JSON")
    return parser


def _offers(options: argparse.Namespace) -> int:
    found = _here(options, lambda site: site.offers())
    if options.json:
        _print_json(found)
        return DONE
    for offer in found:
        _say(f"{offer.study}  {offer.digest[:12]}")
        _say(f"  {'granted' if offer.permission == 'granted' else sentence(offer.permission)}")
        _say(f"  purpose: {offer.purpose}")
        _say(f"  members: {', '.join(offer.members)}")
    if not found:
        _say("No study was offered yet.")
    return DONE


def _approve(options: argparse.Namespace) -> int:
    grant = _here(options, lambda site: site.approve(options.study, tuple(options.approver)))
    if grant is None:
        _say(f"{options.study} is granted already")
    else:
        _say(f"{options.study} is granted until {grant.not_after:%Y-%m-%d}, for {grant.max_rounds} rounds")
        if grant.cohort is not None:
            _say("\n".join(cohort_lines(grant.cohort)))
    return DONE


def _cohort(options: argparse.Namespace) -> int:
    found = _here(options, lambda site: site.cohort(options.study))
    _say(f"{options.study}: an approval freezes no cohort" if found is None else "\n".join(cohort_lines(found)))
    return DONE


def _withdraw(options: argparse.Namespace) -> int:
    ended = _here(options, lambda site: site.withdraw(options.study, options.effect))
    _say(f"{options.study}: {ended} grants ended; what was in hand for it is deleted")
    return DONE


def _release(options: argparse.Namespace) -> int:
    try:
        attestation, release = (options.model / ATTESTATION).read_bytes(), options.release.read_bytes()
    except OSError as error:
        return _fail(error, USAGE)
    options.release.write_bytes(_here(options, lambda site: site.sign_release(attestation, release)))
    _say(f"{options.release}: signed; hand it back to the operator")
    return DONE


def _status(options: argparse.Namespace) -> int:
    view = _here(options, lambda site: site.status())
    if options.json:
        _print_json(view)
        return DONE
    joined = "enrolled" if view.registered else sentence(view.refused) if view.refused else "not enrolled yet"
    _say(f"{view.name} {view.site_id} in {view.federation}: {joined}")
    _say(f"{view.finished_windows} windows done, {view.waiting_messages} messages wait to be sent")
    for study in view.forked_logs:
        _say(f"  {study}: {sentence('LOG_FORKED')} Both notes are in witness/{study}.fork.txt of the spool.")
    for study in view.damaged_witness:
        _say(f"  {study}: {sentence('WITNESS_DAMAGED')}")
    for alarm in view.log_alarms:
        _say(f"  {alarm.study}: {sentence(alarm.code)} Since {alarm.since:%Y-%m-%d %H:%M} UTC.")
    for window in view.windows:
        _say(f"  {window.study} {window.purpose} round {window.round}: {window.phase}")
    return DONE


def _trust_logs_anew(options: argparse.Namespace) -> int:
    if not options.yes:
        refusal = "this forgets what the hospital holds of the logs: keep the notes in witness/ first, then say --yes"
        return _fail(ConfigurationError(refusal), USAGE)
    forked = _here(options, lambda site: site.trust_logs_anew())
    _say(f"{len(forked)} forked logs forgotten; the connector has a new witness key from its next cosignature on")
    return DONE


def _budget(options: argparse.Namespace) -> int:
    view = _ledger(options, lambda ledger: ledger.look(report=options.report))
    if options.json:
        _print_json(view)
    else:
        _say("\n".join(ledger_lines(view)))
    return DONE


def _budget_write_off(options: argparse.Namespace) -> int:
    if not options.yes:
        refusal = "this freezes the budget of every patient up to today for good; say --yes if that is meant"
        return _fail(ConfigurationError(refusal), USAGE)
    until = _ledger(options, lambda ledger: ledger.write_off())
    _say(f"blocks up to {until} are frozen; restart the connector, and patients of later quarters can be charged")
    return DONE


def _ledger(options: argparse.Namespace, ask: Callable[[LocalLedger], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with LocalLedger.open(ConnectorSettings.load(options.config)) as ledger:
            return await ask(ledger)

    return asyncio.run(inside())


def _health(options: argparse.Namespace) -> int:
    """Healthy is what moves: messages may wait, but not the same number twice."""

    async def look_twice(site: LocalSite) -> tuple[StatusView, StatusView]:
        first = await site.status()
        if first.waiting_messages:
            await asyncio.sleep(SECOND_LOOK_S)
        return first, await site.status()

    first, second = _here(options, look_twice)
    if second.refused:
        _say(sentence(second.refused))
    elif 0 < first.waiting_messages <= second.waiting_messages:
        _say(f"{second.waiting_messages} messages wait and none was taken in {SECOND_LOOK_S:.0f} s: see the log")
    else:
        return DONE
    return FAILED


def _preflight(options: argparse.Namespace) -> int:
    trial = asyncio.run(carry_out(ConnectorSettings.load(options.config), send=not options.no_send))
    _say(trial.as_json() if options.json else "\n".join(lines(trial)))
    return DONE if trial.passed else FAILED


def _here(options: argparse.Namespace, ask: Callable[[LocalSite], Awaitable[T]]) -> T:
    async def inside() -> T:
        async with LocalSite.open(ConnectorSettings.load(options.config)) as site:
            return await ask(site)

    return asyncio.run(inside())


def _print_json(value: Any) -> None:
    plain = [dataclasses.asdict(one) for one in value] if isinstance(value, tuple) else dataclasses.asdict(value)
    _say(json.dumps(plain, indent=2, ensure_ascii=False, default=str))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
