"""Gate statistics from batches that somebody else's training loop hands over one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import FairPruneError, InputError
from fair_prune_plugins.gates import GatePlan
from fair_prune_plugins.gates.calling import batch_size
from fair_prune_plugins.gates.tapping import GateMeter
from fair_prune_plugins.nni.steps import StepCall, loss_of
from fair_prune_plugins.statistics import BatchReader, GateStatistics
from fair_prune_plugins.statistics.collecting import NOT_FINITE, Totals, finished, measured
from fair_prune_plugins.statistics.sample_losses import Reduction, SampleLosses
from fair_prune_plugins.statistics.store import first_not_finite
from fair_prune_plugins.statistics.walking import IN_PLACE, Groups, People, Walk

ScoringStep = Callable[[Any, nn.Module], Any]
"""``scoring_step(batch, model)``: a mean or summed loss, or one loss per sample."""

NO_SAMPLES = "batch {batch}: cannot tell how many samples it has ({error})"
STEP_FAILED = "the training step fails on batch {batch} in eval mode ({error})"
BAD_GROUPS = "batch {batch}: the sensitive groups cannot be read ({error})"
IN_ANOTHER_STEP = "{error}; in the training step, or, to measure alone, in scoring_step= a function of (batch, model)"
OTHER_SAMPLES = (
    "batch {batch}: the model sees another number of samples than the {samples} that the batch begins with ({error}); "
    "pass scoring_step= a function of (batch, model) that calls the model once per batch with one row per sample"
)


class StepCollector:
    """Measures the gates of a plan on batches of a training loop, beside it.

    Each batch is one pass of the user's own training step in eval mode, on a copy of the batch. Parameters get no
    gradient, buffers, modes, attributes and random numbers are handed back as they were.

    Args:
        plan: of the bound model, which may be wrapped.
        groups: the sensitive groups, or ``None``.
        reduction: what a loss that is a single number is of its samples' losses; checked sample by sample on the first
            batch that can tell.
        scoring_step: gives the loss instead of the training step.
        quiet: keep the pass out of what a LightningModule logs, where it is not the only one over the batch.
    """

    def __init__(
        self,
        plan: GatePlan,
        groups: Groups | None,
        reduction: Reduction,
        scoring_step: ScoringStep | None,
        *,
        quiet: bool,
    ) -> None:
        self._plan, self._quiet = plan, quiet
        self._groups, self._reduction, self._scoring_step = groups, reduction, scoring_step
        self._meter = GateMeter(plan)
        self.restart()

    def restart(self) -> None:
        """Forget what was measured."""
        self._walk = _PushedBatches(self._plan, self._groups)
        self._losses = _StepLosses(self._run, self._reduction, own=self._scoring_step is None)
        self._totals = Totals(self._meter.width)
        self._call: StepCall | None = None
        self._output: Any = None
        self.batches = 0

    def add(self, call: StepCall) -> Any:
        """Measure one batch.

        Returns:
            What the training step returned for it, detached.

        Raises:
            InputError: the batch's samples or groups cannot be told, the step fails, or its loss is not finite or not
                reduced as declared.
        """
        self._call, self._output = call, None
        people = self._walk.read(call.batch, self.batches)
        try:
            with self._walk.frozen(), unchanged_randomness(self._walk.device), self._meter.attached():
                values = measured(self._walk, self._meter, self._losses, people)
        except RuntimeError as error:
            if "match" not in str(error):
                raise
            message = OTHER_SAMPLES.format(batch=self.batches, samples=people.samples, error=error)
            raise InputError(message) from error
        finally:
            self._call = None
        if not torch.isfinite(values).all():
            name = first_not_finite(self._meter.columns, values)
            raise InputError(NOT_FINITE.format(batch=self.batches, name=name))
        self._totals.add(people.codes, people.weights, values.cpu())
        self.batches += 1
        output, self._output = self._output, None
        return output

    def finish(self) -> GateStatistics:
        """What was measured; the model must not be wrapped.

        Raises:
            InputError: nobody was seen, or nobody of a known group.
        """
        self._walk.check_somebody(int(self._totals.people.sum()), int(self._totals.people[1:].sum()))
        return finished(self._plan, self._meter, self._totals, self._walk)

    def _run(self, plain: Any, _: Any) -> torch.Tensor:
        """The loss of a batch, or of some of its samples, which the reduction is checked on."""
        assert self._call is not None
        whole = torch.is_grad_enabled()
        with nullcontext() if whole and not self._quiet else _silence(self._plan.model):
            output = run_step(self._call, _like(plain, self._call.batch), self._scoring_step, self.batches)
        if whole:
            self._output = detached(output)
        return loss_of(output)


def run_step(call: StepCall, batch: Any, scoring_step: ScoringStep | None, number: int = 0) -> Any:
    """What a training step, or what is asked instead of it, returns for a batch; the batch stays as it is.

    Raises:
        InputError: it fails.
    """
    batch = _like(_own_tensors(_plain(batch)), batch)
    try:
        return call.own(batch) if scoring_step is None else scoring_step(batch, call.model)
    except FairPruneError:
        raise
    except Exception as error:
        if any(text in str(error) for text in IN_PLACE):
            raise _Overwritten(str(error)) from error
        raise InputError(STEP_FAILED.format(batch=number, error=f"{type(error).__name__}: {error}")) from error


class _Overwritten(InputError, RuntimeError):
    """A step that writes into what a gate must remember; it is measured again on copies."""


class _StepLosses(SampleLosses):
    """Asks a training step, which runs the model: the reduction is checked once, for it costs a pass.

    Args:
        loss_fn: the step.
        reduction: of its loss.
        own: whether it is the one that trains, beside which there can be another.
    """

    def __init__(self, loss_fn: Callable[..., torch.Tensor], reduction: Reduction, *, own: bool) -> None:
        super().__init__(loss_fn, reduction)
        self._own = own

    def _check(self, got: float, outputs: Any, targets: Any, samples: int, parts: int) -> str | None:
        try:
            return self._scale or super()._check(got, outputs, targets, samples, parts)
        except InputError as error:
            if self._own:
                raise InputError(IN_ANOTHER_STEP.format(error=error)) from error
            raise


class _PushedBatches(Walk):
    """A walk whose batches come one at a time; inputs and targets stay in the batch."""

    def __init__(self, plan: GatePlan, groups: Groups | None) -> None:
        super().__init__(plan, (), BatchReader(), groups, None)

    def read(self, batch: Any, number: int) -> People:
        plain = _plain(batch)
        try:
            samples = batch_size(plain)
        except InputError as error:
            raise InputError(NO_SAMPLES.format(batch=number, error=error)) from error
        codes = torch.zeros(samples, dtype=torch.int64)
        if self._groups is not None:
            try:
                codes = self._groups.read(batch, samples)
            except Exception as error:
                reason = str(error) if isinstance(error, FairPruneError) else f"{type(error).__name__}: {error}"
                raise InputError(BAD_GROUPS.format(batch=number, error=reason)) from error
        return People(number, samples, plain, None, torch.ones(samples, dtype=torch.float64), None, codes)

    def inputs(self, inputs: Any) -> Any:
        return inputs

    def targets(self, targets: Any) -> Any:
        return targets

    def outputs(self, inputs: Any, batch: int) -> Any:
        return inputs


@contextmanager
def unchanged_randomness(device: torch.device) -> Iterator[None]:
    """Random numbers go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _silence(model: nn.Module) -> Iterator[None]:
    """Let a LightningModule log nothing for a while: every batch counts once in what it logs."""
    names = [n for n in ("log", "log_dict") if callable(getattr(model, n, None)) and n not in model.__dict__]
    for name in names:
        model.__dict__[name] = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        for name in names:
            del model.__dict__[name]


def detached(output: Any) -> Any:
    """The same without autograd's graph."""
    return pytree.tree_map(lambda t: t.detach() if isinstance(t, torch.Tensor) else t, output)


def _own_tensors(batch: Any) -> Any:
    """A copy, for steps that take things out of a batch or write into it."""
    return pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, batch)


def _plain(batch: Any) -> Any:
    if _has_fields(batch):
        return dict(vars(batch))
    return dict(batch) if isinstance(batch, Mapping) else batch


def _has_fields(batch: Any) -> bool:
    """Dataclasses and the like, which hold their tensors as attributes."""
    return hasattr(batch, "__dict__") and not isinstance(batch, Mapping | torch.Tensor | tuple | list)


def _like(plain: Any, batch: Any) -> Any:
    """A batch of the original's type: tokenizers give mappings with methods of their own."""
    if _has_fields(batch):
        like = copy.copy(batch)
        vars(like).update(plain)
        return like
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return plain
    like = copy.copy(batch)
    like.update(plain)
    return like
