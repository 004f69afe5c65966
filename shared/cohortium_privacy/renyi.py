"""From Rényi divergence at one order to (ε, δ), and back. Nothing is needed for it but arithmetic."""

import math


def budget(epsilon_max: float, delta: float, order: float) -> float:
    """B: the Rényi divergence at `order` that (ε_max, δ) allows (Canonne, Kamath and Steinke 2020, proposition 12).

    Negative where the order is too small for δ.
    """
    return epsilon_max - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def epsilon_of(spent: float, delta: float, order: float) -> float:
    """The ε that so much Rényi divergence at `order` stands for, at `delta`: how people read an account."""
    if spent <= 0:
        return 0.0
    return max(0.0, spent + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
