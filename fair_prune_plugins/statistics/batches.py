"""How a batch carries inputs, targets and sample weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.picking import Source, contents, pick

BatchSource = Source
"""Where something is found in a batch: a key, an index or a callable on the batch."""

AUTO: Final = "auto"

INPUT_KEYS = ("inputs", "input", "x", "image", "images", "pixel_values", "features")
TARGET_KEYS = ("targets", "target", "y", "label", "labels")

NOT_FOUND = "the batch has no {key!r} to take the {what} from; it is {have}"
AMBIGUOUS = "cannot tell where the batch's {what} are: it is {have}; pass {argument}= a key, an index or a callable"
WRONG_WEIGHTS = "the sample weights must be one finite, non-negative number per sample ({expected}), got {got}"


@dataclass(frozen=True)
class BatchReader:
    """Takes a batch apart.

    Args:
        inputs: where the model's inputs are; ``"auto"`` is the first item of a tuple, or a key among ``INPUT_KEYS``.
        targets: where the targets are; ``"auto"`` is the second item of a tuple, or a key among ``TARGET_KEYS``;
            ``None`` means that the loss takes the whole batch.
        weights: where sample weights are, if there are any.
    """

    inputs: BatchSource = AUTO
    targets: BatchSource | None = AUTO
    weights: BatchSource | None = None

    def read_inputs(self, batch: Any) -> Any:
        """The model's inputs: a tensor, or a tuple, list or dict of them."""
        return self._read(batch, self.inputs, "inputs", INPUT_KEYS, 0)

    def read_targets(self, batch: Any) -> Any:
        """The loss's second argument: the targets, or the whole batch."""
        if self.targets is None:
            return batch
        return self._read(batch, self.targets, "targets", TARGET_KEYS, 1)

    def read_weights(self, batch: Any, samples: int) -> torch.Tensor:
        """Sample weights, float64 ``[samples]``; ones if there are none.

        Raises:
            InputError: not one finite, non-negative number per sample.
        """
        if self.weights is None:
            return torch.ones(samples, dtype=torch.float64)
        weights = (
            torch.as_tensor(pick(batch, self.weights, NOT_FOUND.replace("{what}", "sample weights")))
            .detach()
            .double()
            .cpu()
        )
        if weights.shape != (samples,) or not torch.isfinite(weights).all() or (weights < 0).any():
            got = f"shape {tuple(weights.shape)}" if weights.shape != (samples,) else "negative or non-finite values"
            raise InputError(WRONG_WEIGHTS.format(expected=samples, got=got))
        return weights

    def _read(
        self, batch: Any, source: BatchSource, what: Literal["inputs", "targets"], keys: tuple[str, ...], index: int
    ) -> Any:
        if source != AUTO:
            return pick(batch, source, NOT_FOUND.replace("{what}", what))
        if isinstance(batch, Mapping):
            found = [k for k in keys if k in batch]
            if len(found) == 1:
                return batch[found[0]]
        elif isinstance(batch, tuple | list):
            if len(batch) > index:
                return batch[index]
        elif isinstance(batch, torch.Tensor) and what == "inputs":
            return batch
        raise InputError(AMBIGUOUS.format(what=what, have=contents(batch), argument=what))


@dataclass(frozen=True)
class Leaves:
    """What a batch, or a part of one, is made of.

    Attributes:
        values: tensors, lists with one entry per sample, and single other things.
        per_sample: which of them have one entry per sample; the others are the same for all samples.
        spec: how they are nested.
    """

    values: Sequence[Any]
    per_sample: Sequence[bool]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, tree: Any, samples: int) -> Leaves:
        """Take any nesting of tuples, lists and dicts apart.

        Tensors whose first dimension is ``samples`` and lists of as many things other than tensors go by sample.
        """

        def is_list(node: Any) -> bool:
            if not isinstance(node, list) or len(node) != samples:
                return False
            return not any(isinstance(value, torch.Tensor) for value in node)

        values, spec = pytree.tree_flatten(tree, is_leaf=is_list)
        own = [is_list(v) or (isinstance(v, torch.Tensor) and v.ndim > 0 and len(v) == samples) for v in values]
        return cls(values, own, spec)

    def rows(self, which: slice | torch.Tensor) -> Leaves:
        """The same of some samples: a slice, or an int64 tensor of their numbers."""
        pairs = zip(self.values, self.per_sample, strict=True)
        return Leaves([_entries(v, which) if own else v for v, own in pairs], self.per_sample, self.spec)

    def tree(self) -> Any:
        """Nested as it was."""
        return pytree.tree_unflatten(list(self.values), self.spec)


def rows(tree: Any, samples: int, which: slice | torch.Tensor) -> Any:
    """Some samples of everything in ``tree`` that has one entry per sample; see :class:`Leaves`."""
    return Leaves.of(tree, samples).rows(which).tree()


def _entries(value: Any, which: slice | torch.Tensor) -> Any:
    if isinstance(which, slice):
        return value[which]
    if isinstance(value, torch.Tensor):
        return value[which.to(value.device)]
    return [value[i] for i in which.tolist()]
