"""Both samplers of the discrete Gaussian, in rational numbers and compiled, against the exact law and each other."""

import builtins
import importlib.util
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from private_stage import chi_square, law, randomness
from scipy import stats

pytest.importorskip("numba", reason="the training extra is not installed")

from cohortium_connector.training import dp_sampler
from cohortium_connector.training.dp_random import SiteNoise, discrete_noise
from cohortium_connector.training.dp_sampler import SamplerMissing, discrete_gaussian, fill
from cohortium_privacy.sampler import (
    ByteUniforms,
    GeneratorBroken,
    SigmaRefused,
    bernoulli_exp,
    discrete_laplace,
    exact_sigma,
    integer_form,
)
from cohortium_privacy.sampler import discrete_gaussian as oracle
from cohortium_sim.bench_noise import SPEED_SIGMAS, nanoseconds

SIGMAS = (0.5, 0.8, 1.0, 2.5, 10.0, 97.3)
LEAST_P = 1e-4
"""Seeds are fixed, so a test passes always or never; a right sampler fails one of these with this probability."""


def uniforms(name: str) -> ByteUniforms:
    stream = randomness(name).stream("oracle")
    return ByteUniforms(lambda count: stream.words(-(-count // 8)).tobytes()[:count])


class TestNumbers:
    @pytest.mark.parametrize("sigma", [1e-3, 0.8, 10.0, 65_535.99, 65_536.5, 1e9, 2.0**40])
    def test_a_standard_deviation_is_rounded_up_a_little(self, sigma: float) -> None:
        exact = exact_sigma(sigma)
        assert 0 <= exact - Fraction(sigma) < (Fraction(1, 64) if sigma < 65_536 else 1)
        assert exact_sigma(float(exact)) == exact

    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**41])
    def test_others_are_refused(self, sigma: float) -> None:
        with pytest.raises(SigmaRefused):
            exact_sigma(sigma)

    def test_a_deviation_that_is_no_multiple_is_refused(self) -> None:
        with pytest.raises(SigmaRefused, match="1/3"):
            integer_form(Fraction(1, 3))

    @pytest.mark.parametrize("sigma", [0.05, 0.8, 3.3, 10.0, 65_535.99, 1e7])
    def test_the_integers_say_what_the_algorithm_says(self, sigma: float) -> None:
        exact = exact_sigma(sigma)
        form = integer_form(exact)
        for y in (0, 1, 5, form.t, 63 * form.t + 7):
            by_algorithm = (Fraction(y) - exact**2 / form.t) ** 2 / (2 * exact**2)
            assert Fraction(y * form.a - form.b, form.z) ** 2 / 2 == by_algorithm

    @pytest.mark.parametrize("sigma", [*SIGMAS, 65_535.99, 65_536.0, 2.0**40])
    def test_no_integer_leaves_64_bits(self, sigma: float) -> None:
        form = integer_form(exact_sigma(sigma))
        assert 64 * form.t * form.a < 2**63
        assert 2 * form.z * 1000 < 2**63


class TestOracle:
    @pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 7), Fraction(1), Fraction(5, 2)])
    def test_a_trial_succeeds_as_often_as_exp_says(self, gamma: Fraction) -> None:
        source = uniforms(f"trial {gamma}")
        hits = sum(bernoulli_exp(gamma, source) for _ in range(20_000))
        assert stats.binomtest(hits, 20_000, math.exp(-gamma)).pvalue > LEAST_P

    @pytest.mark.parametrize("scale", [1, 4])
    def test_laplace_has_its_law(self, scale: int) -> None:
        source = uniforms(f"laplace {scale}")
        samples = np.array([discrete_laplace(scale, source) for _ in range(8000)])
        q = math.exp(-1 / scale)
        for size in (0, 1, 3):
            share = (1 - q) / (1 + q) * q**size * (1 if size == 0 else 2)
            assert stats.binomtest(int((np.abs(samples) == size).sum()), 8000, share).pvalue > LEAST_P

    @pytest.mark.parametrize("sigma", [0.8, 2.5, 10.0])
    def test_the_oracle_has_the_exact_law(self, sigma: float) -> None:
        source = uniforms(f"gauss {sigma}")
        samples = [oracle(exact_sigma(sigma) ** 2, source) for _ in range(8000)]
        assert chi_square(samples, exact_sigma(sigma)) > LEAST_P

    def test_uniform_integers_of_any_size_are_in_range_and_even(self) -> None:
        source = uniforms("below")
        counts = np.bincount([source.below(5) for _ in range(10_000)], minlength=5)
        assert stats.chisquare(counts).pvalue > LEAST_P
        assert source.below(1) == 0
        large = [source.below(10**40) for _ in range(50)]
        assert max(large) < 10**40 < 16 * max(large)

    def test_a_broken_generator_ends_in_an_error_and_not_in_a_loop(self) -> None:
        with pytest.raises(GeneratorBroken):
            ByteUniforms(lambda count: b"\xff" * count).below(5)
        with pytest.raises(GeneratorBroken):
            discrete_laplace(3, Zeros())


class Zeros:
    """The smallest number each time."""

    def below(self, bound: int) -> int:
        return 0


class TestCompiled:
    @pytest.mark.parametrize("sigma", [*SIGMAS, 1e3, 1e5])
    def test_samples_have_the_exact_law(self, sigma: float) -> None:
        samples = discrete_noise(randomness(f"law {sigma}").stream("noise"), sigma, 2_000_000)
        assert chi_square(samples.tolist(), exact_sigma(sigma)) > LEAST_P

    def test_the_test_of_the_law_sees_one_percent_of_sigma(self) -> None:
        samples = discrete_noise(randomness("law").stream("noise"), 10.0, 2_000_000)
        assert chi_square(samples.tolist(), 10.1) < 1e-12
        assert chi_square((samples + (samples == 0)).tolist(), 10.0) < 1e-12

    @pytest.mark.parametrize("sigma", [1e3, 1e5, 1e8, 2.0**40])
    def test_large_deviations_are_normal(self, sigma: float) -> None:
        exact = float(exact_sigma(sigma))
        samples = discrete_noise(randomness(f"normal {sigma}").stream("noise"), sigma, 400_000)
        assert stats.kstest(samples / exact, "norm").pvalue > LEAST_P
        for bit in range(3):  # low bits are even, as those of a snapped float would not be
            assert stats.binomtest(int((samples >> bit & 1).sum()), len(samples)).pvalue > LEAST_P

    def test_both_samplers_have_one_law(self) -> None:
        source, sigma = uniforms("both"), exact_sigma(3.3)
        slow = np.array([oracle(sigma**2, source) for _ in range(6000)])
        fast = discrete_noise(randomness("both").stream("noise"), sigma, 6000)
        edges = np.arange(-8, 9)
        table = [np.bincount(np.digitize(part, edges), minlength=18) for part in (slow, fast)]
        assert stats.chi2_contingency(table).pvalue > LEAST_P

    @pytest.mark.parametrize("sigma", [0.5, 0.8, 65_535.99, 65_536.0, 2.0**40])
    def test_compiled_and_interpreted_make_the_same_samples(self, sigma: float) -> None:
        # numpy's scalars warn where they overflow, and warnings are errors here: so no product leaves 64 bits.
        numbers = dp_sampler._as_words(integer_form(exact_sigma(sigma)))
        words = randomness(f"same {sigma}").stream("noise").words(6000)
        fast, slow = np.zeros(300, dtype=np.int64), np.zeros(300, dtype=np.int64)
        done = fill(words, fast, *numbers)
        with np.errstate(all="raise"):
            interpreted = _interpreted()
            assert interpreted.fill(words, slow, *numbers) == done
        assert done[0] == 300
        assert (fast == slow).all()

    def test_a_sample_that_runs_out_of_words_is_made_again_of_the_same(self) -> None:
        numbers = dp_sampler._as_words(integer_form(exact_sigma(7.0)))
        words = randomness("short").stream("noise").words(3000)
        whole = np.zeros(200, dtype=np.int64)
        made, used = fill(words, whole, *numbers)
        assert made == 200
        for cut in range(used - 40, used):
            fewer = np.zeros(200, dtype=np.int64)
            made, short = fill(words[:cut], fewer, *numbers)
            assert short <= cut
            assert made < 200
            again, more = fill(words[short:used], fewer[made:], *numbers)
            assert (made + again, short + more) == (200, used)
            assert (fewer == whole).all()

    def test_the_same_words_give_the_same_samples_however_they_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make = lambda: discrete_gaussian(Fraction(20), 5000, randomness("split").stream("noise").words)  # noqa: E731
        whole = make()
        monkeypatch.setattr(dp_sampler, "AT_ONCE", 97)
        monkeypatch.setattr(dp_sampler, "WORDS_A_SAMPLE", 8)  # too few, so that many samples are made twice
        assert (make() == whole).all()

    def test_words_that_would_favour_a_remainder_are_passed_over(self) -> None:
        bound = 3 << 62  # goes once into 2^64: of words from it on, small remainders would come twice
        words = np.array([2**64 - 1, bound, bound - 1, 5], dtype=np.uint64)
        assert dp_sampler._below(words, 0, np.uint64(bound)) == (bound - 1, 3)
        assert dp_sampler._below(words, 3, np.uint64(bound)) == (5, 4)
        assert dp_sampler._below(words, 0, np.uint64(1 << 63)) == (2**63 - 1, 1)

    def test_words_without_chance_end_in_an_error(self) -> None:
        with pytest.raises(GeneratorBroken):
            discrete_gaussian(Fraction(20), 10, lambda count: np.zeros(count, dtype=np.uint64))

    @pytest.mark.long  # a timing: `make privacy-table PRIVACY_TABLE=--sampler` says it for the machine at hand
    @pytest.mark.parametrize("sigma", SPEED_SIGMAS)
    def test_a_million_samples_of_each_deviation_take_a_fraction_of_a_second(self, sigma: float) -> None:
        best = min(nanoseconds(sigma) for _ in range(5))
        assert best < 900, "three times the 300 ns of this process that a sample may take"

    def test_noise_of_a_site_goes_on_from_sample_to_sample(self) -> None:
        noise = SiteNoise(randomness("site").stream("leaves"), 10.0)
        first, second = noise.integers(1000), noise.integers(1000)
        assert (first != second).any()
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.13
        assert len(noise.integers(0)) == 0


def _interpreted() -> object:
    """`dp_sampler`'s text without a compiler."""
    return _module_without_numba("interpreted_dp_sampler")


def _module_without_numba(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, dp_sampler.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    real = builtins.__import__

    def without_numba(wanted: str, *rest: object, **named: object) -> object:
        if wanted == "numba":
            raise ImportError(wanted)
        return real(wanted, *rest, **named)

    builtins.__import__ = without_numba
    try:
        spec.loader.exec_module(module)
    finally:
        builtins.__import__ = real
    return module


def test_without_numba_the_error_says_what_to_install() -> None:
    module = _module_without_numba("dp_sampler_alone")
    with pytest.raises(RuntimeError, match=r"numba is not installed.*pip install 'cohortium\[train\]'") as refused:
        module.discrete_gaussian(Fraction(20), 1, randomness().stream("noise").words)
    assert type(refused.value).__name__ == SamplerMissing.__name__
    assert "numba" in sys.modules


def test_the_isolated_training_process_draws_noise_and_leaves_no_compiled_file(tmp_path: Path) -> None:
    code = (
        "from cohortium_connector.training import isolation as i\n"
        "try:\n    i.cut_network()\n"
        "except i.CannotIsolate:\n    pass\n"
        "i.drop_rights(0); i.scrub_environment(1)\n"
        "from cohortium_connector.training.dp_random import Randomness, discrete_noise\n"
        "print(len(discrete_noise(Randomness(bytes(32)).stream('noise'), 12.5, 1000)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "1000\n"
    assert list(tmp_path.rglob("*")) == []
    assert not list(Path(dp_sampler.__file__).parent.rglob("*.nb[ic]"))


def test_the_law_of_the_tests_adds_up() -> None:
    assert law(0.8, 20).sum() == pytest.approx(1)
    assert law(10.0, 200) @ np.arange(-200, 201) ** 2 == pytest.approx(100.0, rel=1e-9)
