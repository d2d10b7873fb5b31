"""NNI pruners that rank by gate statistics: one class per criterion, all the same machinery."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from nni.compression.base.compressor import Compressor, Pruner
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import nn

from fair_prune_plugins.criteria import Criterion, get
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.gates import GatePlan
from fair_prune_plugins.groups import as_reader
from fair_prune_plugins.nni.collecting import ScoringStep
from fair_prune_plugins.nni.inert import harmless, nothing_trained
from fair_prune_plugins.nni.mask_making import UnitScores, make_masks, unit_scores
from fair_prune_plugins.nni.measuring import WrappedModelMeter
from fair_prune_plugins.nni.steps import StepCall, after_optimizer_steps, intercept, loss_of, with_loss
from fair_prune_plugins.nni.target_scores import Metrics, target_metrics
from fair_prune_plugins.statistics import GateStatistics
from fair_prune_plugins.statistics.sample_losses import Reduction
from fair_prune_plugins.statistics.walking import Groups

logger = logging.getLogger(__name__)

NO_SENSITIVE_GROUP = (
    "{pruner} compares sensitive groups: pass groups= the key, index or callable that finds them in a batch of the "
    "evaluator's training step"
)
NO_EVALUATOR = "{pruner} needs data: pass an evaluator (TorchEvaluator, LightningEvaluator or TransformersEvaluator)"
NOT_AN_EVALUATOR = (
    "{pruner}: evaluator= must be a TorchEvaluator, LightningEvaluator or TransformersEvaluator, got a {got}"
)
NO_EXAMPLE = "{pruner} must see how the model is called: pass dummy_input=, or an evaluator"
NO_REDUCTION = "{pruner}: reduction= must be one of {known}, got {got!r}"
NO_SCORING_STEP = "{pruner}: scoring_step= must be a function of (batch, model) that returns the loss, got a {got}"
NO_STEPS = "{pruner} needs training_steps=, the number of batches to measure: a positive integer, got {got!r}"
OTHER_PASSES = (
    "{pruner}: with these options the criterion needs more than gate statistics ({passes}), and NNI's training loops "
    "are gone through once, for gates; choose other options or another criterion"
)
INTERVAL = (
    "{pruner}: interval_steps must be at least training_steps ({steps}), in which each interval is measured, or "
    "negative for a single mask; got {got}"
)
NO_DURATION = (
    "{pruner} alone trains nothing, it measures training_steps batches: call compress() without max_steps and "
    "max_epochs"
)
NOTHING_YET = "{pruner} has no statistics yet: call compress()"
NO_BATCHES = "{pruner} measured nothing: the training function did not call its training step"
FEW_BATCHES = "%s measured %d batches of the %d that training_steps asks for: the training function gave no more"
NO_MASKS = (
    "%s made no masks: the training ended before optimizer step %d, after which it makes them; raise max_steps or "
    "lower training_steps"
)


class CriterionPruner(Pruner):  # type: ignore[misc]
    """Scores of a registered criterion, as NNI's masks.

    It measures ``training_steps`` batches by the training step that the evaluator has: one pass each in eval mode, on
    the gates alone. Alone, it trains nothing: whatever the training function does, every batch finds the model as it
    was, and weights, buffers and ``.grad`` are as before. Fused with other compressors, or inside of ``AGPPruner`` and
    ``LinearPruner``, training goes on undisturbed and the pass runs beside it on the last ``training_steps`` optimizer
    steps of every interval, at the end of which masks are made.

    All layers of a coupled group get the same scores, so they are masked alike wherever their ratios are the same. What
    was masked stays masked. Of every layer at least one unit stays, also where a threshold or a ``global_group_id``
    would leave none (only ``sparse_ratio`` 1.0 takes all).

    Args:
        model: to be pruned; NNI wraps it.
        config_list: as for NNI's ``TaylorPruner``: convolutions, linear layers, embeddings and BatchNorms, granularity
            ``out_channel``, ``in_channel`` or whole blocks of either; inputs and outputs ``per_channel``.
        evaluator: brings data and loss. May be left out by criteria of weights, with ``dummy_input``.
        training_steps: how many batches to measure.
        existed_wrappers: see NNI's ``Compressor``.
        groups: where a batch of the training step has the sensitive group: a key, index or callable, or several of
            them for intersections.
        reduction: what the training step's loss is of its samples' losses, ``"mean"`` or ``"sum"``; ``"auto"`` finds
            out. Either is checked, sample by sample, on the first batch.
        scoring_step: ``scoring_step(batch, model)`` gives the loss to measure instead of the training step: one per
            sample, or a mean or sum. For training steps with class weights, mixed samples or manual optimisation.
        dummy_input: what the model is called with: a tensor, a tuple or a dict. By default the evaluator's, or what the
            training step calls the model with.
        options: the criterion's own.

    Attributes:
        statistics: of the last collection, ``None`` before.
        plan: the gate plan, ``None`` before.

    Raises:
        InputError: no such option, no groups for a criterion that compares them, no evaluator or steps where they are
            needed; the model is not wrapped then.
    """

    criterion_name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        training_steps: int | None = None,
        existed_wrappers: Mapping[str, ModuleWrapper] | None = None,
        *,
        groups: Groups | None = None,
        reduction: Reduction = "auto",
        scoring_step: ScoringStep | None = None,
        dummy_input: Any = None,
        **options: Any,
    ) -> None:
        self.criterion: Criterion = get(self.criterion_name)
        self.options = options
        if dummy_input is None:
            # Not get_dummy_input(): NNI's own for Lightning gives a whole batch, targets included.
            dummy_input = getattr(evaluator, "dummy_input", getattr(evaluator, "_dummy_input", None))
        self.training_steps = self._checked(evaluator, training_steps, groups, dummy_input)
        self._check_reading(groups, reduction, scoring_step)
        super().__init__(model, config_list, evaluator, existed_wrappers)
        _keep_columns(evaluator, groups)
        self.interval_steps = self.training_steps
        self.total_times: int | Literal["unlimited"] = 1
        self.statistics: GateStatistics | None = None
        self._dense: GateStatistics | None = None
        self._failure: BaseException | None = None
        self._current_step = 0
        self._made = 0
        self._meter = WrappedModelMeter(
            self.bound_model,
            self._target_spaces,
            groups=groups,
            reduction=reduction,
            scoring_step=scoring_step,
            dummy_input=dummy_input,
        )

    def _checked(self, evaluator: Any, steps: Any, groups: Any, dummy_input: Any) -> int:
        name = type(self).__name__
        self.criterion.check_options(self.options)
        needs = self.criterion.needs(self.options)
        others = needs.passes - {"gates"}
        if others:
            raise InputError(OTHER_PASSES.format(pruner=name, passes=", ".join(sorted(others))))
        self._measures = bool(needs.passes)
        if needs.groups and groups is None:
            raise InputError(NO_SENSITIVE_GROUP.format(pruner=name))
        if evaluator is None and self._measures:
            raise InputError(NO_EVALUATOR.format(pruner=name))
        if evaluator is not None and not isinstance(evaluator, Evaluator):
            raise InputError(NOT_AN_EVALUATOR.format(pruner=name, got=type(evaluator).__name__))
        if evaluator is None and dummy_input is None:
            raise InputError(NO_EXAMPLE.format(pruner=name))
        if steps is None and not self._measures:
            steps = 1
        if not hasattr(steps, "__index__") or isinstance(steps, bool) or steps < 1:
            raise InputError(NO_STEPS.format(pruner=name, got=steps))
        return operator.index(steps)

    def _check_reading(self, groups: Any, reduction: Any, scoring_step: Any) -> None:
        name = type(self).__name__
        if groups is not None:
            as_reader(groups)
        if reduction not in get_args(Reduction):
            raise InputError(NO_REDUCTION.format(pruner=name, known=get_args(Reduction), got=reduction))
        if scoring_step is not None and not callable(scoring_step):
            raise InputError(NO_SCORING_STEP.format(pruner=name, got=type(scoring_step).__name__))

    @classmethod
    def from_compressor(
        cls,
        compressor: Compressor,
        new_config_list: list[dict[str, Any]],
        training_steps: int | None = None,
        evaluator: Evaluator | None = None,
        **options: Any,
    ) -> CriterionPruner:
        """A pruner fused with another compressor, whose model, wrappers and evaluator it takes over.

        Args:
            compressor: e.g. a distiller.
            new_config_list: what to prune.
            training_steps: see the class, as for ``groups`` and all others.
            evaluator: if the compressor has none.
            options: ``groups``, ``reduction``, ``scoring_step``, ``dummy_input`` and the criterion's own.
        """
        was_wrapped = compressor._is_wrapped
        try:
            made: CriterionPruner = super().from_compressor(
                compressor, new_config_list, training_steps=training_steps, evaluator=evaluator, **options
            )
        except InputError:
            if was_wrapped and not compressor._is_wrapped:  # NNI unwraps it before it looks at the arguments
                compressor.wrap_model()
            raise
        return made

    @property
    def plan(self) -> GatePlan | None:
        """The model's gate plan, once it is known how the model is called."""
        return None if self._meter.structure is None else self._meter.structure.plan

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, dict[str, dict[str, torch.Tensor]]]:
        """Measure, and mask what scores least.

        Args:
            max_steps: of the training, if fused with other compressors; not otherwise.
            max_epochs: likewise.

        Returns:
            The wrapped model and its masks, ``{module: {target: mask}}``.

        Raises:
            InputError: a layer that cannot be pruned (the message says why), batches that cannot be read, groups that
                yield nothing, a loss that is neither mean nor sum. The evaluator can be used again.
            UnsupportedModelError: see :func:`fair_prune_plugins.gates.build_plan`.
        """
        model, masks = super().compress(max_steps, max_epochs)
        return model, masks

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if max_steps is not None or max_epochs is not None:
            raise InputError(NO_DURATION.format(pruner=type(self).__name__))
        self._failure = None
        self._meter.start(quiet=False)
        if self._measures or self.plan is None:
            self._measure_alone()
        self._finish()

    def _measure_alone(self) -> None:
        evaluator = self.evaluator
        evaluator.bind_model(self.bound_model, self._get_param_names_map())
        try:
            with nothing_trained(self.bound_model) as put_back:
                intercept(evaluator, partial(self._instead_of_training, put_back))
                evaluator.train(self.training_steps, None)
        finally:
            evaluator.unbind_model()
        if self._failure is not None:  # the user's loop went on after it
            raise self._failure
        if self._meter.batches < self.training_steps and self._measures:
            if not self._meter.batches:
                raise InputError(NO_BATCHES.format(pruner=type(self).__name__))
            logger.warning(FEW_BATCHES, type(self).__name__, self._meter.batches, self.training_steps)

    def _instead_of_training(self, put_back: Callable[[], None], call: StepCall) -> Any:
        put_back()
        wanted = self._measures and self._failure is None and self._meter.batches < self.training_steps
        output = self._watched(call) if wanted else None
        if not self._measures:
            self._watched(call)
        if output is None:
            output = self._meter.returned(call)
        return with_loss(output, harmless(loss_of(output), self.bound_model))

    def _beside_training(self, call: StepCall) -> Any:
        wanted = self._meter.batches < self.training_steps
        if wanted and self._mask_step - self.training_steps <= self._current_step < self._mask_step:
            try:
                self._watched(call)
            except BaseException:
                # NNI leaves an evaluator bound when training fails.
                self.evaluator.unbind_model()
                raise
        return call.proceed()

    def _watched(self, call: StepCall) -> Any:
        """What the training step returned for a batch that was measured, or ``None``."""
        try:
            if self._measures:
                return self._meter.add(call)
            self._meter.look(call)
        except BaseException as error:
            self._failure = error
            raise
        return None

    @property
    def _mask_step(self) -> int:
        """The optimizer step of an interval after which masks are made."""
        return self.interval_steps if self.interval_steps > 0 else self.training_steps

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        if 0 <= self.interval_steps < self.training_steps:
            message = INTERVAL.format(pruner=type(self).__name__, steps=self.training_steps, got=self.interval_steps)
            raise InputError(message)
        self._failure = None
        self._current_step = 0
        self._made = 0
        self._meter.start(quiet=True)
        intercept(evaluator, self._beside_training)
        after_optimizer_steps(evaluator, self._after_optimizer_step)

    def _after_optimizer_step(self) -> None:
        self._current_step += 1
        if self._current_step != self._mask_step:
            return
        self._finish()
        self._made += 1
        again = self.total_times == "unlimited" or self._made < self.total_times
        if again and self._current_step == self.interval_steps:
            self._current_step = 0
            self._meter.start(quiet=True)

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._made:
            logger.warning(NO_MASKS, type(self).__name__, self._mask_step)

    def _finish(self) -> None:
        self.statistics = self._meter.finish()
        if self._dense is None:
            self._dense = self.statistics
        self.update_masks(self.generate_masks())

    def _collect_data(self) -> UnitScores:
        if self.statistics is None or self.plan is None:
            raise ScoreError(NOTHING_YET.format(pruner=type(self).__name__))
        return unit_scores(self.plan, self.criterion, self.options, self.statistics, self._dense)

    def _calculate_metrics(self, data: UnitScores) -> Metrics:
        assert self._meter.structure is not None
        return target_metrics(self._meter.structure, data, self._target_spaces)

    def _generate_sparsity(self, metrics: Metrics) -> Metrics:
        return make_masks(metrics, self._target_spaces)


def _keep_columns(evaluator: Any, groups: Groups | None) -> None:
    """Transformers' Trainer takes out of the batches what the model does not take, and groups are among it."""
    keep = getattr(evaluator, "keep_columns", None)
    if groups is not None and keep is not None:
        keep([source for source in as_reader(groups).sources.values() if isinstance(source, str)])
