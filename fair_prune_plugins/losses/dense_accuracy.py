"""How accurate the dense model is for each group: measured once, compared with ever after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import ForwardFn, batch_size, call, moved, preserved
from fair_prune_plugins.groups import as_reader
from fair_prune_plugins.losses.labels import Task, checked_labels, checked_logits, require_hard, right
from fair_prune_plugins.picking import Source, pick
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.walking import NO_SUCH_OUTPUT, Groups

BAD_TABLE = "accuracy (0 to 1) and number of people are needed for every group, got {accuracy} and {people} for {names}"
NOBODY = "the groups {names} have nobody to measure the dense model's accuracy on; leave them out or give more data"


@dataclass(frozen=True)
class DenseAccuracy:
    """The dense model's accuracy on the training people.

    Attributes:
        names: groups, by code.
        accuracy: share of right decisions in each group.
        people: how many people each group has, at least one.
    """

    names: tuple[str, ...]
    accuracy: tuple[float, ...]
    people: tuple[int, ...]

    def __post_init__(self) -> None:
        right_size = len(self.names) == len(self.accuracy) == len(self.people) > 0
        if not right_size or not all(0 <= a <= 1 for a in self.accuracy):
            raise InputError(BAD_TABLE.format(accuracy=self.accuracy, people=self.people, names=self.names))
        empty = [n for n, p in zip(self.names, self.people, strict=True) if p < 1]
        if empty:
            raise InputError(NOBODY.format(names=empty))

    @classmethod
    @torch.no_grad()
    def measure(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        groups: Groups,
        inputs: BatchSource = AUTO,
        targets: BatchSource = AUTO,
        output: Source | None = None,
        task: Task = "auto",
        forward_fn: ForwardFn | None = None,
    ) -> DenseAccuracy:
        """Measure it on the training people, in evaluation mode; the model is handed back as it was.

        Args:
            model: the dense model.
            loader: yields the training people, without augmentation.
            groups: the sensitive groups; a :class:`~fair_prune_plugins.groups.GroupReader` with names fixes their
                order.
            inputs: where a batch has the model's inputs.
            targets: where it has the targets, which must be hard.
            output: takes the logits from the model's outputs.
            task: see :class:`LossHook`.
            forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly.

        Raises:
            InputError: a batch that cannot be taken apart, soft targets, or a group without people.
        """
        reader, group_reader = BatchReader(inputs, targets), as_reader(groups)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        hits: dict[int, float] = {}
        people: dict[int, int] = {}
        with preserved(model):
            model.eval()
            for batch in loader:
                model_inputs = moved(reader.read_inputs(batch), device=device)
                codes = group_reader.read(batch, batch_size(model_inputs))
                outputs = call(model, model_inputs, forward_fn)
                logits = checked_logits(outputs if output is None else pick(outputs, output, NO_SUCH_OUTPUT))
                labels, kind = checked_labels(reader.read_targets(batch), logits, task)
                require_hard(labels, "accuracy")
                share = right(logits, labels, kind).double().mean(1).cpu()
                for code, hit in zip(codes.tolist(), share.tolist(), strict=True):
                    hits[code] = hits.get(code, 0.0) + hit
                    people[code] = people.get(code, 0) + 1
        order = group_reader.order
        names = tuple(group_reader.known_names[i] for i in order)
        counts = tuple(people.get(i, 0) for i in order)
        accuracy = tuple(hits.get(i, 0.0) / max(n, 1) for i, n in zip(order, counts, strict=True))
        return cls(names, accuracy, counts)
