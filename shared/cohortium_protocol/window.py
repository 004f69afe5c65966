"""Windows, readiness and rosters: what all members of one sum agree on before anything is masked (sections 1.3,
1.5)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

from cohortium_messages.governance import MAX_ROSTER, Manifest
from cohortium_messages.ids import SiteId
from cohortium_messages.secure_sum import NoiseSpec, Ready, Roster, StrictSpec, VectorSpec, WindowOpen, WindowParams
from cohortium_protocol import labels
from cohortium_protocol.documents import manifest_hash
from cohortium_protocol.encoding import f64, le32, le64, pae, sha256, site_bytes
from cohortium_protocol.errors import (
    BadSignature,
    BaseModelRefused,
    CohortTooSmall,
    NotAMember,
    OwnEntryChanged,
    RosterRefused,
    WrongWindow,
)
from cohortium_protocol.keys import WindowKeys, check_exchange_key
from cohortium_protocol.signing import IdentityKey, verify

NO_BASE = bytes(32)
"""`base_model_hash` of a window without base models, such as one for statistics."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """t: shares that open a secret and echoes that certify a set. k_min: least survivors that may be opened."""

    t: int
    k_min: int


@dataclass(frozen=True, slots=True)
class RosterView:
    """A roster after all its checks: the only form in which the rest of the protocol takes one.

    Indices run from 1 to n, in the order of the site ids' bytes; an index is also a Shamir x-coordinate.
    """

    window_id: bytes
    params_hash: bytes
    roster_hash: bytes
    thresholds: Thresholds
    collusion: int
    entries: tuple[Ready, ...] = field(repr=False)
    identity_pks: tuple[bytes, ...] = field(repr=False)

    @property
    def n(self) -> int:
        """How many sites take part."""
        return len(self.entries)

    @property
    def t(self) -> int:
        """Shares that open a secret, and echoes that certify a survivor set."""
        return self.thresholds.t

    @property
    def k_min(self) -> int:
        """Least survivors whose sum may be opened."""
        return self.thresholds.k_min

    @property
    def indices(self) -> range:
        """1..n."""
        return range(1, self.n + 1)

    def others(self, index: int) -> tuple[int, ...]:
        """All indices but this one, ascending."""
        return tuple(i for i in self.indices if i != index)

    def entry(self, index: int) -> Ready:
        """The readiness of one site. Raises `NotAMember` for an index outside 1..n."""
        self._check_index(index)
        return self.entries[index - 1]

    def identity_pk(self, index: int) -> bytes:
        """The pinned identity key of one site. Raises `NotAMember` for an index outside 1..n."""
        self._check_index(index)
        return self.identity_pks[index - 1]

    def index_of(self, site_id: SiteId) -> int:
        """The index of one site. Raises `NotAMember` if it is not in the roster."""
        for index, entry in enumerate(self.entries, start=1):
            if entry.site_id == site_id:
                return index
        raise NotAMember(f"site {site_id} is not in the roster")

    def _check_index(self, index: int) -> None:
        if not 1 <= index <= self.n:
            raise NotAMember(f"index {index} of {self.n}")


def thresholds(n: int, c: int, k_min_floor: int) -> Thresholds:
    """t = floor((n+c)/2)+1 and k_min = max(3, c+2, floor). Raises `CohortTooSmall` if n is below k_min or above 200.

    t: two survivor sets cannot both gather t echoes from n sites of which c collude, since 2(t-c) > n-c. k_min: an
    opened sum holds at least k_min - c >= 2 honest sites.
    """
    k_min = max(3, c + 2, k_min_floor)
    if not k_min <= n <= MAX_ROSTER:
        raise CohortTooSmall(f"{n} sites; need {k_min} to {MAX_ROSTER}")
    return Thresholds(t=(n + c) // 2 + 1, k_min=k_min)


def _vector_parts(spec: VectorSpec) -> tuple[bytes, ...]:
    return (
        spec.encoding.encode(),
        le64(spec.dimension),
        le32(spec.ring_bits),
        bytes([spec.rotate]),
        spec.rotation_seed,
        f64(spec.keep),
        spec.keep_seed,
        f64(spec.clip_norm_l2),
        f64(spec.range_factor),
        le64(spec.weight_cap),
        le32(spec.chunk_bytes),
    )


def params_bytes(params: WindowParams) -> bytes:
    """Pre-authentication encoding of every field, in the order below: what the scheduler signs.

    Text as UTF-8, `run_id` as its 16 bytes, floats as binary64, the switch as one byte, each base as LE32(version) and
    hash in one part after LE32(count).
    """
    deadlines = params.deadlines
    return pae(
        labels.PARAMS,
        params.study_id.encode(),
        params.study_digest,
        UUID(params.run_id).bytes,
        params.window_id,
        params.purpose.encode(),
        params.kind.encode(),
        le32(params.round),
        params.manifest_hash,
        le32(len(params.bases)),
        *(le32(base.version) + base.model_hash for base in params.bases),
        le32(params.max_staleness),
        *_vector_parts(params.vector),
        params.privacy_mode.encode(),
        le32(params.target_cohort),
        le32(params.least_cohort),
        f64(deadlines.ready_s),
        f64(deadlines.upload_s),
        f64(deadlines.echo_s),
        f64(deadlines.unmask_s),
        f64(deadlines.step_s),
        f64(deadlines.expire_s),
        params.aggregator_seal_pk,
        *_noise_parts(params.noise),
        *_strict_parts(params.strict),
    )


def _noise_parts(spec: NoiseSpec | None) -> tuple[bytes, ...]:
    """Nothing for a window without noise; six parts, the first of them a word, for one with it."""
    if spec is None:
        return ()
    return (
        b"noise",
        f64(spec.multiplier),
        f64(spec.sampling_rate),
        f64(spec.clip),
        f64(spec.step),
        f64(spec.site_sigma),
    )


def _strict_parts(spec: StrictSpec | None) -> tuple[bytes, ...]:
    """Nothing for a window that is not a strict session, so that it has fewer parts than any strict one."""
    if spec is None:
        return ()
    model = spec.from_model
    return (
        f64(spec.step_s),
        le32(spec.rounds),
        le32(spec.trees_done),
        spec.chain,
        b"" if model is None else le32(model.version) + model.model_hash,
        le64(spec.total_rows),
    )


def params_hash(params: WindowParams) -> bytes:
    """SHA-256 of `params_bytes`: what a site's readiness binds."""
    return sha256(params_bytes(params))


def sign_window(params: WindowParams, scheduler: IdentityKey) -> WindowOpen:
    """Open a window in the scheduler's name."""
    return WindowOpen(params=params, sig=scheduler.sign(params_bytes(params)))


def verify_window(message: WindowOpen, scheduler_pk: bytes) -> bytes:
    """The params_hash of a window that the pinned scheduler key signed; raises `BadSignature` otherwise."""
    signed = params_bytes(message.params)
    verify(scheduler_pk, signed, message.sig)
    return sha256(signed)


def ready_bytes(ready: Ready) -> bytes:
    """What a readiness signs: window, site, parameters, base model and both fresh public keys."""
    return pae(
        labels.READY,
        ready.window_id,
        site_bytes(ready.site_id),
        ready.params_hash,
        ready.base_model_hash,
        ready.mask_pk,
        ready.seal_pk,
    )


def make_ready(
    params: WindowParams, site_id: SiteId, base_model_hash: bytes, keys: WindowKeys, identity: IdentityKey
) -> Ready:
    """Trip 1: this site's signed readiness. Raises `BaseModelRefused` if the window does not allow this base."""
    _check_base(params, base_model_hash)
    unsigned = Ready(
        window_id=params.window_id,
        site_id=site_id,
        params_hash=params_hash(params),
        base_model_hash=base_model_hash,
        mask_pk=keys.mask_pk,
        seal_pk=keys.seal_pk,
        sig=bytes(64),
    )
    return unsigned.model_copy(update={"sig": identity.sign(ready_bytes(unsigned))})


def verify_ready(ready: Ready, params: WindowParams, manifest: Manifest) -> None:
    """Check one readiness: window, parameters, membership, signature, base model, keys not of small order.

    Raises `WrongWindow`, `NotAMember`, `BadSignature`, `BaseModelRefused` or `WeakKey`.
    """
    if params.manifest_hash != manifest_hash(manifest):
        raise WrongWindow("the window was opened under another manifest")
    members = {member.site_id: member.identity_pk for member in manifest.members}
    _verify_ready(ready, params, params_hash(params), members)


def _verify_ready(ready: Ready, params: WindowParams, digest: bytes, members: dict[SiteId, bytes]) -> None:
    if ready.window_id != params.window_id:
        raise WrongWindow("readiness for another window")
    if ready.params_hash != digest:
        raise WrongWindow("readiness for other parameters")
    identity_pk = members.get(ready.site_id)
    if identity_pk is None:
        raise NotAMember(f"site {ready.site_id} is not in the manifest")
    try:
        verify(identity_pk, ready_bytes(ready), ready.sig)
    except BadSignature:
        raise BadSignature(f"readiness of site {ready.site_id}") from None
    _check_base(params, ready.base_model_hash)
    check_exchange_key(ready.mask_pk)
    check_exchange_key(ready.seal_pk)


def _check_base(params: WindowParams, base_model_hash: bytes) -> None:
    allowed = {base.model_hash for base in params.bases} or {NO_BASE}
    if base_model_hash not in allowed:
        raise BaseModelRefused("the base model is not on the window's list")


def make_roster(params: WindowParams, manifest: Manifest, readies: Iterable[Ready]) -> Roster:
    """The roster of these sites, sorted, with its thresholds. Raises what `view_roster` and `thresholds` raise."""
    entries = tuple(sorted(readies, key=lambda ready: site_bytes(ready.site_id)))
    values = thresholds(len(entries), manifest.collusion, manifest.k_min_floor)
    roster = Roster(
        window_id=params.window_id,
        params_hash=params_hash(params),
        n=len(entries),
        t=values.t,
        c=manifest.collusion,
        k_min=values.k_min,
        entries=entries,
    )
    view_roster(roster, params, manifest)
    return roster


def roster_hash(roster: Roster) -> bytes:
    """Binds window, parameters, thresholds and every entry with its signature."""
    entries = (
        site_bytes(entry.site_id) + entry.base_model_hash + entry.mask_pk + entry.seal_pk + entry.sig
        for entry in roster.entries
    )
    numbers = (le32(roster.n), le32(roster.t), le32(roster.c), le32(roster.k_min))
    return sha256(pae(labels.ROSTER, roster.window_id, roster.params_hash, *numbers, *entries))


def view_roster(roster: Roster, params: WindowParams, manifest: Manifest) -> RosterView:
    """Check a roster completely (rule R3 but for the own entry). For services.

    `manifest` must have passed `documents.verify_manifest`: every signature is checked under the keys in it, so a
    server cannot bring in sites of its own.
    """
    digest = params_hash(params)
    if (roster.window_id, roster.params_hash) != (params.window_id, digest):
        raise WrongWindow("roster for another window or other parameters")
    if params.manifest_hash != manifest_hash(manifest):
        raise WrongWindow("the window was opened under another manifest")
    values = _check_numbers(roster, params, manifest)
    _check_entries(roster, params)
    members = {member.site_id: member.identity_pk for member in manifest.members}
    for entry in roster.entries:
        _verify_ready(entry, params, digest, members)
    return RosterView(
        window_id=roster.window_id,
        params_hash=digest,
        roster_hash=roster_hash(roster),
        thresholds=values,
        collusion=roster.c,
        entries=roster.entries,
        identity_pks=tuple(members[entry.site_id] for entry in roster.entries),
    )


def _check_numbers(roster: Roster, params: WindowParams, manifest: Manifest) -> Thresholds:
    try:
        values = thresholds(len(roster.entries), manifest.collusion, manifest.k_min_floor)
    except CohortTooSmall as error:
        raise RosterRefused(error.detail) from None
    if (roster.n, roster.t, roster.c, roster.k_min) != (
        len(roster.entries),
        values.t,
        manifest.collusion,
        values.k_min,
    ):
        raise RosterRefused("n, t, c or k_min do not follow from the manifest")
    if len(roster.entries) < params.least_cohort:
        raise RosterRefused(f"{roster.n} sites; the window promised at least {params.least_cohort}")
    return values


def _check_entries(roster: Roster, params: WindowParams) -> None:
    ids = [site_bytes(entry.site_id) for entry in roster.entries]
    if any(low >= high for low, high in pairwise(ids)):
        raise RosterRefused("entries are not sorted by site id, or one is there twice")
    keys = [key for entry in roster.entries for key in (entry.mask_pk, entry.seal_pk)]
    if len(set(keys)) != len(keys):
        raise RosterRefused("a public key is there twice")
    if params.kind != "buffered" and len({entry.base_model_hash for entry in roster.entries}) != 1:
        # Different models to different sites would let a server single out one site's update (Pasquini et al., CCS'22).
        raise BaseModelRefused("a synchronous or strict window has one base model")


def verify_roster(roster: Roster, params: WindowParams, manifest: Manifest, own: Ready) -> RosterView:
    """Rule R3 for a site: all of `view_roster`, and our own entry is in it, identical to what we signed.

    Raises `RosterRefused` (`OwnEntryChanged` for the last), `WrongWindow`, `NotAMember`, `BadSignature`,
    `BaseModelRefused` or `WeakKey`. The caller keeps to one roster per window.
    """
    view = view_roster(roster, params, manifest)
    if own not in view.entries:
        raise OwnEntryChanged("our readiness is not in the roster as we signed it")
    return view
