"""Commitments to the persons of a cohort: who was in a computation can be proved to the hospital's own auditor, person
by person, and to nobody else.

A tag is HMAC-SHA256(salt, PAE(label, context, person)). The sorted tags are the leaves of an RFC 9162 tree; its root is
published. Each cohort has a salt of its own, so roots of equal cohorts differ; the salt stays in the hospital.
"""

import hashlib
import hmac
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import Field

from cohortium_messages.governance import GrantedCohort
from cohortium_messages.ids import Bytes16, Bytes32, Wire
from cohortium_protocol import translog
from cohortium_protocol.encoding import pae
from cohortium_protocol.errors import LogRefused, RemoteFault
from cohortium_protocol.labels import COHORT_TAG

TAG_BYTES: Final = 32


class CohortProofRefused(RemoteFault):
    """What was said about a person and a cohort does not follow from its commitment."""

    code = "COHORT_PROOF_REFUSED"


class Place(Wire):
    """A leaf of the tree and the proof that it is there."""

    index: Annotated[int, Field(ge=0)]
    tag: Bytes32
    hashes: Annotated[tuple[Bytes32, ...], Field(max_length=63)]


class CohortProof(Wire):
    """That a person is, or is not, among the `size` persons that `root` commits to.

    `places`: the person's own leaf; or, of somebody who is not there, the one or two leaves between which it would be.
    """

    context: Bytes16
    salt: Bytes32
    person: Annotated[str, Field(min_length=1, max_length=512)]
    present: bool
    size: Annotated[int, Field(ge=0)]
    root: Bytes32
    places: Annotated[tuple[Place, ...], Field(max_length=2)]


def cohort_lines(cohort: GrantedCohort) -> tuple[str, ...]:
    """What whoever approves a study reads of its cohort."""
    unit = "persons" if cohort.unit == "person" else "rows, not persons: the table does not name them"
    return (
        f"  cohort: {cohort.band or 'not told, as the study promises differential privacy'} ({unit})",
        f"  consent source: {cohort.source}",
        f"  question (digest): {cohort.query_digest.hex()}",
        f"  commitment: {cohort.root.hex()}, taken {cohort.as_of:%Y-%m-%d %H:%M:%S} UTC",
    )


def person_name(text: str) -> str:
    """An identifier as it is compared: without blanks around it, and in one of Unicode's ways to write it (NFC). Two
    sources of one hospital may write the same name in two of them."""
    return unicodedata.normalize("NFC", text).strip()


def tag_of(salt: bytes, context: bytes, person: str) -> bytes:
    """The tag of one person in one cohort; `context` (16 bytes) names the cohort."""
    return hmac.digest(salt, pae(COHORT_TAG, context, person.encode()), hashlib.sha256)


def tags_of(salt: bytes, context: bytes, persons: Iterable[str]) -> list[bytes]:
    """The sorted tags of distinct persons."""
    return sorted(tag_of(salt, context, person) for person in set(persons))


def commitment(tags: Sequence[bytes]) -> bytes:
    """The root over sorted tags; of nobody, the root of the empty tree."""
    return _tree(tags).root()


def prove(tags: Sequence[bytes], salt: bytes, context: bytes, person: str) -> CohortProof:
    """Presence or absence of this person, whichever is true. `tags` are all of the cohort, sorted."""
    tag, tree = tag_of(salt, context, person), _tree(tags)
    at = bisect_left(tags, tag)
    present = at < len(tags) and tags[at] == tag
    wanted = [at] if present else [index for index in (at - 1, at) if 0 <= index < len(tags)]
    places = tuple(
        Place(index=index, tag=tags[index], hashes=tuple(tree.inclusion(index, len(tags)))) for index in wanted
    )
    return CohortProof(
        context=context,
        salt=salt,
        person=person,
        present=present,
        size=len(tags),
        root=tree.root(),
        places=places,
    )


def check_proof(proof: CohortProof, root: bytes) -> None:
    """Return if the proof says the truth about the cohort with this root; raise `CohortProofRefused` otherwise."""
    if not hmac.compare_digest(proof.root, root):
        raise CohortProofRefused("the proof is about another cohort: its root is not the one in the log")
    tag = tag_of(proof.salt, proof.context, proof.person)
    for place in proof.places:
        try:
            translog.verify_inclusion(translog.leaf_hash(place.tag), place.index, proof.size, place.hashes, root)
        except LogRefused as refused:
            raise CohortProofRefused(f"leaf {place.index} is not in the tree ({refused})") from None
    indices, tags = [place.index for place in proof.places], [place.tag for place in proof.places]
    if proof.present:
        if tags != [tag]:
            raise CohortProofRefused("the leaf is not this person's")
        return
    _check_gap(proof, root, indices, tags, tag)


def _check_gap(proof: CohortProof, root: bytes, indices: list[int], tags: list[bytes], tag: bytes) -> None:
    """The leaves are neighbours, or the first, or the last one, and the person's tag lies beyond or between."""
    if proof.size == 0:
        if indices or root != translog.EMPTY_ROOT:
            raise CohortProofRefused("an empty cohort has the root of the empty tree and no leaf")
        return
    match indices:
        case [0] if tag < tags[0]:
            return
        case [last] if last == proof.size - 1 and tags[0] < tag:
            return
        case [before, after] if after == before + 1 and tags[0] < tag < tags[1]:
            return
    raise CohortProofRefused("the leaves leave no gap in which this person would be")


def _tree(tags: Sequence[bytes]) -> translog.Tree:
    return translog.Tree.of(map(translog.leaf_hash, tags))
