"""The governance tour: seven hospitals enrol, agree, approve by two, train; a patient leaves, and four hospitals, each
at another moment of a round; officers decide, the study is trained again, released, and everything is proven offline.

`make tour-governance`, or `python -m cohortium_sim.tour`. On a RabbitMQ and a PostgreSQL where they answer, else in one
process. Exit code 0 only if every step did what it says. `--short` is the way from the first document to the proof
without the moments of leaving: three hospitals, one round, in this process.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cohortium_cli.model_use import cosigned
from cohortium_cli.operator import OperatorError
from cohortium_cli.output import done, say
from cohortium_connector.commands import LocalSite
from cohortium_connector.consent_commands import LocalConsent
from cohortium_kit.errors import CohortiumError
from cohortium_kit.logging import configure_logging
from cohortium_messages.consent import ConsentFile, Effect, Record, WithdrawalEffect
from cohortium_messages.status import RunStatus
from cohortium_messages.study_file import parse_study
from cohortium_protocol.consent.authorise import told
from cohortium_protocol.consent.files import sign_documents
from cohortium_protocol.consent.signing import sign_card
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import Receipt, ReceiptRefused, verify_receipt
from cohortium_protocol.release import ATTESTATION, Candidate, sign_release
from cohortium_protocol.signing import IdentityKey
from cohortium_sim.plan import Plan, PlanError, SiteTable
from cohortium_sim.servers import check_servers
from cohortium_sim.simulate import ended_by_sigterm
from cohortium_sim.tour_leaving import Leaving
from cohortium_sim.tour_papers import HospitalPeople, Person, hospital_documents, signed, study_version
from cohortium_sim.tour_story import (
    AFTER_UNMASK,
    AFTER_UPLOAD,
    BEFORE_UNMASK,
    BEFORE_UPLOAD,
    HOSPITALS,
    LEAVE,
    STAY,
    STUDY,
    Hospitals,
    TourFailed,
)
from cohortium_verify.bundle import open_bundle
from cohortium_verify.formats import prov_json
from cohortium_verify.loading import Trust, load_model
from cohortium_verify.log import known_keys, read_entries
from cohortium_verify.verification import verify_bundle

AMQP: Final = "amqp://guest:guest@127.0.0.1:5672/"
DATABASE: Final = "postgresql://postgres@127.0.0.1:5432/postgres"
PATIENT: Final = "P-0007"
PERSONS: Final = 60
TRAINS_S: Final = 3600.0
"""How long the hospital that leaves before its upload would train."""


class Tour(Leaving):
    """The story, step by step."""

    # Agreeing

    async def enrol(self) -> None:
        self.step(f"{len(self.hospitals)} hospitals enrol, each with a key that it made itself")
        await self.sim.start()
        found = [one for one in await self.operator.sites() if one["state"] == "active"]
        self.need(len(found) == len(self.hospitals), f"{', '.join(one['name'] for one in found)} are enrolled")

    async def submit(self) -> str:
        self.step("The operator submits the study; two governance officers sign who takes part")
        run_id = await self.sim.submit()
        done(f"{self.study.name} is submitted and recruits; nobody trains before a hospital's people have agreed")

        async def offered() -> object:
            async with LocalSite.open(self.settings("north")) as site:
                return await site.offers()

        await self.until(offered, "the offer")
        async with LocalConsent.open(self.settings("north")) as site:
            reasons = (await site.check(self.study.name, 1)).reasons
        self.need(reasons, "north's own connector says why it may not yet:")
        for reason in reasons:
            say(f"    {reason.code}: {told(reason)}")
        return run_id

    async def agree(self) -> None:
        self.step("Agreement, ethics approval, data-use terms, approval: each signed by people, none by its own author")
        now = self.sim.clock.now()
        lead = Person("Lena Lead", "study_lead", IdentityKey.generate())
        version = study_version(self.study, lead, now)
        card = _vouched(lead, self.officers, now)
        record = signed(version, lead, self.officers, now)
        await self.operator.add_documents(ConsentFile(people=(card,), records=(record,)))
        done(f"{lead.name} wrote the study's version, {' and '.join(one.name for one in self.officers)} approved it")
        for name in self.hospitals:
            await self._hospital_agrees(name, version, now)
        # All at once: a run begins when enough have granted, and waits a moment for the others.
        await asyncio.gather(*map(self._grant, self.hospitals))
        done("in each hospital Ada wrote the documents, Bea and Carl approved them, an officer the agreement")

    async def _hospital_agrees(self, name: str, version: Any, now: datetime) -> None:
        site_id = self.sim.sites[name].site_id
        people = self.people[name] = HospitalPeople.of(site_id)
        papers = hospital_documents(self.study, version, site_id, now)
        bea, carl = people.approvers
        approvers = {"agreement": (bea, self.officers[0]), "ethics": (bea, carl)}
        records = tuple(
            signed(one, people.admin, approvers.get(kind, (bea, carl)), now) for kind, one in papers.items()
        )
        async with LocalConsent.open(self.settings(name)) as site:
            cards = tuple(site.vouch(person.card(now)) for person in people.all)
            await site.add(ConsentFile(people=cards, records=records))

        async def may() -> bool:
            async with LocalConsent.open(self.settings(name)) as site:
                reasons = (await site.check(self.study.name, 1)).reasons
            return {one.code for one in reasons} <= {"GRANT_NOT_FOUND"}

        await self.until(may, f"the study's version at {name}")

    async def _grant(self, name: str) -> None:
        async with LocalSite.open(self.settings(name)) as site:
            await site.approve(self.study.name, tuple(one.name for one in self.people[name].approvers))

    # Leaving

    async def a_patient_leaves(self, run_id: str) -> None:
        self.step(f"Training runs. In round 1 a patient of north says no: {PATIENT}")
        await self.in_round(run_id, 1)
        source = self.sim.plan.sites[0].path.with_suffix(".ndjson")
        refusal = _decision(PATIENT, "deny", "2026-11-01")
        await asyncio.to_thread(_append, source, refusal)
        done("the hospital's consent system has it; nothing was sent, and nobody outside can tell who it was")

    async def run_ends(self, run_id: str) -> None:
        self.step("The others finish the run")
        status = await self.ended(run_id)
        self.need(status.state == "FINISHED", "who was in which round's model:")
        for one in status.rounds_done:
            say(f"    round {one.number}: {', '.join(one.cohort)}")
        self.need(set(status.rounds_done[-1].cohort) == set(STAY), f"none of {', '.join(LEAVE)} is in the last one")

    async def leaves_afterwards(self, run_id: str) -> None:
        """The short tour's only hospital that leaves, once the run is over."""
        name = AFTER_UNMASK
        self.step(f"The run ends; then {name} leaves, whose patients the model learnt from")
        status = await self.ended(run_id)
        self.need(status.state == "FINISHED", f"{len(status.rounds_done)} round by {', '.join(self.hospitals)}")
        async with LocalSite.open(self.settings(name)) as site:
            ended = await site.withdraw(self.study.name, "stop_future")
        self.need(ended == 1, f"{name}: one person was enough")
        await self.receipt(await self.decide(name, "institution", "stop_future"), name)

    async def the_patient_is_out(self) -> None:
        self.step(f"North leaves the patient out by itself, and can prove it for {PATIENT} alone")
        async with LocalSite.open(self.settings("north")) as site:
            proofs = await site.prove(self.study.name, PATIENT)
        here = [one.present for one in proofs]
        shown = "".join("x" if one else "-" for one in here)
        self.need(here[0] and not here[-1], f"cohort by cohort, for its auditor, where the patient is in: {shown}")
        await self._tell_of_patient()

    async def _tell_of_patient(self) -> None:
        admin, now = self.people["north"].admin, self.sim.clock.now()
        async with LocalSite.open(self.settings("north")) as site:
            document = await site.exclusion(self.study.name, PATIENT, "stop_future")
        file = sign_documents(ConsentFile(records=(Record(document=document),)), "submit", admin.name, now, admin.key)
        async with LocalConsent.open(self.settings("north")) as site:
            await site.add(file)
        done(f"the study is told: exclusion needed from round {document.from_round}, and nothing about who")

    async def decide(self, name: str, kind: str, effect: Effect) -> dict[str, Any]:
        """Two officers decide what becomes of the models, the scheduler carries it out; the proven case."""
        case = await self.case(name, kind, "EFFECTIVE")
        fields = {key: case[key] for key in ("withdrawal", "site_id", "study_id", "study_digest")}
        now = self.sim.clock.now()
        document = WithdrawalEffect.model_validate({**fields, "effect": effect, "decided_at": now.isoformat()})
        record = signed(document, self.officers[0], self.officers[1:], now)
        await self.operator.add_documents(ConsentFile(records=(record,)))
        proven = await self.case(name, kind, "PROVEN")
        done(f"{' and '.join(one.name for one in self.officers)} decided: {effect}; it is carried out")
        versions = ", ".join(str(one["model"]["version"]) for one in proven["models"])
        say(f"    model versions that learnt from it: {versions}; retired now: {len(proven['retired'])}")
        return proven

    async def future_ends(self) -> None:
        self.step("Officers decide on three of the cases: future use ends, and the models stay")
        for name in (BEFORE_UPLOAD, AFTER_UPLOAD, BEFORE_UNMASK):
            await self.receipt(await self.decide(name, "institution", "stop_future"), name)

    async def train_again(self, run_id: str) -> None:
        self.step(f"Officers decide on {AFTER_UNMASK}: the study is trained again, without what learnt from it")
        again = await self._retrain(AFTER_UNMASK, "institution", run_id, AFTER_UNMASK)
        cohorts = {site for one in again.rounds_done for site in one.cohort}
        self.need(cohorts == set(STAY), f"by {', '.join(sorted(cohorts))}")
        await self._retired(run_id)

    async def train_again_for_the_patient(self, run_id: str) -> str:
        """The run that takes the place of the one that the patient was in."""
        self.step("The same for the patient of north: trained again by all who stay, north without that person's rows")
        async with LocalSite.open(self.settings("north")) as site:
            before = len(await site.prove(self.study.name, PATIENT))
        again = await self._retrain("north", "patient_set", run_id, "patient")
        async with LocalSite.open(self.settings("north")) as site:
            here = [one.present for one in (await site.prove(self.study.name, PATIENT))[before:]]
        self.need(here and not any(here), f"{PATIENT} is in none of north's {len(here)} cohorts of that run")
        await self._retired(run_id)
        return str(again.run_id)

    async def _retrain(self, name: str, kind: str, run_id: str, word: str) -> RunStatus:
        case = await self.decide(name, kind, "retrain")
        again = case["retrained"]
        began = "nothing" if again["start"] is None else f"version {again['start']['version']}"
        self.need(again["run_id"] != run_id, f"trained again from {began} ({again['basis']}) as run {again['run_id']}")
        status = await self.ended(again["run_id"])
        self.need(status.state == "FINISHED", f"with {len(status.rounds_done)} rounds")
        await self.receipt(case, word)
        return status

    async def _retired(self, run_id: str) -> None:
        try:
            await self.operator.model_bundle(run_id)
        except OperatorError as error:
            self.need(error.code == "MODEL_RETIRED", f"the old model is handed out no more: {error}")
        else:
            raise TourFailed("the old model is still handed out")

    async def receipt(self, case: dict[str, Any], word: str) -> Receipt:
        """Fetch the receipt, and check it as the hospital does: offline, against the officers' keys."""
        file = await self.operator.receipt(case)
        path = self.out / f"receipt-{word}.json"
        path.write_text(file.model_dump_json(indent=1) + "\n", encoding="utf-8")
        pin = GovernancePin.of(self.sim.files.trust)
        proven = verify_receipt(file, pin)
        done(f"{path.name} verifies offline: entries {proven.recorded_at} and {proven.proven_at} of the study's log")
        forged = file.model_copy(update={"statement": file.statement.replace('"sig":"', '"sig":"0', 1)})
        try:
            verify_receipt(forged, pin)
        except ReceiptRefused:
            return proven
        raise TourFailed("a forged receipt was accepted")

    # Proving

    async def release(self, run_id: str) -> None:
        self.step("The new model is a candidate until an officer releases it")
        status = await self.operator.run(run_id)
        await self.sim.fetch(run_id, status)
        attestation = (self.out / "model" / ATTESTATION).read_bytes()
        candidate = Candidate.of(attestation, self.sim.files.trust.services.aggregator)
        olga = self.officers[0]
        stranger = sign_release(candidate, "Eve", self.sim.clock.now(), IdentityKey.generate())
        try:
            await self.operator.sign_release(run_id, stranger)
        except OperatorError as error:
            self.need(error.code == "RELEASE_REFUSED", "somebody who is no officer cannot release it")
        else:
            raise TourFailed("a stranger released the model")
        signed_by_olga = sign_release(candidate, olga.name, self.sim.clock.now(), olga.key)
        await self.operator.sign_release(run_id, signed_by_olga)

        async def released() -> bool:
            return bool((await self.operator.release(run_id))["state"] == "released")

        await self.until(released, "the release")
        done(f"{olga.name} reviewed its card and released it, and the aggregator with her")
        await self.sim.fetch(run_id, status)
        await self._load(run_id, str(candidate.bound["study"]))

    async def _load(self, run_id: str, study: str) -> None:
        """The model as anybody gets it, with the proof that the hospitals cosigned."""
        archive, lacking = await cosigned(self.operator, await self.operator.model_bundle(run_id), study)
        self.need(not lacking, "a quorum of the hospitals cosigned the log with its release")
        path = self.out / "model.zip"
        await asyncio.to_thread(path.write_bytes, archive)
        trust = Trust(self.sim.files.trust, GovernancePin.of(self.sim.files.trust))
        model = await asyncio.to_thread(load_model, path, trust)
        took = ", ".join(one.name for one in model.schema.inputs)
        self.need(model.state == "released", f"whoever trusts the officers loads it, and may give it {took}")

    async def verify(self) -> None:
        self.step("Anybody verifies the whole story offline, with the officers' keys")
        keys = list(self.sim.files.trust.governance_keys)
        report = await asyncio.to_thread(verify_bundle, self.out / "audit", keys)
        say("\n".join(f"    {line}" for line in report.text().splitlines()))
        self.need(report.verified, "the log, the permits, the withdrawals, the lineage and the release are proven")
        self._lineage()
        with tempfile.TemporaryDirectory(prefix="cohortium-tour-") as folder:
            forged = Path(folder) / "result"
            await asyncio.to_thread(shutil.copytree, self.out, forged)
            papers = forged / "audit" / "consent.json"
            papers.write_text(papers.read_text(encoding="utf-8").replace('"HMB"', '"GRU"'), encoding="utf-8")
            found = await asyncio.to_thread(verify_bundle, forged / "audit", keys)
            (wrong,) = [check for check in found.checks if check.state == "failed"]
            self.need(not found.verified, f"one data-use term changed afterwards is found: {wrong.fact}")

    def _lineage(self) -> None:
        bundle = open_bundle(self.out / "audit")
        trust, manifests = bundle.trust(), bundle.manifests()
        entries, _ = read_entries(bundle.entries(), known_keys(trust.services, manifests), manifests[-1].study_id)
        lineage = prov_json(entries, f"{trust.federation}/audit/{manifests[-1].study_id}")
        path = self.out / "lineage.prov.json"
        path.write_text(json.dumps(lineage, indent=1) + "\n", encoding="utf-8")
        done(f"{path.name}: {len(lineage['entity'])} models and bundles, {len(lineage['activity'])} windows, W3C PROV")


def _vouched(person: Person, officers: Sequence[Person], now: datetime) -> Any:
    card = person.card(now)
    for officer in officers:
        card = sign_card(card, officer.key)
    return card


def _decision(person: str, decision: str, day: str) -> str:
    """One FHIR R5 Consent, as a hospital's system writes it."""
    who = {"resourceType": "Consent", "subject": {"reference": f"Patient/{person}"}, "date": day}
    return json.dumps(who | {"status": "active", "decision": decision}) + "\n"


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def _tables(folder: Path, hospitals: Sequence[str]) -> tuple[SiteTable, ...]:
    """Made-up patients: 60 a hospital, all of whom said yes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for place, name in enumerate(hospitals):
        rows, decisions = ["mrn,age,chol,ill"], []
        for number in range(PERSONS):
            age, chol = 30 + (number * 7 + place * 3) % 55, 150 + (number * 37 + place * 11) % 200
            ill = int(age + chol / 8 + (number * 13 + place) % 17 > 92)
            rows.append(f"P-{number:04},{age},{chol},{ill}")
            decisions.append(_decision(f"P-{number:04}", "permit", "2026-01-01"))
        path = folder / f"{name}.csv"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        path.with_suffix(".ndjson").write_text("".join(decisions), encoding="utf-8")
        made.append(SiteTable(name, path.resolve()))
    return tuple(made)


async def tour(out: Path, *, amqp_url: str | None, database_url: str | None) -> None:
    """Walk through it all; the result lies in `out`. Raises `TourFailed`."""
    plan = Plan(
        study=parse_study(STUDY),
        sites=_tables(out / "hospitals", HOSPITALS),
        out=out,
        amqp_url=amqp_url,
        database_url=database_url,
        slow={BEFORE_UPLOAD: TRAINS_S},
    )
    async with _telling(plan) as story:
        await story.enrol()
        run_id = await story.submit()
        await story.agree()
        await story.a_patient_leaves(run_id)
        await story.hospitals_leave(run_id)
        await story.run_ends(run_id)
        await story.the_patient_is_out()
        await story.future_ends()
        await story.train_again(run_id)
        await story.release(await story.train_again_for_the_patient(run_id))
        await story.verify()


async def short_tour(out: Path) -> None:
    """The same way from the first document to the proof, in one process: three hospitals, one round, and one of
    them leaves when it is over. Raises `TourFailed`."""
    plan = Plan(
        study=parse_study(STUDY.replace("rounds: 5", "rounds: 1").replace("evaluate_every: 5", "evaluate_every: 1")),
        sites=_tables(out / "hospitals", (*STAY[:2], AFTER_UNMASK)),
        out=out,
        amqp_url=None,
        database_url=None,
    )
    async with _telling(plan) as story:
        await story.enrol()
        run_id = await story.submit()
        await story.agree()
        await story.leaves_afterwards(run_id)
        await story.release(run_id)
        await story.verify()


@asynccontextmanager
async def _telling(plan: Plan) -> AsyncIterator[Tour]:
    """A federation of this plan for as long as the story is told."""
    work = Path(tempfile.mkdtemp(prefix="cohortium-"))
    simulation = Hospitals(plan, work)
    try:
        yield Tour(simulation, plan.out)
    finally:
        await simulation.clear()
        shutil.rmtree(work, ignore_errors=True)


async def _walk(options: argparse.Namespace) -> None:
    if options.short:
        say("The short governance tour, in this process. Keys, people and patients are made up and thrown away.")
        with ended_by_sigterm():
            await short_tour(options.out)
        return
    amqp_url, database_url = options.amqp, options.database
    if options.embedded:
        amqp_url = database_url = None
    else:
        plan = Plan(parse_study(STUDY), (), options.out, amqp_url=amqp_url, database_url=database_url)
        try:
            await check_servers(plan)
        except PlanError as missing:
            say(f"{missing}\nSo everything runs in this process, without a server.")
            amqp_url = database_url = None
    parts = "a real RabbitMQ and PostgreSQL" if amqp_url else "parts in this process"
    say(f"The governance tour, on {parts}. Keys, people and patients are made up and thrown away.")
    with ended_by_sigterm():
        await tour(options.out, amqp_url=amqp_url, database_url=database_url)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every step did what it says. 1: one did not."""
    parser = argparse.ArgumentParser(prog="python -m cohortium_sim.tour", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("cohortium-tour"), help="folder for what comes of it")
    parser.add_argument("--amqp", default=AMQP, help="RabbitMQ's URL")
    parser.add_argument("--database", default=DATABASE, help="PostgreSQL's URL")
    parser.add_argument("--embedded", action="store_true", help="without servers, in this process")
    parser.add_argument("--short", action="store_true", help="three hospitals and one round, in this process")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "log.jsonl").open("w", encoding="utf-8") as stream:
        configure_logging(level="info", output="json", service="tour", stream=stream)
        try:
            asyncio.run(_walk(options))
        except (CohortiumError, OperatorError) as error:
            say(f"\nThe tour stopped: {error}\nThe log is {options.out / 'log.jsonl'}.")
            return 1
        finally:
            configure_logging(stream=sys.stderr)
    say(f"\nEverything is in {options.out}: check it again with `cohortium verify {options.out}`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
