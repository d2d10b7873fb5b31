"""What a group's loss looks like around a network: norm of its gradient, largest eigenvalue of its Hessian.

Tran, Fioretto, Kim & Naidu, "Pruning has a disparate impact on model accuracy" (NeurIPS 2022, arXiv 2205.13574): the
loss that a group gains when weights move by ``d`` is at most ``norm * |d| + eigenvalue * |d|² / 2`` and terms of third
order. Weights are all floating-point parameters of the network, frozen ones too: pruning moves them as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from fair_prune_plugins.audit.forecast.group_batches import CHANGED, People, parts
from fair_prune_plugins.audit.forecast.network import Network
from fair_prune_plugins.audit.forecast.result import Gradients, GroupGradient
from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.gates.calling import ForwardFn
from fair_prune_plugins.groups import EMPTY_GROUPS, GroupReader, GroupSource, as_reader
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.regrouping import PureBatch
from fair_prune_plugins.statistics.sample_losses import LossFn, Reduction, SampleLosses

NO_DATA = "the loader yielded no sample; group gradients need data"
ONCE = (
    "batches can be read only once (it is an iterator), and eigenvalues need it twice; pass a loader or a list, or "
    "eigenvalues=False"
)
NOT_FINITE = "the gradient of group {group!r} is not finite; check the inputs, or the model's outputs there"
NO_SCIPY = "the largest eigenvalue of a Hessian needs scipy: pip install 'fair-prune-plugins[workflow]'"
NOT_CONVERGED = "The largest Hessian eigenvalue did not converge for: {names}."
FEWER = "Hessian eigenvalues are of {most} people of each larger group, drawn at random."
NOISE = "Chance lifts the norm of a mean gradient, more so in smaller groups: compare it with the noise beside it."

_TOLERANCE = 1e-3
_ITERATIONS = 300


def gradients(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    groups: GroupReader | GroupSource | Sequence[GroupSource],
    *,
    inputs: BatchSource = AUTO,
    targets: BatchSource | None = AUTO,
    output: Source | None = None,
    reduction: Reduction = "auto",
    forward_fn: ForwardFn | None = None,
    eigenvalues: bool = True,
    most: int | None = 512,
    seed: int = 0,
    progress: bool = True,
) -> Gradients:
    """Measure each group's gradient norm and largest Hessian eigenvalue around a dense network.

    The model is in eval mode, nothing is stepped, ``.grad`` is left alone, and the model is handed back as it was. The
    eigenvalue is the largest by sign, not by size, and comes from Lanczos iterations (ARPACK) on products of the
    Hessian with vectors.

    Args:
        model: the dense network.
        batches: yields batches in which groups may be mixed; read twice with ``eigenvalues``.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per person or a single number whose reduction is known; as for
            :func:`fair_prune_plugins.statistics.collect`.
        groups: where a batch has the sensitive group.
        inputs: where it has the model's inputs.
        targets: where it has the targets; ``None`` hands the batch to the loss.
        output: takes what the loss needs from the model's outputs.
        reduction: what a loss that is a single number is of its samples' losses.
        forward_fn: how the model is called, if not as ``model(inputs)``.
        eigenvalues: whether to compute them; they cost about fifty passes over their people.
        most: people per group for the eigenvalue, drawn at random; ``None`` takes all.
        seed: of that draw and of the iterations' start.
        progress: show a progress bar.

    Raises:
        InputError: no data, nobody in a known group, batches that cannot be taken apart or read twice, a loss that
            fails or is not finite.
        UnsupportedModelError: the model cannot be differentiated twice.
        MissingDependencyError: scipy is not installed.
    """
    if eigenvalues and iter(batches) is batches:
        raise InputError(ONCE)
    reader = replace(as_reader(groups))
    network = Network(model, SampleLosses(loss_fn, reduction), output, forward_fn)
    people = People(batches, BatchReader(inputs, targets), reader, progress)
    with network.ready():
        sums: dict[int, _Sum] = {}
        for batch in people.read("group gradients"):
            for part in parts(batch):
                sums.setdefault(batch.code, _Sum()).add(*network.gradient(part), part.samples)
        if not people.seen:
            raise InputError(NO_DATA)
        if not sums:
            raise InputError(EMPTY_GROUPS.format(n=people.seen, attribute=reader.attribute))
        found = {}
        for code in reader.order:
            name = reader.known_names[code]
            found[code] = sums[code].result(name) if code in sums else _nobody(name)
        curved = _eigenvalues(network, people, found, most, seed, progress) if eigenvalues else found
    stuck = [g.group for g in curved.values() if eigenvalues and g.people and g.eigenvalue is None]
    notes = [NOISE]
    if eigenvalues and most is not None and any(g.people > most for g in curved.values()):
        notes.append(FEWER.format(most=most))
    if stuck:
        notes.append(NOT_CONVERGED.format(names=", ".join(stuck)))
    return Gradients(reader.attribute, tuple(curved.values()), tuple(notes))


def average(runs: Sequence[Gradients]) -> Gradients:
    """The mean over several dense runs of every number; what is undefined in a run is left out.

    Raises:
        InputError: none, or of different groups.
    """
    described = {(run.attribute, tuple(g.group for g in run.groups)) for run in runs}
    if len(described) != 1:
        raise InputError(f"group gradients to be averaged must be of the same groups, got {sorted(described)}")
    groups = []
    for entries in zip(*(run.groups for run in runs), strict=True):
        means = {name: _mean([getattr(e, name) for e in entries]) for name in ("loss", "norm", "noise", "eigenvalue")}
        groups.append(replace(entries[0], **means))
    return Gradients(runs[0].attribute, tuple(groups), tuple(dict.fromkeys(n for run in runs for n in run.notes)))


class _Sum:
    """Sums over the parts of one group."""

    def __init__(self) -> None:
        self._people = self._squared_sizes = 0
        self._loss = self._squares = 0.0
        self._total: torch.Tensor | None = None
        self._weighted: torch.Tensor | None = None

    def add(self, loss: float, gradient: torch.Tensor, people: int) -> None:
        """Add a part: its summed loss and gradient."""
        self._people += people
        self._squared_sizes += people**2
        self._loss += loss
        self._squares += float(gradient @ gradient)
        if self._total is None or self._weighted is None:
            self._total, self._weighted = gradient.clone(), gradient * people
        else:
            self._total += gradient
            self._weighted.add_(gradient, alpha=people)

    def result(self, name: str) -> GroupGradient:
        """Norm of the mean gradient, and by how much chance lifts it."""
        assert self._total is not None
        assert self._weighted is not None
        mean = self._total / self._people
        norm = float(mean.norm())
        if not np.isfinite(norm):
            raise InputError(NOT_FINITE.format(group=name))
        noise = None
        # How far parts of the group differ: sum over parts of |their sum - their people * mean|².
        spread = self._squares - 2 * float(mean @ self._weighted) + norm**2 * self._squared_sizes
        freedom = self._people - self._squared_sizes / self._people
        if freedom > 0:
            noise = float(np.sqrt(max(spread, 0.0) / freedom / self._people))
        return GroupGradient(name, self._people, self._loss / self._people, norm, noise, None, 0)


def _nobody(name: str) -> GroupGradient:
    return GroupGradient(name, 0, None, None, None, None, 0)


def _eigenvalues(
    network: Network,
    people: People,
    found: dict[int, GroupGradient],
    most: int | None,
    seed: int,
    progress: bool,
) -> dict[int, GroupGradient]:
    rng = np.random.default_rng(seed)
    chosen = {}
    for code, group in found.items():
        taken = group.people if most is None else min(most, group.people)
        keep = torch.zeros(group.people, dtype=torch.bool)
        keep[torch.from_numpy(rng.permutation(group.people)[:taken])] = True
        chosen[code] = keep
    pure: dict[int, list[PureBatch]] = {}
    for batch in people.read("people of the Hessians", chosen):
        pure.setdefault(batch.code, []).append(batch)
    curved = {}
    for code, group in tqdm(found.items(), desc="Hessian eigenvalues", disable=not progress, leave=False):
        count = sum(batch.samples for batch in pure.get(code, []))
        if count != int(chosen[code].sum()):
            raise InputError(CHANGED.format(group=group.group, got=count, before=int(chosen[code].sum())))
        largest = _largest(network, pure[code], rng) if count else None
        curved[code] = replace(group, eigenvalue=largest, eigenvalue_people=count)
    return curved


def _largest(network: Network, batches: list[PureBatch], rng: np.random.Generator) -> float | None:
    """The largest eigenvalue of the Hessian of the mean loss; ``None`` if the iterations do not converge."""
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    except ImportError as error:
        raise MissingDependencyError(NO_SCIPY) from error
    people = sum(batch.samples for batch in batches)

    def product(vector: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        direction = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))
        total = torch.zeros(network.size, dtype=torch.float64)
        for batch in batches:
            total += network.curvature(batch, direction)
        return (total / people).numpy()

    if network.size == 1:
        return float(product(np.ones(1))[0])
    operator = LinearOperator((network.size, network.size), matvec=product, dtype=np.float64)
    start = rng.standard_normal(network.size)
    if not product(start).any():
        return 0.0  # a flat loss; the iterations would divide by 0
    try:
        (value,) = eigsh(
            operator, k=1, which="LA", v0=start, tol=_TOLERANCE, maxiter=_ITERATIONS, return_eigenvectors=False
        )
    except ArpackNoConvergence:
        return None
    return float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
