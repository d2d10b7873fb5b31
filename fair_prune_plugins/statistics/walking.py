"""One walk over data, as every collection of statistics takes it: who is in a batch, what the model says of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from fair_prune_plugins.errors import FairPruneError, InputError
from fair_prune_plugins.gates.calling import batch_size, call, moved, output_tensors, preserved
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.groups import EMPTY_GROUPS, SMALL_GROUP, UNKNOWN, GroupReader, GroupSource, as_reader
from fair_prune_plugins.picking import Source, pick
from fair_prune_plugins.statistics.batches import BatchReader
from fair_prune_plugins.statistics.checksum import model_checksum
from fair_prune_plugins.statistics.store import EVERYONE, GateStatistics

logger = logging.getLogger(__name__)

Groups = GroupReader | GroupSource | Sequence[GroupSource] | Mapping[str, GroupSource]

NO_DATA = "the loader yielded no sample; statistics need data"
NO_GATES = "no coupled group of the model can be pruned:\n{plan}"
FORWARD_FAILED = (
    "the model fails on batch {batch} ({error}); its inputs are {shapes}. Images are expected channels first, as the "
    "model takes them; pass inputs= where the batch has them"
)
NO_SUCH_OUTPUT = "output={key!r} is not in what the model returns, {have}"
IN_PLACE = "modified by an inplace operation", "modified inplace"


@dataclass(frozen=True)
class People:
    """The people of one batch.

    Attributes:
        batch: its number in the loader, from 0.
        samples: how many they are, at least one.
        inputs: what the model is called with, as the batch has it.
        targets: what the loss is given, as the batch has it.
        weights: float64 ``[samples]``, 1 without sample weights.
        given_weights: the same, or ``None`` without.
        codes: int64 ``[samples]`` group codes; 0 where nobody asked for groups.
    """

    batch: int
    samples: int
    inputs: Any
    targets: Any
    weights: torch.Tensor
    given_weights: torch.Tensor | None
    codes: torch.Tensor


class Seen:
    """Who was seen: people and their weight by group code; :data:`UNKNOWN` is the code of those in no known group."""

    def __init__(self) -> None:
        self.count: dict[int, int] = {UNKNOWN: 0}
        self.weight: dict[int, float] = {UNKNOWN: 0.0}

    def add(self, people: People) -> None:
        """Add the people of a batch."""
        for code in people.codes.unique().tolist():
            mine = people.codes == code
            self.count[code] = self.count.get(code, 0) + int(mine.sum())
            self.weight[code] = self.weight.get(code, 0.0) + float(people.weights[mine].sum())

    @property
    def everybody(self) -> int:
        """How many people."""
        return sum(self.count.values())

    @property
    def of_known_groups(self) -> int:
        """How many of them are in a known group."""
        return self.everybody - self.count[UNKNOWN]


class Walk:
    """A walk over a loader with a plan's model.

    Args:
        plan: the model's gate plan.
        loader: yields batches; empty ones are passed over.
        reader: takes batches apart.
        groups: the sensitive groups, or ``None``.
        output: takes what the loss needs from the model's outputs.

    Raises:
        InputError: nothing of the model can be pruned.
    """

    def __init__(
        self,
        plan: GatePlan,
        loader: Iterable[Any],
        reader: BatchReader,
        groups: Groups | None,
        output: Source | None,
    ) -> None:
        if not plan.units:
            raise InputError(NO_GATES.format(plan=plan.describe()))
        self._plan, self._loader, self._reader, self._output = plan, loader, reader, output
        # A copy of a given reader: names that it learned from other data are not groups of this data.
        self._groups = None if groups is None else replace(as_reader(groups))
        self.device = next((p.device for p in plan.model.parameters()), torch.device("cpu"))
        self._dtype = next((p.dtype for p in plan.model.parameters() if p.is_floating_point()), None)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The model in eval mode and without gradients of its parameters; handed back as it was."""
        model = self._plan.model
        with preserved(model), _repeatable(self.device):
            model.eval()
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            yield

    def people(self, what: str, *, progress: bool) -> Iterator[People]:
        """The batches, under a progress bar that says ``what``.

        Raises:
            InputError: a batch that cannot be taken apart.
        """
        total = len(self._loader) if isinstance(self._loader, Sized) else None
        bar = tqdm(self._loader, total=total, desc=what, disable=not progress, leave=False)
        for number, batch in enumerate(bar):
            inputs = self._reader.read_inputs(batch)
            samples = batch_size(inputs)
            if not samples:
                continue
            everyone = torch.zeros(samples, dtype=torch.int64)
            codes = everyone if self._groups is None else self._groups.read(batch, samples)
            weights = self._reader.read_weights(batch, samples)
            given = None if self._reader.weights is None else weights
            yield People(number, samples, inputs, self._reader.read_targets(batch), weights, given, codes)

    def inputs(self, inputs: Any) -> Any:
        """Inputs of the model's device and type."""
        return moved(inputs, device=self.device, dtype=self._dtype)

    def targets(self, targets: Any) -> Any:
        """Targets on the model's device."""
        return moved(targets, device=self.device)

    def outputs(self, inputs: Any, batch: int) -> Any:
        """What the loss is given of what the model returns.

        Args:
            inputs: of the model's device and type.
            batch: its number, for the message.

        Raises:
            InputError: the model fails, or returns nothing under that key.
        """
        try:
            returned = call(self._plan.model, inputs, self._plan.forward_fn)
        except FairPruneError:
            raise
        except Exception as error:
            if any(text in str(error) for text in IN_PLACE):
                raise
            shapes = [f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in output_tensors(inputs)]
            reason = f"{type(error).__name__}: {error}"
            raise InputError(FORWARD_FAILED.format(batch=batch, error=reason, shapes=", ".join(shapes))) from error
        return returned if self._output is None else pick(returned, self._output, NO_SUCH_OUTPUT)

    @property
    def attribute(self) -> str:
        """What the groups are groups of."""
        return "no attribute" if self._groups is None else self._groups.attribute

    @property
    def order(self) -> list[int]:
        """Group codes in the order to report them."""
        return [0] if self._groups is None else self._groups.order

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names in that order, after the walk."""
        return (EVERYONE,) if self._groups is None else tuple(self._groups.known_names[i] for i in self.order)

    @property
    def notes(self) -> list[str]:
        """What the statistics should carry along."""
        frozen = ", ".join(self._plan.frozen)
        return [f"frozen layers are among what can be pruned: {frozen}"] if frozen else []

    def check_somebody(self, everybody: int, of_known_groups: int) -> None:
        """Refuse data in which there is nobody to measure.

        Raises:
            InputError: nobody at all, or nobody in a known group.
        """
        if not everybody:
            raise InputError(NO_DATA)
        if self._groups is not None and not of_known_groups:
            raise InputError(EMPTY_GROUPS.format(n=everybody, attribute=self._groups.attribute))

    def without_gates(self, columns: Mapping[str, tuple[int, int]], seen: Seen, **measured: Any) -> GateStatistics:
        """The statistics of a walk that is over and measured something else than gates, which are NaN then.

        Args:
            columns: unit-set name to ``(first column, size)``.
            seen: who was seen.
            measured: what was, by its name in :class:`GateStatistics`.
        """
        squares = self._plan.weight_square()
        rows = [*self.order, UNKNOWN]
        width = sum(size for _, size in columns.values())
        unmeasured = torch.full((len(rows), width), math.nan, dtype=torch.float64)
        statistics = GateStatistics(
            self.attribute,
            self.names,
            dict(columns),
            torch.tensor([seen.count.get(code, 0) for code in rows], dtype=torch.int64),
            torch.tensor([seen.weight.get(code, 0.0) for code in rows], dtype=torch.float64),
            unmeasured,
            unmeasured.clone(),
            unmeasured.clone(),
            torch.cat([squares[name] for name in columns]),
            model_checksum(self._plan.model),
            self.notes,
            gates=False,
            **measured,
        )
        self.say_small_groups(statistics)
        return statistics

    def say_small_groups(self, statistics: GateStatistics) -> None:
        """Log how large the groups are, where some are too small to judge or people are in none."""
        smallest = min(statistics.counts.values(), default=0)
        if self._groups is not None and (statistics.unknown or smallest < SMALL_GROUP):
            logger.warning("%s", statistics.statement())


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """The same numbers on every run on a GPU; torch warns where an operation of the model has no repeatable form."""
    if device.type != "cuda":
        yield
        return
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    backend.deterministic, backend.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=warn_only or not enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        backend.deterministic, backend.benchmark = before
