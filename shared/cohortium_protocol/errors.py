"""What can be wrong in the protocol, in two families: theirs and ours.

`RemoteFault`: what came in breaks a rule. It is refused, and worth an audit event. `LocalFault`: we were about to break
a rule ourselves, or were asked for what cannot be done; nothing was sent. Every leaf has a stable upper-case `code`.
The `detail` names objects (an index, a window, a count) and never holds a key, a seed, a share or a record.
"""

from typing import ClassVar


class ProtocolError(Exception):
    """Base of both families."""

    code: ClassVar[str] = "PROTOCOL"

    def __init__(self, detail: str = "") -> None:
        super().__init__(f"{self.code}: {detail}" if detail else self.code)
        self.detail = detail


class RemoteFault(ProtocolError):
    """What was received breaks the protocol."""

    code = "REMOTE_FAULT"


class LocalFault(ProtocolError):
    """What we were asked to make would break the protocol."""

    code = "LOCAL_FAULT"


class BadSignature(RemoteFault, ValueError):
    """The key is unknown, or it did not make this signature over these bytes."""

    code = "BAD_SIGNATURE"


class Malformed(RemoteFault):
    """Lengths, order or encoding are not those of the protocol."""

    code = "MALFORMED"


class DocumentRefused(RemoteFault):
    """A trust document, manifest, grant or registration breaks its own rules."""

    code = "DOCUMENT_REFUSED"


class TooFewSignatures(DocumentRefused):
    """Fewer distinct pinned governance keys signed than the threshold asks for."""

    code = "TOO_FEW_SIGNATURES"


class WrongWindow(RemoteFault):
    """Made for another window, step, parameter set, roster or survivor set: a replay or a mix-up."""

    code = "WRONG_WINDOW"


class NotAMember(RemoteFault):
    """Not in the membership manifest, or not in the roster."""

    code = "NOT_A_MEMBER"


class WeakKey(RemoteFault):
    """A public key of small order: every secret derived from it would be known to all."""

    code = "WEAK_KEY"


class BaseModelRefused(RemoteFault):
    """A base model that the window does not allow, or different ones in one synchronous window."""

    code = "BASE_MODEL_REFUSED"


class RosterRefused(RemoteFault):
    """The roster is not the one that follows from the manifest, the parameters and its own entries."""

    code = "ROSTER_REFUSED"


class OwnEntryChanged(RosterRefused):
    """Our own entry is missing from the roster or is not the one we signed."""

    code = "OWN_ENTRY_CHANGED"


class HeaderRefused(RemoteFault):
    """An upload header does not agree with the roster, the vector's plan or its own commitments."""

    code = "HEADER_REFUSED"


class VectorRefused(RemoteFault):
    """The chunks are not those that the signed header names."""

    code = "VECTOR_REFUSED"


class ChunkRefused(RemoteFault):
    """A chunk frame is not well formed, or its body is not the one that was signed."""

    code = "CHUNK_REFUSED"


class TooFewSurvivors(RemoteFault):
    """The survivor set is smaller than k_min: its sum would say too much about too few."""

    code = "TOO_FEW_SURVIVORS"


class OwnHeaderChanged(RemoteFault):
    """The survivor set names us with a header that we did not send."""

    code = "OWN_HEADER_CHANGED"


class BoxRefused(RemoteFault):
    """A recovery box is not signed by its dealer for this header, does not open, or was made for another place."""

    code = "BOX_REFUSED"

    def __init__(self, dealer: int, detail: str = "") -> None:
        super().__init__(f"dealer {dealer}: {detail}" if detail else f"dealer {dealer}")
        self.dealer = dealer


class QuorumMissing(RemoteFault):
    """A certificate holds fewer distinct valid votes than it needs."""

    code = "QUORUM_MISSING"


class EchoMismatch(RemoteFault):
    """The certificate is for another survivor set than the one we echoed."""

    code = "ECHO_MISMATCH"


class NotASurvivor(RemoteFault):
    """The site is not in the certified survivor set: its upload came too late and stays masked for ever."""

    code = "NOT_A_SURVIVOR"


class UnmaskRefused(RemoteFault):
    """The sealed shares do not open, or are not those of rule R5 for this survivor set."""

    code = "UNMASK_REFUSED"


class DealerFault(RemoteFault):
    """No set of t shares rebuilds the secret that this dealer committed to."""

    code = "DEALER_FAULT"

    def __init__(self, dealer: int, detail: str = "") -> None:
        super().__init__(f"dealer {dealer}: {detail}" if detail else f"dealer {dealer}")
        self.dealer = dealer


class IntegrityFault(RemoteFault):
    """The canaries of the opened sum are wrong: some mask was not removed, or removed twice."""

    code = "INTEGRITY_FAULT"


class FrameRefused(RemoteFault):
    """A frame of a strict session is not well formed, or its tag was not made with this session's key. Whoever made it
    was not the other end, so it can be dropped and the session goes on."""

    code = "FRAME_REFUSED"


class SessionKeyRefused(RemoteFault):
    """The sealed key of a strict session does not open, or was made for another window, roster or site."""

    code = "SESSION_KEY_REFUSED"


class StepRefused(RemoteFault):
    """A site's own frame does not fit the step: another kind, length or place, or a second one with other content. The
    session cannot go on. `index` is the site's."""

    code = "STEP_REFUSED"

    def __init__(self, index: int, detail: str = "") -> None:
        super().__init__(f"site {index}: {detail}" if detail else f"site {index}")
        self.index = index


class ChainMismatch(RemoteFault):
    """The other end stands on other results of the strict session than we do, so no sum of both would open."""

    code = "CHAIN_MISMATCH"


class AgreementFailed(RemoteFault):
    """Sites of a strict session hold different bytes where all must hold the same. `differing` are the indices of those
    that differ from the first to answer; that one may be the wrong one."""

    code = "AGREEMENT_FAILED"

    def __init__(self, differing: tuple[int, ...], detail: str = "") -> None:
        super().__init__(detail)
        self.differing = differing


class ResultRefused(RemoteFault):
    """A result that the aggregator signed is not one that our step can have: this site leaves the strict session."""

    code = "RESULT_REFUSED"


class AttestationRefused(RemoteFault):
    """A signed statement is not well formed or too few of the expected keys signed it."""

    code = "ATTESTATION_REFUSED"


class LogRefused(RemoteFault):
    """A checkpoint, note or Merkle proof does not verify."""

    code = "LOG_REFUSED"


class CohortTooSmall(LocalFault):
    """Not enough sites for the thresholds."""

    code = "COHORT_TOO_SMALL"


class RingTooSmall(LocalFault):
    """The ring has no room for n sites: each could send nothing but zeros."""

    code = "RING_TOO_SMALL"


class OutOfRange(LocalFault):
    """An integer input exceeds the bound at which the sum of n sites could leave the ring."""

    code = "OUT_OF_RANGE"


class NotFinite(LocalFault):
    """The update holds a NaN or an infinity."""

    code = "NOT_FINITE"


class TooFewShares(LocalFault):
    """Fewer than t sites have sent their shares; keep asking."""

    code = "TOO_FEW_SHARES"


class SpecRefused(LocalFault):
    """This vector specification cannot be encoded."""

    code = "SPEC_REFUSED"


class OutOfOrder(LocalFault):
    """The steps of an encoding or of an opening were not done in their order."""

    code = "OUT_OF_ORDER"


class StepReused(LocalFault):
    """Something else was masked or sealed for this step of a strict session before, or a later step was (rule R1)."""

    code = "STEP_REUSED"


class OutOfBounds(LocalFault):
    """A value is larger than the public bound that the fixed-point scale was made for, so a sum could overflow."""

    code = "OUT_OF_BOUNDS"
