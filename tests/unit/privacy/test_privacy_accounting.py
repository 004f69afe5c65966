"""Published check values: what a plan costs by both accountants, and that the refused one reports too little."""

import pytest

from cohortium_privacy.accounting import (
    AccountantRefused,
    GaussianSteps,
    PlanRefused,
    check_accountant,
    epsilon,
    rdp_at,
    step_rdp,
    worst_sites,
)
from cohortium_privacy.filter import epsilon_of

# Noise multiplier, sampling rate, steps, delta, and ε by PLD and by RDP.
CHECK_VALUES = [
    (1.0, 0.01, 1000, 1e-5, 1.8282, 2.1014),
    (1.1, 0.01, 10000, 1e-5, 5.1926, 5.6320),
    (0.8, 0.005, 2000, 1e-6, 2.5030, 3.0635),
    (1.3, 0.05, 500, 1e-5, 4.7257, 5.1834),
    (2.0, 0.1, 200, 1e-5, 3.3597, 3.6797),
    (0.7, 0.02, 300, 1e-5, 5.4351, 6.3868),
    (1.1, 256 / 60000, 14062, 1e-5, 2.3817, 2.5966),
    (1.0, 1, 1, 1e-5, 4.3772, 4.7285),
    (4.0, 1, 100, 1e-5, 13.2067, 14.1322),
    (10.0, 1, 50, 1e-6, 3.3076, 3.5424),
    (2.0, 1, 10, 1e-5, 7.5113, 8.0794),
    (20.0, 1, 200, 1e-5, 2.9432, 3.1890),
    (5.0, 1, 1, 1e-6, 0.8341, 0.8999),
]
MIXED = (GaussianSteps(1.0, 0.01, 1000), GaussianSteps(1.3, 0.05, 200), GaussianSteps(10, 1, 5))


@pytest.mark.parametrize(("z", "q", "steps", "delta", "by_pld", "by_rdp"), CHECK_VALUES)
def test_both_accountants_give_the_published_values(
    z: float, q: float, steps: int, delta: float, by_pld: float, by_rdp: float
) -> None:
    events = (GaussianSteps(z, q, steps),)
    assert epsilon(events, delta, "pld") == pytest.approx(by_pld, abs=0.02)
    assert epsilon(events, delta, "rdp") == pytest.approx(by_rdp, abs=0.005)


def test_different_events_compose() -> None:
    assert epsilon(MIXED, 1e-5, "pld") == pytest.approx(3.6191, abs=0.02)
    assert epsilon(MIXED, 1e-5, "rdp") == pytest.approx(3.9869, abs=0.005)


@pytest.mark.torch
@pytest.mark.filterwarnings(
    "ignore:Optimal order:UserWarning", "ignore:divide by zero:RuntimeWarning"
)  # its first guess
@pytest.mark.parametrize(("z", "q", "steps", "delta", "by_pld", "by_rdp"), CHECK_VALUES)
def test_opacus_agrees_by_privacy_random_variables(
    z: float, q: float, steps: int, delta: float, by_pld: float, by_rdp: float
) -> None:
    """PRV (Gopi et al. 2021) composes the same losses by another program, and adds its bound on the error, 0.01."""
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(z, q, steps)]
    assert by_pld < other.get_epsilon(delta, eps_error=0.01) < min(by_pld + 0.011, by_rdp)


@pytest.mark.torch
@pytest.mark.parametrize(("row", "gdp"), [(0, 1.6177), (2, 1.9312), (5, 3.8586)])
def test_gdp_reports_too_little(row: int, gdp: float) -> None:
    from opacus.accountants import GaussianAccountant

    z, q, steps, delta, by_pld, _ = CHECK_VALUES[row]
    with pytest.warns(UserWarning, match="can underestimate privacy expenditure"):
        central = GaussianAccountant()
    central.history = [(z, q, steps)]
    too_little = central.get_epsilon(delta)
    assert too_little == pytest.approx(gdp, abs=0.005)
    assert too_little < by_pld - 0.2


def test_gdp_is_refused_with_the_reason() -> None:
    with pytest.raises(AccountantRefused, match=r"reports less than what is lost .* use rdp or pld"):
        epsilon(MIXED, 1e-5, "gdp")
    with pytest.raises(AccountantRefused, match="use pld, which composes the same losses"):
        check_accountant("prv")
    with pytest.raises(AccountantRefused, match="moments is not known"):
        check_accountant("moments")


@pytest.mark.parametrize(("overlap", "by_pld"), [(1, 1.929), (2, 4.237), (3, 6.821)])
def test_a_patient_at_several_hospitals_is_a_mixture(overlap: int, by_pld: float) -> None:
    events = (GaussianSteps(2.0, 0.05, 300, overlap),)
    assert epsilon(events, 1e-5) == pytest.approx(by_pld, abs=0.005)
    assert epsilon(events, 1e-5, "rdp") > by_pld


@pytest.mark.parametrize("order", [2, 7, 16, 32])
def test_a_mixture_of_one_is_poisson_sampling(order: int) -> None:
    """The quadrature for mixtures against the library's own series, where both say the same."""
    from cohortium_privacy.accounting import _mixture_rdp

    event = GaussianSteps(1.5, 0.02, 1)
    assert _mixture_rdp(event, float(order)) == pytest.approx(step_rdp(event, order), rel=1e-8)


def test_local_noise_at_two_hospitals_adds_up() -> None:
    """κ = 2 with noise at each site: the Rényi costs of the two costliest sites add."""
    one = (GaussianSteps(2.0, 0.05, 300),)
    assert epsilon(one, 1e-5, "rdp") == pytest.approx(2.12, abs=0.01)
    assert epsilon((GaussianSteps(2.0, 0.05, 600),), 1e-5, "rdp") == pytest.approx(3.05, abs=0.02)
    assert worst_sites([0.1, 0.3, 0.2], 2) == pytest.approx(0.5)
    assert worst_sites([], 2) == 0


def test_divergence_adds_over_steps_and_nothing_costs_nothing() -> None:
    event = GaussianSteps(1.2, 0.03, 1)
    assert rdp_at((GaussianSteps(1.2, 0.03, 40),), 8) == pytest.approx(40 * step_rdp(event, 8))
    assert epsilon((), 1e-5) == 0
    assert epsilon((GaussianSteps(1.0, 0.5, 0),), 1e-5) == 0
    assert epsilon_of(0.0, 1e-5, 8) == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0.0, 0.1, 1), "noise_multiplier"),
        ((float("nan"), 0.1, 1), "noise_multiplier"),
        ((1.0, 0.0, 1), "sampling_rate"),
        ((1.0, 1.5, 1), "sampling_rate"),
        ((1.0, 0.1, -1), "steps"),
        ((1.0, 0.1, 1, 0), "overlap"),
    ],
)
def test_impossible_events_are_refused_by_field(arguments: tuple[float, float, int], field: str) -> None:
    with pytest.raises(PlanRefused, match=f"^{field} is "):
        GaussianSteps(*arguments)


def test_a_delta_that_is_no_probability_is_refused() -> None:
    with pytest.raises(PlanRefused, match="delta is 1"):
        epsilon(MIXED, 1.0)


def test_whole_sums_of_several_records_are_one_larger_shift() -> None:
    """q = 1 and κ = 2: a patient moves every sum by 2, as a multiplier of half the size would say."""
    twice = GaussianSteps(4.0, 1.0, 1, 2)
    assert step_rdp(twice, 8.0) == pytest.approx(step_rdp(GaussianSteps(2.0, 1.0, 1), 8.0), rel=1e-8)
    assert epsilon((twice,), 1e-5) == pytest.approx(epsilon((GaussianSteps(2.0, 1.0, 1),), 1e-5), abs=0.01)
