"""The papers of the governance tour permit what it shows, by the policy that hospitals ask."""

from datetime import UTC, datetime, timedelta

from cohortium_messages.consent import ConsentFile
from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import SiteId
from cohortium_messages.study_file import parse_study
from cohortium_protocol.consent.authorise import Dossier, Permitted, Question, authorise
from cohortium_protocol.consent.signing import record_digest, sign_card
from cohortium_protocol.documents import UNSIGNED, GovernancePin, grant_digest, sign_grant
from cohortium_protocol.signing import IdentityKey
from cohortium_sim.tour_papers import HospitalPeople, Person, hospital_documents, signed, study_version
from cohortium_sim.tour_story import STUDY

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SITE = SiteId("00000000-0000-4000-8000-000000000001")


def test_what_the_people_of_the_tour_sign_permits_the_study() -> None:
    study, site_key = parse_study(STUDY), IdentityKey.generate()
    officers = [Person(f"Officer {number}", "officer", IdentityKey.generate()) for number in (1, 2)]
    lead, people = Person("Lena Lead", "study_lead", IdentityKey.generate()), HospitalPeople.of(SITE)
    version = study_version(study, lead, NOW)
    papers = hospital_documents(study, version, SITE, NOW)
    cards = [sign_card(person.card(NOW), site_key) for person in people.all]
    cards.append(sign_card(sign_card(lead.card(NOW), officers[0].key), officers[1].key))
    records = [signed(version, lead, officers, NOW)]
    for kind, document in papers.items():
        approvers = (people.approvers[0], officers[0]) if kind == "agreement" else people.approvers
        records.append(signed(document, people.admin, approvers, NOW))
    file = ConsentFile(people=tuple(cards), records=tuple(records))
    later = NOW + timedelta(minutes=1)
    pin = GovernancePin(frozenset(one.key.public for one in officers), 2)
    unsigned = SiteGrant(
        study_id=version.study_id,
        study_digest=study.digest(),
        site_id=SITE,
        not_before=NOW,
        not_after=NOW + timedelta(days=300),
        max_rounds=10,
        approvers=("Bea Braun", "Carl Conti"),
        basis=record_digest(papers["approval"]),
        sig=UNSIGNED,
    )
    grant = sign_grant(unsigned, site_key)
    question = Question(version.study_id, study.digest(), SITE, 1, later, knows_study=True)
    dossier = Dossier.judge(file, pin, {SITE: site_key.public}, later)
    answer = authorise(question, grant, grant_digest(grant), dossier)
    assert isinstance(answer, Permitted), answer
