"""What the federation's own log noted of a study's: the same history, at every moment that it noted."""

from cohortium_messages.events import StudyCheckpointed
from cohortium_messages.governance import TrustDocument
from cohortium_protocol.errors import ProtocolError
from cohortium_protocol.logproof import PLATFORM, LogProof, study_log
from cohortium_protocol.signing import service_key_id
from cohortium_verify.bundle import Bundle
from cohortium_verify.log import MerkleTree
from cohortium_verify.report import Check, Failure, failed, passed

NAME = "platform log"


def check_platform(bundle: Bundle, trust: TrustDocument, study: str, tree: MerkleTree) -> Check:
    """Every proof leads into the platform's log, and what was noted there is a state of this log."""
    key = study_log(trust.federation, PLATFORM, trust.services.audit)
    failures, sizes = [], []
    for text in bundle.platform():
        try:
            proof = LogProof.parse(text)
            proof.check(key)
            _, event = proof.event(service_key_id("audit"), trust.services.audit)
        except ProtocolError as error:
            failures.append(Failure(f"a proof from the platform's log does not hold ({error})"))
            continue
        if not isinstance(event, StudyCheckpointed) or event.study_id != study:
            failures.append(Failure("a proof from the platform's log is of something else than this study's log"))
        elif event.size > tree.size:
            failures.append(Failure(f"the platform's log noted {event.size} entries: the rest was cut off", tree.size))
        elif tree.root(event.size) != event.root:
            failures.append(Failure(f"the first {event.size} entries are not those that the platform's log noted", 0))
        sizes.append(getattr(event, "size", 0))
    if failures:
        return failed(NAME, *failures)
    if not sizes:
        return passed(NAME, "the platform's log has not noted this study yet")
    fact = f"{len(sizes)} states that the platform's log noted, the last of {max(sizes)} entries, are this log's"
    return passed(NAME, fact)
