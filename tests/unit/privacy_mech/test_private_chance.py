"""Streams, Poisson samples and Gaussian noise: keyed, independent, repeatable, and of the right law."""

import hashlib
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from private_stage import randomness
from scipy import stats

from cohortium_connector.training.dp_random import (
    AT_ONCE,
    Randomness,
    Stream,
    add_gaussian,
    choose_records,
    grid_step,
    normals,
    poisson_sample,
)

LEAST_P = 1e-4


def test_words_are_the_key_stream_of_aes_256_in_counter_mode() -> None:
    key = bytes(range(32))
    stream = Stream(key)
    found = np.concatenate([stream.words(3), stream.words(0), stream.words(5)])
    expected = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(64))
    assert found.tobytes() == expected
    assert found.dtype == np.uint64


def test_streams_are_repeated_by_seed_context_purpose_and_step_and_by_nothing_less() -> None:
    seed = hashlib.sha256(b"seed").digest()
    base = Randomness(seed)
    first = base.stream("noise", 3).words(8).tolist()
    assert Randomness(seed).stream("noise", 3).words(8).tolist() == first
    others = [
        base.stream("noise", 4),
        base.stream("sample", 3),
        base.bound(b"").stream("noise", 3),
        base.bound(b"model", b"rows").stream("noise", 3),
        base.bound(b"modelrows").stream("noise", 3),
        base.bound(b"model", b"rows2").stream("noise", 3),
        Randomness(hashlib.sha256(b"another").digest()).stream("noise", 3),
        Randomness.fresh().stream("noise", 3),
        Randomness.fresh().stream("noise", 3),
    ]
    words = [tuple(other.words(8).tolist()) for other in others]
    assert len({*words, tuple(first)}) == len(words) + 1


def test_secrets_do_not_show_and_short_seeds_are_refused() -> None:
    secret = bytes(range(32))
    for shown in (repr(Randomness(secret)), repr(Randomness(secret).stream("noise")), str(Randomness(secret))):
        assert "***" in shown
        assert secret.hex() not in shown
    with pytest.raises(ValueError, match="31 bytes"):
        Randomness(secret[:31])


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.5, 0.97])
def test_each_patient_is_sampled_at_the_rate_on_its_own(rate: float) -> None:
    own = randomness(f"poisson {rate}")
    samples = [poisson_sample(own.stream("sample", step), 1000, rate) for step in range(400)]
    sizes = np.array([len(sample) for sample in samples])
    assert stats.binomtest(int(sizes.sum()), 400_000, rate).pvalue > LEAST_P
    spread = sizes.var() * 400 / (1000 * rate * (1 - rate))
    assert 1e-4 < stats.chi2.cdf(spread, 399) < 1 - 1e-4
    hits = np.bincount(np.concatenate(samples), minlength=1000)
    assert 1e-4 < stats.chi2.cdf(((hits - 400 * rate) ** 2 / (400 * rate * (1 - rate))).sum(), 1000) < 1 - 1e-4


def test_samples_are_ascending_places_and_do_not_depend_on_slices() -> None:
    population = 2 * AT_ONCE + 5
    sample = poisson_sample(randomness().stream("sample"), population, 0.5)
    assert (np.diff(sample) > 0).all()
    assert sample[0] >= 0
    assert sample[-1] < population
    words = randomness().stream("sample").words(population)
    assert (sample == np.flatnonzero(words < np.uint64(1 << 63))).all()


def test_everybody_nobody_and_rates_that_are_none() -> None:
    stream = randomness().stream("sample")
    assert poisson_sample(stream, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert len(poisson_sample(stream, 0, 0.5)) == 0
    assert len(poisson_sample(stream, 50, 1e-300)) == 0
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="sampling rate"):
            poisson_sample(stream, 5, rate)


def test_each_record_of_a_patient_is_as_likely() -> None:
    chosen = choose_records(randomness().stream("records"), np.full(30_000, 3))
    assert stats.chisquare(np.bincount(chosen, minlength=3)).pvalue > LEAST_P
    assert choose_records(randomness().stream("records"), np.ones(50, dtype=np.int64)).max() == 0


def test_normals_are_normal_out_to_the_tails() -> None:
    pytest.importorskip("torch", reason="the training extra is not installed")
    drawn = normals(randomness("normals").stream("noise"), 1_000_000)
    assert stats.kstest(drawn, "norm").pvalue > LEAST_P
    assert stats.binomtest(int((np.abs(drawn) > 4).sum()), 1_000_000, 2 * stats.norm.sf(4)).pvalue > LEAST_P
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sigma", [0.013, 1.0, 37.0])
def test_gaussian_sums_have_the_variance_and_lie_on_the_grid(sigma: float, dtype: type) -> None:
    pytest.importorskip("torch", reason="the training extra is not installed")
    start = np.full(AT_ONCE + 1000, 3 * sigma, dtype=dtype)
    values = start.copy()
    add_gaussian(values, sigma, randomness(f"gauss {sigma}").stream("noise"))
    noise = (values.astype(np.float64) - start) / sigma
    assert 1e-4 < stats.chi2.cdf((noise**2).sum(), len(noise)) < 1 - 1e-4
    step = grid_step(sigma)
    assert 2**-21 < step / sigma <= 2**-20
    assert math.log2(step).is_integer()
    assert (values / step == np.rint(values / step)).all()
    assert len(np.unique(values)) > 0.9 * min(len(values), 6 / 2**-20) / 4
