"""Secrets do not show, labels and codes are distinct, signers and keys do what the envelopes need."""

import ast
from pathlib import Path

import pytest
from federation_in_memory import Federation, digest, integer_spec

import cohortium_protocol
from cohortium_messages.secure_sum import NoiseSpec, StrictSpec, VectorSpec, WindowParams
from cohortium_messages.study import Deadlines
from cohortium_protocol import errors, labels, upload, window
from cohortium_protocol.chunks import ModelKey
from cohortium_protocol.codec import RoundingStream
from cohortium_protocol.errors import BadSignature, CohortTooSmall, LocalFault, ProtocolError, RemoteFault, WeakKey
from cohortium_protocol.keys import SealKey, WindowKeys
from cohortium_protocol.masking import MaskStream
from cohortium_protocol.signing import EnvelopeSigner, IdentityKey, Keyring, service_key_id, site_key_id

SOURCES = sorted(Path(cohortium_protocol.__file__).parent.rglob("*.py"))


def all_errors(base: type[ProtocolError] = ProtocolError) -> list[type[ProtocolError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in all_errors(child))]


class TestSecrets:
    def test_no_secret_shows_in_a_repr(self) -> None:
        federation = Federation.of(3, integer_spec(10))
        prepared = upload.prepare_upload(federation.view, 0, 1, federation.site(1).keys)
        own = federation.site(1).keys
        secrets = [
            own.to_bytes()[:32],
            own.to_bytes()[32:],
            prepared.own_box,
            prepared.masks.plus[0].key,
            bytes(range(32)),
        ]
        shown = [
            own,
            prepared,
            prepared.masks,
            prepared.masks.plus[0],
            IdentityKey.from_seed(bytes(range(32))),
            SealKey.from_bytes(bytes(range(32))),
            ModelKey(bytes(range(32))),
            MaskStream(bytes(range(32))),
            RoundingStream(bytes(range(32))),
            EnvelopeSigner("site:x", IdentityKey.from_seed(bytes(range(32)))),
        ]
        for value in shown:
            for secret in secrets:
                assert repr(secret)[2:-1] not in repr(value)
                assert secret.hex() not in repr(value)

    def test_window_keys_survive_the_spool(self) -> None:
        keys = WindowKeys.generate()
        again = WindowKeys.from_bytes(keys.to_bytes())
        assert (again.mask_pk, again.seal_pk) == (keys.mask_pk, keys.seal_pk)
        with pytest.raises(ValueError):
            WindowKeys.from_bytes(bytes(63))


class TestNames:
    def test_labels_are_distinct(self) -> None:
        values = [
            value for name, value in vars(labels).items() if name.isupper() and name not in ("V", "SIGNATURE_LABEL")
        ]
        assert len(set(values)) == len(values) > 20

    def test_each_error_has_a_code_of_its_own_and_a_family(self) -> None:
        leaves = [leaf for leaf in all_errors() if leaf.__module__ == errors.__name__]
        assert len({leaf.code for leaf in leaves}) == len(leaves)
        families = [leaf for leaf in leaves if leaf is not ProtocolError]
        assert all(issubclass(leaf, RemoteFault) != issubclass(leaf, LocalFault) for leaf in families)
        assert issubclass(BadSignature, ValueError)

    def test_params_hash_covers_every_field(self) -> None:
        """A new field must find its place in `params_bytes`; then this count is raised."""
        counts = [len(model.model_fields) for model in (WindowParams, VectorSpec, Deadlines, NoiseSpec, StrictSpec)]
        assert counts == [18, 11, 6, 5, 6]

    def test_the_package_touches_no_clock_no_loop_and_no_log(self) -> None:
        banned = {"asyncio", "time", "logging", "structlog", "random", "socket", "torch", "aio_pika"}
        for path in SOURCES:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    assert not {alias.name.split(".")[0] for alias in node.names} & banned
                elif isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] not in banned
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    # Moments are compared here; which one it is now is for the caller to say.
                    assert node.func.attr not in {"now", "utcnow", "today"}, path


class TestThresholds:
    def test_the_published_table(self) -> None:
        table = {
            3: (1, 3),
            4: (1, 3),
            5: (1, 4),
            7: (2, 5),
            10: (3, 7),
            16: (5, 11),
            20: (6, 14),
            64: (21, 43),
            200: (66, 134),
        }
        for n, (c, t) in table.items():
            assert window.thresholds(n, c, 0) == window.Thresholds(t, max(3, c + 2))
        assert window.thresholds(10, 1, 5).k_min == 5

    def test_two_sets_cannot_both_be_certified_and_two_honest_sites_remain(self) -> None:
        for n in range(3, 201):
            for c in range(n - 1):
                if max(3, c + 2) <= n:
                    values = window.thresholds(n, c, 0)
                    assert 2 * (values.t - c) > n - c
                    assert values.t <= n
                    assert values.k_min - c >= 2

    @pytest.mark.parametrize(("n", "c", "floor"), [(2, 0, 0), (3, 2, 0), (5, 1, 6), (201, 1, 0)])
    def test_cohorts_out_of_range_are_refused(self, n: int, c: int, floor: int) -> None:
        with pytest.raises(CohortTooSmall):
            window.thresholds(n, c, floor)


class TestEnvelopeKeys:
    def test_key_id_and_body_are_bound(self) -> None:
        key = IdentityKey.generate()
        ring = Keyring()
        ring.add(site_key_id("x"), key.public)
        signature = EnvelopeSigner(site_key_id("x"), key).sign(b"body")
        ring.verify("site:x", b"body", signature)
        ring.add(service_key_id("audit"), key.public)
        for key_id, body in (("site:x", b"other"), ("service:audit", b"body"), ("site:y", b"body")):
            with pytest.raises(BadSignature):
                ring.verify(key_id, body, signature)
        with pytest.raises(BadSignature):
            ring.verify("site:x", b"body", b"short")
        ring.remove("site:x")
        ring.remove("site:x")
        with pytest.raises(BadSignature):
            ring.verify("site:x", b"body", signature)

    def test_weak_keys_are_not_taken(self) -> None:
        with pytest.raises(WeakKey):
            Keyring().add("site:x", bytes(32))
        with pytest.raises(BadSignature):
            Keyring({"site:x": digest("no point")}).verify("site:x", b"", bytes(64))
