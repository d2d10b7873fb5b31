"""How far outputs are linear functions of each other: R² of least squares, for the data and for every resample.

All fits come from sums of products of answers: per block of people, hence per resample, hence per fold. The inverse of
the outputs' correlation matrix holds every output's regression on all others at once: with ``P`` the inverse,
``R²_a = 1 - 1 / P_aa``, and the residual of ``a`` at a standardised point ``z`` is ``(P z)_a / P_aa``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fair_prune_plugins.audit.measures.answers import Answers
from fair_prune_plugins.audit.measures.estimates import Estimates
from fair_prune_plugins.audit.measures.resampling import FOLDS, Resampling
from fair_prune_plugins.audit.measures.result import Interdependence
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray

MOST_OUTPUTS = 100
"""With more outputs than this, interdependence is given without intervals: the fits of all resamples take too long."""

_RIDGE = 1e-9
"""Added to correlations so that outputs that always agree have an inverse; moves R² by about as much."""

_ENTRIES = 2**22


@dataclass(frozen=True)
class Explained:
    """R² of every output on all others, ``[R + 1, A]`` (or ``[1, A]`` without resamples); NaN for constant outputs."""

    in_sample: FloatArray
    held_out: FloatArray

    def minus(self, other: Explained) -> Explained:
        """The difference from another model's."""
        return Explained(self.in_sample - other.in_sample, self.held_out - other.held_out)


def explain(answers: npt.NDArray[np.bool_], resampling: Resampling) -> Explained:
    """Regress every output on all others.

    Args:
        answers: bool ``[N, A]``, at least two outputs.
        resampling: blocks and weights; every block is in one fold, so that a person who is drawn twice is never in the
            fit and held out at once.
    """
    width = answers.shape[1] + 1
    columns = resampling.columns if width <= MOST_OUTPUTS + 1 else 1
    products = _products(answers, resampling)
    fold = np.arange(resampling.blocks) % FOLDS
    step = max(_ENTRIES // (width * width * FOLDS), 1)
    in_sample, held_out = [], []
    for start in range(0, columns, step):
        weights = resampling.weights[:, start : min(start + step, columns)]
        sums = np.stack([weights[fold == f].T @ products[fold == f] for f in range(FOLDS)], axis=1)
        sums = sums.reshape(len(sums), FOLDS, width, width)
        total = sums.sum(axis=1)
        scatter = _scatter(total, *_moments(total))
        varies = np.diagonal(scatter, axis1=-2, axis2=-1) > 1e-9
        in_sample.append(np.where(varies, _fitted(scatter), np.nan))
        held_out.append(np.where(varies, _predicted(sums, total, scatter), np.nan))
    return Explained(np.concatenate(in_sample), np.concatenate(held_out))


class Interdependences:
    """Every output's interdependence: of the true labels, and of each model's answers (mean over its runs).

    Args:
        truths: what is true, 0 or 1, ``[N, A]``.
        models: each model's answers.
        resampling: blocks and weights.
        estimates: makes estimates.
        progress: show a progress bar.
    """

    def __init__(
        self,
        truths: IntArray,
        models: tuple[Answers, ...],
        resampling: Resampling,
        estimates: Estimates,
        *,
        progress: bool,
    ) -> None:
        self._people, outputs = truths.shape
        self._estimates = estimates
        steps = 1 + sum(model.runs for model in models)
        with tqdm(total=steps, desc="interdependence", unit="run", leave=False, disable=not progress) as bar:
            self._labels = explain(truths == 1, resampling)
            bar.update()
            self._models = []
            for model in models:
                runs = []
                for run in range(model.runs):
                    answers = np.stack([model.answered(output, run) for output in range(outputs)], axis=1)
                    runs.append(explain(answers, resampling))
                    bar.update()
                self._models.append(_mean(runs))

    def of_labels(self, output: int) -> Interdependence:
        """The reference: of the true labels."""
        return self._made(self._labels, output, 0.0)

    def of_model(self, model: int, output: int) -> Interdependence:
        """Of one model's answers."""
        return self._made(self._models[model], output, 0.0)

    def change(self, model: int, output: int) -> Interdependence | None:
        """From the first model's; ``None`` for the first."""
        if not model:
            return None
        return self._made(self._models[model].minus(self._models[0]), output, -1.0)

    def _made(self, explained: Explained, output: int, low: float) -> Interdependence:
        # Held-out R² has no lower bound; where no resample differs from the data, that of in-sample R² stands in.
        return Interdependence(
            in_sample=self._estimates.centred(explained.in_sample[:, output], self._people, low, 1.0),
            held_out=self._estimates.centred(explained.held_out[:, output], self._people, low, 1.0, clipped=False),
        )


def _mean(runs: list[Explained]) -> Explained:
    """Mean over runs; undefined where any run's is."""
    return Explained(np.mean([run.in_sample for run in runs], axis=0), np.mean([run.held_out for run in runs], axis=0))


def _products(answers: npt.NDArray[np.bool_], resampling: Resampling) -> FloatArray:
    """Sums of products of answers (and of 1) by block, float64 ``[B, (A + 1)²]``."""
    outputs = answers.shape[1]
    order = np.argsort(resampling.block, kind="stable")
    ends = np.cumsum(np.bincount(resampling.block, minlength=resampling.blocks))
    products = np.empty((resampling.blocks, outputs + 1, outputs + 1))
    start = 0
    for block, end in enumerate(ends):
        rows = np.ones((end - start, outputs + 1))
        rows[:, 1:] = answers[order[start:end]]
        products[block] = rows.T @ rows
        start = end
    return products.reshape(resampling.blocks, -1)


def _moments(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """People ``[..., 1, 1]`` and means ``[..., A]``."""
    people = sums[..., :1, :1]
    return people, np.divide(
        sums[..., 0, 1:], people[..., 0], out=np.zeros_like(sums[..., 0, 1:]), where=people[..., 0] > 0
    )


def _scatter(sums: FloatArray, people: FloatArray, mean: FloatArray) -> FloatArray:
    """Sums of products of deviations from a mean ``[..., A, A]``; the mean may be that of other people."""
    own = sums[..., 0, 1:]
    crossed = own[..., :, None] * mean[..., None, :]
    return sums[..., 1:, 1:] - crossed - np.swapaxes(crossed, -1, -2) + people * mean[..., :, None] * mean[..., None, :]


def _inverse(scatter: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The inverse of the correlation matrix, and the scale of each output (1 for constant ones)."""
    diagonal = np.diagonal(scatter, axis1=-2, axis2=-1)
    scale = np.where(diagonal > 1e-9, np.sqrt(np.maximum(diagonal, 0.0)), 1.0)
    correlation = scatter / (scale[..., :, None] * scale[..., None, :])
    places = np.arange(scatter.shape[-1])
    correlation[..., places, places] = 1.0 + _RIDGE  # constant outputs too: they explain nothing
    return np.linalg.inv(correlation), scale


def _fitted(scatter: FloatArray) -> FloatArray:
    inverse, _ = _inverse(scatter)
    return np.clip(1 - 1 / np.diagonal(inverse, axis1=-2, axis2=-1), 0.0, 1.0)


def _predicted(sums: FloatArray, total: FloatArray, scatter: FloatArray) -> FloatArray:
    """R² of predictions for each fold from a fit on the others, about the mean of all people."""
    residual = np.zeros(scatter.shape[:-1])
    for fold in range(FOLDS):
        held = sums[:, fold]
        fitted = total - held
        people, mean = _moments(fitted)
        inverse, scale = _inverse(_scatter(fitted, people, mean))
        own = _scatter(held, held[..., :1, :1], mean) / (scale[..., :, None] * scale[..., None, :])
        squares = ((inverse @ own) * inverse).sum(axis=-1)  # the diagonal of P Z P, P being symmetric
        pivots = np.diagonal(inverse, axis1=-2, axis2=-1)
        residual += squares / pivots**2 * scale**2
    spread = np.diagonal(scatter, axis1=-2, axis2=-1)
    unexplained: FloatArray = np.divide(residual, spread, out=np.full(spread.shape, np.nan), where=spread > 1e-9)
    return 1 - unexplained
