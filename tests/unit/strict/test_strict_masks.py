"""Masks of strict steps: only the sum of all opens, each mask is used once, and masked words look like noise."""

import numpy as np
import pytest
from federation_in_memory import digest
from strict_stage import Roster, some_values

from cohortium_protocol.errors import IntegrityFault, NotAMember, OwnEntryChanged, StepReused
from cohortium_protocol.strict.masks import StrictSite, open_sum
from cohortium_protocol.strict.steps import CANARIES, START

CHAIN = digest("chain")


def words(masked: bytes) -> np.ndarray:
    return np.frombuffer(masked, dtype="<u8")


@pytest.fixture(scope="module")
def roster() -> Roster:
    return Roster.of(5)


class TestSums:
    def test_all_open_and_no_fewer_do(self, roster: Roster) -> None:
        values = some_values(5, 40)
        masked = [words(roster.strict_site(i).mask(3, CHAIN, values[i - 1])) for i in range(1, 6)]
        assert open_sum(sum(masked), 5).tolist() == sum(values).tolist()
        for left_out in range(5):
            rest = [i for i in range(5) if i != left_out]
            partial = sum(masked[i] for i in rest)
            with pytest.raises(IntegrityFault):
                open_sum(partial, 4)
            assert not np.any(partial[:-CANARIES] == sum(values[i] for i in rest).view(np.uint64))

    def test_negative_and_extreme_numbers(self, roster: Roster) -> None:
        low = np.array([-(2**63) + 4, 0, -1, 2**63 - 1], dtype=np.int64)
        rest = np.array([-1, 0, -1, 0], dtype=np.int64)
        masked = [words(roster.strict_site(i).mask(0, START, low if i == 1 else rest)) for i in range(1, 6)]
        assert open_sum(sum(masked), 5).tolist() == [-(2**63), 0, -5, 2**63 - 1]

    @pytest.mark.parametrize("wrong", ["step", "chain", "twice", "missing"])
    def test_a_wrong_mask_shows_in_the_canaries(self, roster: Roster, wrong: str) -> None:
        values = some_values(5, 6)
        masked = [words(roster.strict_site(i).mask(3, CHAIN, values[i - 1])) for i in range(1, 6)]
        match wrong:
            case "step":
                masked[2] = words(roster.strict_site(3).mask(4, CHAIN, values[2]))
            case "chain":
                masked[2] = words(roster.strict_site(3).mask(3, START, values[2]))
            case "twice":
                masked.append(masked[2])
            case "missing":
                masked.pop()
        with pytest.raises(IntegrityFault):
            open_sum(sum(masked), 5)

    def test_canaries_alone_are_no_sum(self) -> None:
        with pytest.raises(IntegrityFault):
            open_sum(np.full(CANARIES, 5, dtype=np.uint64), 5)


class TestOneVectorPerStep:
    def test_a_second_vector_for_a_step_is_refused(self, roster: Roster) -> None:
        site = roster.strict_site(1)
        values = np.arange(10)
        first = site.mask(5, CHAIN, values)
        assert site.mask(5, CHAIN, values) == first
        for step, chain, other in [
            (5, CHAIN, values + 1),
            (5, CHAIN, values[:-1]),
            (5, START, values),
            (4, CHAIN, values),
            (0, CHAIN, values + 1),
        ]:
            with pytest.raises(StepReused):
                site.mask(step, chain, other)
        assert site.mask(5, CHAIN, values) == first
        assert site.mask(6, CHAIN, values + 1) != first

    def test_the_vector_is_left_as_it_was_and_may_change_afterwards(self, roster: Roster) -> None:
        site, values = roster.strict_site(2), np.arange(10)
        first = site.mask(0, START, values)
        assert values.tolist() == list(range(10))
        values[0] = 99
        with pytest.raises(StepReused):
            site.mask(0, START, values)
        values[0] = 0
        assert site.mask(0, START, values) == first

    @pytest.mark.parametrize(
        ("chain", "values"),
        [
            (b"short", np.arange(3)),
            (START, np.arange(3, dtype=np.int32)),
            (START, np.ones(3)),
            (START, np.ones((2, 2), dtype=np.int64)),
        ],
    )
    def test_what_is_no_vector_is_refused(self, roster: Roster, chain: bytes, values: np.ndarray) -> None:
        with pytest.raises(ValueError):
            roster.strict_site(1).mask(0, chain, values)

    def test_keys_of_another_entry_are_refused(self, roster: Roster) -> None:
        with pytest.raises(OwnEntryChanged):
            StrictSite(roster.view, 1, roster.sites[1].keys)
        with pytest.raises(NotAMember):
            StrictSite(roster.view, 6, roster.sites[0].keys)


@pytest.fixture(scope="module")
def masked() -> np.ndarray:
    """All words that site 2 of 4 sends over 300 steps, for one and the same small vector. Keys are fixed."""
    site = Roster.of(4).strict_site(2)
    values = np.arange(512) % 7
    return np.stack([words(site.mask(step, START, values)) for step in range(300)])


class TestLooksLikeNoise:
    def test_bytes_are_uniform(self, masked: np.ndarray) -> None:
        for place in range(8):
            counts = np.bincount(((masked >> np.uint64(8 * place)) & np.uint64(255)).ravel().astype(int), minlength=256)
            expected = masked.size / 256
            chi_square = float(((counts - expected) ** 2 / expected).sum())
            assert 150 < chi_square < 380, place  # 255 degrees of freedom: beyond it once in a million

    def test_pairs_of_steps_differ_in_half_of_their_bits(self, masked: np.ndarray) -> None:
        flips = np.bitwise_count(masked[1:] ^ masked[:-1]).sum()
        bits = masked[1:].size * 64
        assert abs(int(flips) - bits / 2) < 5 * (bits / 4) ** 0.5

    def test_no_clear_word_appears(self, masked: np.ndarray) -> None:
        assert not np.any(masked < 2**32)
        assert len(np.unique(masked)) == masked.size

    def test_differences_of_two_vectors_stay_hidden(self) -> None:
        """The same site masks x in one step and x + 1 in the next: nothing of the difference is to be seen."""
        site = Roster.of(3).strict_site(1)
        values = np.arange(4000)
        one, other = words(site.mask(0, START, values)), words(site.mask(1, START, values + 1))
        assert not np.any((other - one) == 1)
