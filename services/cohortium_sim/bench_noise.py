"""How long one sample of discrete Gaussian noise takes: `make privacy-table PRIVACY_TABLE=--sampler`."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from cohortium_connector.training.dp_random import Randomness, discrete_noise

SPEED_SIGMAS: Final = (0.8, 10.0, 1e3, 1e5)
SAMPLES: Final = 200_000
REPEATS: Final = 7


def nanoseconds(sigma: float, samples: int = SAMPLES) -> float:
    """Of this process' time, for each of so many samples; the compiler's own time is not counted."""
    stream = Randomness(bytes(32)).stream("speed")
    discrete_noise(stream, sigma, 1000)
    started = time.process_time()
    discrete_noise(stream, sigma, samples)
    return (time.process_time() - started) / samples * 1e9


def sampler_lines(samples: int = SAMPLES, repeats: int = REPEATS) -> Iterator[str]:
    """For each deviation the median of some runs, and the quickest."""
    yield f"{'discrete Gaussian':<18}{'σ':>8}{'ns a sample':>14}{'quickest':>10}"
    for sigma in SPEED_SIGMAS:
        found = [nanoseconds(sigma, samples) for _ in range(repeats)]
        yield f"{'':<18}{sigma:>8g}{median(found):>14.0f}{min(found):>10.0f}"
