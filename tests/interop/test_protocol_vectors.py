"""Every known answer in contracts/vectors is what the code computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cohortium_messages.governance import GrantWithdrawn, Manifest, RegisterSite, SiteGrant, TrustDocument
from cohortium_messages.ids import SiteId
from cohortium_messages.secure_sum import Ready, Roster, UploadHeader, VectorSpec, WindowOpen
from cohortium_protocol import chunks, documents, keys, labels, survivors, upload, window
from cohortium_protocol.choice import chosen
from cohortium_protocol.encoding import H, le32, pae, sha256
from cohortium_protocol.errors import BadSignature, WeakKey
from cohortium_protocol.keys import SealKey, WindowKeys
from cohortium_protocol.masking import MaskPlan, MaskStream, add_masks
from cohortium_protocol.notes import VerifierKey, open_note, sign_note
from cohortium_protocol.plan import ChunkPlan
from cohortium_protocol.rotation import signs
from cohortium_protocol.shares import evaluate, rebuild
from cohortium_protocol.signing import IdentityKey, check_public_key, verify
from cohortium_protocol.translog import Node, Tree, leaf_hash
from cohortium_protocol.vectors import RoundingStream
from cohortium_protocol.window import RosterView, Thresholds

VECTORS = Path(__file__).parents[2] / "contracts" / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


STANDARDS = load("standards")
SUM = load("secure_sum")


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


class TestStandards:
    @pytest.mark.parametrize("case", STANDARDS["x25519"])
    def test_x25519(self, case: dict[str, str]) -> None:
        own = X25519PrivateKey.from_private_bytes(unhex(case["scalar"]))
        assert keys.agree(own, unhex(case["point"])).hex() == case["shared"]

    @pytest.mark.parametrize("point", STANDARDS["x25519_small_order"])
    def test_x25519_refuses_small_order(self, point: str) -> None:
        with pytest.raises(WeakKey):
            keys.check_exchange_key(unhex(point))

    @pytest.mark.parametrize("case", STANDARDS["ed25519"])
    def test_ed25519(self, case: dict[str, str]) -> None:
        key = IdentityKey.from_seed(unhex(case["seed"]))
        assert key.public.hex() == case["public"]
        assert key.sign(unhex(case["message"])).hex() == case["signature"]
        verify(key.public, unhex(case["message"]), unhex(case["signature"]))
        with pytest.raises(BadSignature):
            verify(key.public, unhex(case["message"]) + b"x", unhex(case["signature"]))

    def test_ed25519_refuses_small_order(self) -> None:
        neutral = bytes([1]) + bytes(31)
        with pytest.raises(WeakKey):
            check_public_key(neutral)
        # R = neutral element and s = 0 satisfy the plain equation for every message.
        with pytest.raises(BadSignature):
            verify(neutral, b"any message", neutral + bytes(32))

    @pytest.mark.parametrize("case", STANDARDS["hkdf_sha256"])
    def test_hkdf(self, case: dict[str, str]) -> None:
        okm = keys.hkdf(unhex(case["ikm"]), unhex(case["salt"]), unhex(case["info"]), len(case["okm"]) // 2)
        assert okm.hex() == case["okm"]

    def test_aes256_ctr(self) -> None:
        case = STANDARDS["aes256_ctr"]
        stream = MaskStream(unhex(case["key"]))
        start = 16 * int(case["counter"], 16)
        plaintext = unhex(case["plaintext"])
        mask = stream.keystream(start, len(plaintext))
        assert bytes(a ^ b for a, b in zip(plaintext, mask, strict=True)).hex() == case["ciphertext"]
        assert stream.keystream(start + 21, 9) == mask[21:30]

    @pytest.mark.parametrize("case", STANDARDS["pae"])
    def test_pae(self, case: dict[str, Any]) -> None:
        assert pae(*(unhex(part) for part in case["parts"])).hex() == case["encoded"]

    def test_merkle_tree(self) -> None:
        nodes: dict[Node, bytes] = {}
        tree = Tree(0, nodes.__getitem__, nodes.__setitem__)
        for leaf, root in zip(STANDARDS["merkle_tree"]["leaves"], STANDARDS["merkle_tree"]["roots"], strict=True):
            tree.append(leaf_hash(unhex(leaf)))
            assert tree.root().hex() == root

    def test_signed_note(self) -> None:
        case = STANDARDS["signed_note"]
        key = VerifierKey.parse(case["verifier_key"])
        assert str(key) == case["verifier_key"]
        assert open_note(case["note"], (key,)) == case["note"].split("\n\n")[0] + "\n"

    def test_own_notes_have_the_form_of_the_published_one(self) -> None:
        key = IdentityKey.from_seed(bytes(32))
        note = sign_note("text\n", "name", key)
        assert open_note(note, (VerifierKey("name", key.public),)) == "text\n"


class Sites:
    """The three sites of secure_sum.json, up to their roster."""

    def __init__(self) -> None:
        sites = SUM["sites"]
        self.keys = [WindowKeys.from_bytes(unhex(site["mask_sk"] + site["seal_sk"])) for site in sites]
        self.identities = [IdentityKey.from_seed(unhex(site["identity_seed"])) for site in sites]
        self.self_seeds = [unhex(site["self_seed"]) for site in sites]
        self.entries = tuple(self._entry(i) for i in range(3))
        self.roster = Roster(
            window_id=unhex(SUM["window_id"]),
            params_hash=unhex(SUM["params_hash"]),
            n=SUM["n"],
            t=SUM["t"],
            c=SUM["c"],
            k_min=SUM["k_min"],
            entries=self.entries,
        )
        self.view = RosterView(
            window_id=self.roster.window_id,
            params_hash=self.roster.params_hash,
            roster_hash=window.roster_hash(self.roster),
            thresholds=Thresholds(SUM["t"], SUM["k_min"]),
            collusion=SUM["c"],
            entries=self.entries,
            identity_pks=tuple(identity.public for identity in self.identities),
        )

    def _entry(self, i: int) -> Ready:
        unsigned = Ready(
            window_id=unhex(SUM["window_id"]),
            site_id=SiteId(SUM["sites"][i]["site_id"]),
            params_hash=unhex(SUM["params_hash"]),
            base_model_hash=unhex(SUM["base_model_hash"]),
            mask_pk=self.keys[i].mask_pk,
            seal_pk=self.keys[i].seal_pk,
            sig=bytes(64),
        )
        return unsigned.model_copy(update={"sig": self.identities[i].sign(window.ready_bytes(unsigned))})

    def prepared(self, i: int) -> upload.PreparedUpload:
        seed = self.self_seeds[i]
        randomness = upload.Randomness(token=lambda _: seed)
        return upload.prepare_upload(self.view, SUM["step"], i + 1, self.keys[i], randomness)

    def masked(self, i: int) -> np.ndarray[Any, Any]:
        words = np.array(SUM["sites"][i]["input"], dtype=np.int64).astype(np.uint32)
        add_masks(words, self.prepared(i).masks, 0)
        return words

    def header(self, i: int) -> UploadHeader:
        root = upload.vec_root([sha256(self.masked(i).tobytes())])
        return upload.sign_upload(self.prepared(i), root, SUM["vec_len"], self.identities[i])


class TestSecureSum:
    sites = Sites()

    def test_readiness_and_roster(self) -> None:
        assert [keys.mask_pk.hex() for keys in self.sites.keys[:2]] == SUM["mask_pk"]
        assert self.sites.entries[0].sig.hex() == SUM["ready_sig_1"]
        assert self.sites.view.roster_hash.hex() == SUM["roster_hash"]

    def test_key_schedule(self) -> None:
        own, view = self.sites.keys, self.sites.view
        assert keys.agree(own[0].mask, own[1].mask_pk).hex() == SUM["x25519_12"]
        seeds = {f"{u}{v}": seed for u in (1, 2) for v, seed in upload.pair_seeds(view, 0, u, own[u - 1]).items()}
        assert {edge: seeds[edge].hex() for edge in ("12", "13", "23")} == SUM["pair_seeds"]
        assert upload.pair_seeds(view, 0, 3, own[2]) == {1: seeds["13"], 2: seeds["23"]}
        key = keys.prg_key(seeds["12"], "pair", view.roster_hash, 0)
        assert key.hex() == SUM["prg_key_12_pair"]
        stream = MaskStream(key).keystream(0, 16)
        assert stream.hex() == SUM["keystream_12"]
        assert np.frombuffer(stream, dtype="<u4").tolist() == SUM["keystream_12_words"]
        self_key = keys.prg_key(self.sites.self_seeds[0], "self", view.roster_hash, 0)
        assert self_key.hex() == SUM["prg_key_1_self"]

    def test_commitments_and_box_context(self) -> None:
        prepared, root = self.sites.prepared(0), self.sites.view.roster_hash
        assert prepared.self_commit.hex() == SUM["self_commit_1"]
        assert prepared.edge_commits[0].hex() == SUM["edge_commit_12"]
        assert self.sites.prepared(1).edge_commits[0].hex() == SUM["edge_commit_12"]
        assert upload.edges_root(self.sites.prepared(2).edge_commits).hex() == SUM["edges_root_3"]
        assert upload.box_context(root, 0, 1, 2).hex() == SUM["box_context_1_to_2"]

    def test_masked_vectors_and_their_sum(self) -> None:
        masked = [self.sites.masked(i) for i in range(3)]
        assert [words.tolist() for words in masked] == [site["masked"] for site in SUM["sites"]]
        total = masked[0] + masked[1] + masked[2]
        own = tuple(
            MaskStream(keys.prg_key(seed, "self", self.sites.view.roster_hash, 0)) for seed in self.sites.self_seeds
        )
        add_masks(total, MaskPlan((), own), 0)
        assert total.view(np.int32).tolist() == SUM["sum"]

    def test_headers_survivors_and_echo(self) -> None:
        headers = [self.sites.header(i) for i in range(3)]
        assert headers[2].vec_root.hex() == SUM["vec_root_3"]
        hashes = [upload.header_hash(header) for header in headers]
        assert (hashes[0].hex(), hashes[2].hex()) == (SUM["header_hash_1"], SUM["header_hash_3"])
        everyone = survivors.survivor_set(self.sites.view, 0, dict(enumerate(hashes, start=1)))
        assert everyone.digest.hex() == SUM["survivors_hash_123"]
        fields = (self.sites.view.window_id, self.sites.view.roster_hash, le32(0), b"\x05", hashes[0], hashes[2])
        assert H(labels.SURVIVORS, *fields).hex() == SUM["survivors_hash_13"]
        signed = self.sites.identities[0].sign(survivors.echo_bytes(everyone.digest, 1))
        assert signed.hex() == SUM["echo_sig_1_of_123"]

    def test_shamir(self) -> None:
        case, secret = SUM["shamir"], self.sites.self_seeds[0]
        coefficients = [int.from_bytes(secret, "little"), *case["coefficients"]]
        shares = {int(x): unhex(share) for x, share in case["shares"].items()}
        assert {x: evaluate(coefficients, x).to_bytes(32, "little") for x in shares} == shares
        chosen_shares = {x: shares[x] for x in case["rebuild_from"]}
        assert rebuild(chosen_shares, 3, lambda seed: seed == secret) == secret


class TestWindow:
    case = load("window")

    @pytest.mark.parametrize("vector", [case, *case["strict"]], ids=["update", "strict", "strict from a model"])
    def test_parameters_and_their_signature(self, vector: dict[str, Any]) -> None:
        message = WindowOpen.model_validate(vector["open"])
        assert window.params_bytes(message.params).hex() == vector["params_bytes"]
        scheduler = IdentityKey.from_seed(unhex(self.case["scheduler_seed"]))
        assert window.sign_window(message.params, scheduler) == message
        assert window.verify_window(message, scheduler.public).hex() == vector["params_hash"]


class TestDocuments:
    case = load("documents")
    officers = tuple(IdentityKey.from_seed(unhex(seed)) for seed in case["governance_seeds"])
    site = IdentityKey.from_seed(unhex(case["site_identity_seed"]))

    def test_manifest(self) -> None:
        manifest = Manifest.model_validate(self.case["manifest"])
        assert documents.manifest_bytes(manifest).hex() == self.case["manifest_bytes"]
        assert documents.manifest_hash(manifest).hex() == self.case["manifest_hash"]
        signed = manifest.model_copy(update={"signatures": ()})
        for officer in self.officers[:2]:
            signed = documents.sign_manifest(signed, officer)
        assert signed == manifest

    def test_trust_document(self) -> None:
        trust = TrustDocument.model_validate(self.case["trust"])
        assert sha256(documents.trust_bytes(trust)).hex() == self.case["trust_sha256"]
        documents.verify_trust(trust, documents.GovernancePin.of(trust))

    def test_grant_and_withdrawal(self) -> None:
        grant = SiteGrant.model_validate(self.case["grant"])
        assert documents.grant_digest(grant).hex() == self.case["grant_digest"]
        assert documents.sign_grant(grant, self.site) == grant
        withdrawal = GrantWithdrawn.model_validate(self.case["withdrawal"])
        assert documents.sign_withdrawal(withdrawal, self.site) == withdrawal

    def test_registration(self) -> None:
        case = self.case["registration"]
        message = RegisterSite.model_validate(case["message"])
        made = documents.make_registration(case["token"], case["federation"], message.site_id, self.site)
        assert made == message
        documents.verify_registration(message, case["token"], case["federation"])


class TestCodec:
    case = load("codec")

    def test_rotation_signs(self) -> None:
        case = self.case["rotation"]
        bits = signs(unhex(case["seed"]), case["first"], case["columns"])
        assert np.packbits(bits.reshape(-1), bitorder="little").tobytes().hex() == case["sign_bits"]

    def test_choice_of_coordinates(self) -> None:
        seed, small, large = (self.case["choice"][name] for name in ("seed", "small", "large"))
        blocks = list(chosen(unhex(seed), small["dimension"], small["kept"]))
        assert [places.tolist() for _, _, places in blocks] == [small["coordinates"]]
        coordinates = [
            block.start + places for block, _, places in chosen(unhex(seed), large["dimension"], large["kept"])
        ]
        assert sha256(np.concatenate(coordinates).astype("<i8").tobytes()).hex() == large["sha256_le64"]

    def test_rounding_numbers(self) -> None:
        case = self.case["rounding"]
        expected = case["uniforms_times_2_24"]
        uniforms = RoundingStream(unhex(case["seed"]))(case["start"], len(expected))
        assert [int(uniform * 2**24) for uniform in uniforms] == expected

    def test_packing_of_12_bit_words(self) -> None:
        case = self.case["pack12"]
        spec = VectorSpec(
            encoding="grid",
            dimension=1000,
            ring_bits=12,
            rotate=True,
            rotation_seed=bytes(32),
            keep=1,
            keep_seed=bytes(32),
            clip_norm_l2=1,
            range_factor=6,
            weight_cap=1,
            chunk_bytes=2048,
        )
        plan = ChunkPlan.of(spec)
        words = np.array(case["words"], dtype=np.uint16)
        assert plan.pack(0, words).hex() == case["wire"]
        assert plan.unpack(0, unhex(case["wire"])).tolist() == case["words"]


class TestFrames:
    def test_chunk_frame(self) -> None:
        case = load("frames")["chunk"]
        frame = unhex(case["frame"])
        header = chunks.open_header(frame, unhex(case["identity_pk"]))
        place = chunks.ChunkPlace(
            unhex(case["window_id"]), case["step"], case["index"], case["chunk"], case["chunk_count"]
        )
        assert header.place == place
        content = chunks.open_body(frame, header, SealKey.from_bytes(unhex(case["seal_sk"])))
        assert content.hex() == case["content"]

    def test_model_frame(self) -> None:
        case = load("frames")["model"]
        site = SealKey.from_bytes(unhex(case["site_seal_sk"]))
        key = chunks.unwrap_model_key(unhex(case["wrapped_key"]), case["run_id"], case["version"], site)
        assert key.secret.hex() == case["key"]
        header, content = chunks.open_model_frame(unhex(case["frame"]), key, unhex(case["aggregator_pk"]))
        assert header.place == chunks.ModelPlace(case["run_id"], case["version"], case["chunk"], case["chunk_count"])
        assert content.hex() == case["content"]
