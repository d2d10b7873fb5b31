"""A loss hook on whole batches: it takes targets, groups, inputs and weights out of a batch by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupReader, as_reader
from fair_prune_plugins.losses.labels import NOT_A_TENSOR
from fair_prune_plugins.statistics.batches import BatchReader, BatchSource
from fair_prune_plugins.statistics.walking import Groups

if TYPE_CHECKING:
    from fair_prune_plugins.losses.hook import LossHook

OTHER_NAMES = "the groups read from batches are {read}, the loss knows {known}; give both the same names in one order"
NO_GROUPS = "{loss} compares sensitive groups: pass groups= the key, index or callable that finds them in a batch"


class BatchLoss:
    """``loss_fn(outputs, batch)``; made by :meth:`LossHook.on_batches` and :meth:`LossHook.for_statistics`.

    Attributes:
        hook: the loss behind it.
        reduction: what it returns, see :class:`~fair_prune_plugins.losses.LossHook`.
    """

    def __init__(
        self,
        hook: LossHook,
        groups: Groups | None,
        inputs: BatchSource,
        targets: BatchSource,
        weights: BatchSource | None,
        *,
        reduction: Literal["mean", "sum", "none"] | None = None,
        frozen: bool = False,
    ) -> None:
        if hook.needs_groups and groups is None:
            raise InputError(NO_GROUPS.format(loss=type(hook).__name__))
        self.hook = hook
        self.reduction = hook.reduction if reduction is None else reduction
        self._frozen = frozen
        self._reader = BatchReader(inputs, targets, weights)
        self._groups = reader_for(hook, groups)

    @property
    def compares_batch(self) -> bool:
        """See :attr:`LossHook.compares_batch`."""
        return self.hook.compares_batch

    def __call__(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """The loss of a batch.

        Raises:
            InputError: see :meth:`LossHook.forward`; something is not in the batch.
        """
        if not isinstance(outputs, torch.Tensor):
            raise InputError(NOT_A_TENSOR.format(what="outputs", got=type(outputs).__name__))
        targets = self._reader.read_targets(batch)
        people = len(outputs)
        weights = None if self._reader.weights is None else self._reader.read_weights(batch, people)
        codes = None if self._groups is None else self._groups.read(batch, people)
        inputs = self._reader.read_inputs(batch) if self.hook.needs_inputs else None
        learning = self.hook.training and not self._frozen
        return self.hook.evaluate(outputs, targets, codes, inputs, weights, self.reduction, learning)


def reader_for(hook: LossHook, groups: Groups | None) -> GroupReader | None:
    """A reader of a batch's groups whose codes are the hook's."""
    if groups is None:
        return None
    reader = replace(as_reader(groups))
    if hook.group_sizes is None:
        return reader
    names = hook.group_sizes.names
    if reader.names is not None and tuple(map(str, reader.names)) != names:
        raise InputError(OTHER_NAMES.format(read=list(reader.names), known=list(names)))
    return replace(reader, names=names)
