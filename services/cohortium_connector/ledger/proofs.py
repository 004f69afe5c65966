"""What gives charged steps back: certificates of the secure sum, verified again here, and the end of a run."""

from dataclasses import dataclass
from typing import Literal

from cohortium_connector.ledger.errors import ProofRefused
from cohortium_messages.governance import Reason
from cohortium_messages.ids import SiteId
from cohortium_messages.secure_sum import AbortCert, EchoCert
from cohortium_protocol.errors import RemoteFault
from cohortium_protocol.survivors import frees_update, verify_abort_cert
from cohortium_protocol.window import RosterView


@dataclass(frozen=True, slots=True)
class Aborted:
    """So many sites promised never to unmask the window that no sum of it can open (rule R6b)."""

    view: RosterView
    cert: AbortCert


@dataclass(frozen=True, slots=True)
class Excluded:
    """The one survivor set of the window that can be opened leaves this site out (rule R6a)."""

    view: RosterView
    cert: EchoCert


@dataclass(frozen=True, slots=True)
class RunOver:
    """This site does nothing more for the run: it ended, or the hospital left. Gives back what was never begun, and
    makes sure that it never is."""

    reason: Reason


Proof = Aborted | Excluded | RunOver


def checked(proof: Aborted | Excluded, site_id: SiteId, identity_pk: bytes) -> Literal["ABORT_CERT", "ECHO_CERT"]:
    """What the certificate proves of this site's upload. Raises `ProofRefused` unless it is valid for a roster that
    holds this site under its own key, and shows that the upload stays masked for ever."""
    view = proof.view
    try:
        index = view.index_of(site_id)
        if view.identity_pk(index) != identity_pk:
            raise ProofRefused("the roster names this site with another key; its steps stay charged")
        match proof:
            case Aborted(cert=cert):
                verify_abort_cert(view, cert)
                return "ABORT_CERT"
            case Excluded(cert=cert):
                if not frees_update(view, cert, index):
                    raise ProofRefused("the certified set holds this site's upload; its steps stay charged")
                return "ECHO_CERT"
    except RemoteFault as fault:
        raise ProofRefused(f"the certificate is not valid ({fault.code}); the steps stay charged") from None
