"""Measuring a model that NNI has wrapped: its structure from the first batch, its gates from all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import preserved
from fair_prune_plugins.gates.tapping import GateMeter
from fair_prune_plugins.nni.collecting import ScoringStep, StepCollector, run_step, unchanged_randomness
from fair_prune_plugins.nni.steps import StepCall
from fair_prune_plugins.nni.structure import CallRecorder, Example, Structure, given_example, read_structure, unwrapped
from fair_prune_plugins.nni.target_scores import Spaces, check_targets, modules_passed_through, scored_targets
from fair_prune_plugins.statistics import GateStatistics, model_checksum
from fair_prune_plugins.statistics.sample_losses import Reduction
from fair_prune_plugins.statistics.walking import Groups

NO_TARGETS = (
    "the config list selects nothing that is pruned by a ratio or threshold of its own: check op_names and op_types "
    "against model.named_modules(), and whether another compressor configured the same targets before"
)


class WrappedModelMeter:
    """Structure and gate statistics of a pruner's model.

    Args:
        model: the bound model.
        spaces: the pruner's targets.
        groups: the sensitive groups, or ``None``.
        reduction: see :class:`~fair_prune_plugins.nni.collecting.StepCollector`.
        scoring_step: see there.
        dummy_input: what the model is called with; ``None`` looks at what the training step calls it with.
    """

    def __init__(
        self,
        model: nn.Module,
        spaces: Spaces,
        *,
        groups: Groups | None,
        reduction: Reduction,
        scoring_step: ScoringStep | None,
        dummy_input: Any,
    ) -> None:
        self._model, self._spaces = model, spaces
        self._groups, self._reduction, self._scoring_step = groups, reduction, scoring_step
        self._dummy_input = dummy_input
        self._collector: StepCollector | None = None
        self.structure: Structure | None = None

    @property
    def batches(self) -> int:
        """How many batches were measured since the start."""
        return 0 if self._collector is None else self._collector.batches

    def start(self, *, quiet: bool) -> None:
        """Forget what was measured, and read the structure where that takes no batch.

        Args:
            quiet: keep the passes out of what a LightningModule logs.

        Raises:
            InputError: nothing to prune, or targets that no score fits.
            UnsupportedModelError: see :func:`fair_prune_plugins.gates.build_plan`.
        """
        if next(scored_targets(self._spaces), None) is None:
            raise InputError(NO_TARGETS)
        self._collector, self._quiet = None, quiet
        if self.structure is None and self._dummy_input is not None:
            self._read(given_example(self._dummy_input))

    def look(self, call: StepCall) -> Structure:
        """The structure; the first time from what the training step calls the model with.

        Raises:
            InputError: as for :meth:`start`, or the step fails or calls the model in several parts.
            UnsupportedModelError: as for :meth:`start`.
        """
        if self.structure is None:
            recorder = CallRecorder(self._model, [path for path, _, _ in scored_targets(self._spaces)])
            with recorder.recording():
                self._pass_over(call, self._scoring_step)
            self._read(recorder.example())
        assert self.structure is not None
        return self.structure

    def returned(self, call: StepCall) -> Any:
        """What the user's own training step returns for a batch, in eval mode; nothing is measured."""
        # A module that optimises by itself does so in its step, and nobody looks at what that returns.
        manual = not getattr(call.model, "automatic_optimization", True)
        return self._pass_over(call, self._scoring_step if manual else None)

    def _pass_over(self, call: StepCall, scoring_step: ScoringStep | None) -> Any:
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        with preserved(self._model), unchanged_randomness(device), torch.no_grad():
            self._model.eval()
            return run_step(call, call.batch, scoring_step)

    def add(self, call: StepCall) -> Any:
        """Measure one batch; see :meth:`StepCollector.add`.

        Returns:
            What the user's own training step returned, ``None`` if it was not asked.
        """
        structure = self.look(call)
        if self._collector is None:
            self._collector = StepCollector(
                structure.plan, self._groups, self._reduction, self._scoring_step, quiet=self._quiet
            )
        output = self._collector.add(call)
        return output if self._scoring_step is None else None

    def finish(self) -> GateStatistics:
        """The statistics of what was measured, or of the weights alone if nothing was; masks count.

        Raises:
            InputError: nobody was seen, or nobody of a known group.
        """
        assert self.structure is not None
        plan = self.structure.plan
        with unwrapped(self._model, masked=True):
            if self._collector is not None:
                return self._collector.finish()
            columns = GateMeter(plan).columns
            squares = plan.weight_square()
            weights = torch.cat([squares[name] for name in columns])
            return GateStatistics.empty("no attribute", (), columns, weights, model_checksum(plan.model))

    def _read(self, example: Example) -> None:
        with unwrapped(self._model):
            self.structure = read_structure(self._model, example, modules_passed_through(self._model, self._spaces))
        check_targets(self.structure, self._spaces)
