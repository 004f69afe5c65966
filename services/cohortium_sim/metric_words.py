"""Which metrics a label has, and how each is called and written: for the live view, the table and the report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from cohortium_messages.result import MetricsResult
from cohortium_sim.report_words import auc_text, number

Field = Literal["auc", "accuracy", "brier", "log_loss", "rmse", "mae", "r2"]


@dataclass(frozen=True, slots=True)
class MetricWord:
    """One metric: its name in a heading, the same in running text, and one sentence on how to read it.

    `least` and `most` bound it, `useless` is its value for a model that has learnt nothing; None where there is none.
    """

    field: Field
    name: str
    told: str
    note: str
    least: float | None = None
    most: float | None = None
    useless: float | None = None

    def of(self, metrics: MetricsResult | None) -> float | None:
        return None if metrics is None else getattr(metrics, self.field)

    def bound(self, metrics: MetricsResult) -> float:
        """How far the true value may be from the shown one."""
        return (metrics.auc_error_bound or 0.0) if self.field == "auc" else 0.0

    def text(self, metrics: MetricsResult | None) -> str:
        """The value with its bound, or a dash."""
        if self.field == "auc":
            return auc_text(metrics)
        value = self.of(metrics)
        return plain(value) if self.field in ("rmse", "mae") else number(value)


def plain(value: float | None) -> str:
    """A number in a unit that nobody knows here: three digits that count."""
    if value is None or value == 0 or not 1e-3 <= abs(value) < 1e5:
        return number(value) if value in (None, 0) else f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


WORDS: Final = (
    MetricWord(
        "auc",
        "AUC",
        "AUC",
        "The band is how far the AUC of the scores themselves may lie from that of the summed histograms.",
        0.0,
        1.0,
        0.5,
    ),
    MetricWord(
        "accuracy",
        "Accuracy",
        "accuracy",
        "Share put right, at a threshold of one half or by the likeliest class.",
        0.0,
        1.0,
    ),
    MetricWord("brier", "Brier score", "Brier", "Mean squared error of the scores: lower is better.", 0.0, 1.0),
    MetricWord(
        "log_loss",
        "Log loss",
        "log loss",
        "Mean negative logarithm of the probability given to the true label: lower is better.",
        0.0,
    ),
    MetricWord("rmse", "RMSE", "RMSE", "Root of the mean squared error, in the label's unit: lower is better.", 0.0),
    MetricWord("mae", "MAE", "MAE", "Mean absolute error, in the label's unit: lower is better.", 0.0),
    MetricWord("r2", "R²", "R²", "Share of the label's variance that the model explains.", None, 1.0, 0.0),
)
BINARY: Final = WORDS[:3]
COMPARED: Final = tuple(word for word in WORDS if word.field in ("auc", "accuracy", "r2"))
"""Metrics by which models are drawn beside each other, the most telling first: higher is better."""


def measured(models: Iterable[MetricsResult | None]) -> tuple[MetricWord, ...]:
    """The metrics that any of these models has; those of a binary label where none has any."""
    found = [model for model in models if model is not None]
    return tuple(word for word in WORDS if any(word.of(model) is not None for model in found)) or BINARY


def compared(models: Iterable[MetricsResult | None]) -> MetricWord | None:
    """The metric to draw models by; None if none of them has one."""
    found = [model for model in models if model is not None]
    return next((word for word in COMPARED if any(word.of(model) is not None for model in found)), None)


def main_metric(metrics: MetricsResult | None) -> MetricWord | None:
    """The metric to remember of a model: AUC, else accuracy, else the error of a number."""
    order: tuple[Field, ...] = ("auc", "accuracy", "rmse", "mae", "r2", "log_loss", "brier")
    by_field = {word.field: word for word in WORDS}
    return next((by_field[field] for field in order if by_field[field].of(metrics) is not None), None)
