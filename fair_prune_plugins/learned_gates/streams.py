"""Batches without end, and a place in them that can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import GatePlan
from fair_prune_plugins.gates.calling import batch_size, call, moved
from fair_prune_plugins.groups import GroupReader, as_reader
from fair_prune_plugins.losses import LossHook
from fair_prune_plugins.losses.batch_loss import BatchLoss
from fair_prune_plugins.picking import Source, pick
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.sample_losses import LossFn
from fair_prune_plugins.statistics.walking import NO_SUCH_OUTPUT, Groups

NO_BATCH = (
    "{what} yielded no {people}on pass {number}; it must be a loader or list that can be gone through again and again, "
    "not an iterator that is used up"
)
SHORTER = "{what} has fewer than the {taken} batches that were taken of it in the saved run; resume with the same data"
LOSS_SHAPE = "the loss must be a single number or one value per sample ({samples}), got {got}"
NOT_FINITE = "the loss became {loss} in step {step}: lower the learning rate, or check the inputs"


@dataclass(frozen=True)
class Objective:
    """A model's data loss on a batch, and what else is needed of it.

    Args:
        plan: the gate plan of the model.
        loss_fn: ``loss_fn(outputs, targets)``, a :class:`~fair_prune_plugins.losses.LossHook`, or what its
            ``on_batches`` gives.
        groups: where a batch has the sensitive group, or ``None``.
        inputs: where it has the model's inputs.
        targets: where it has the targets; ``None`` hands the loss the whole batch.
        output: takes what the loss needs from the model's outputs.
    """

    plan: GatePlan
    loss_fn: LossFn | LossHook | BatchLoss
    groups: GroupReader | None
    inputs: BatchSource = AUTO
    targets: BatchSource | None = AUTO
    output: Source | None = None

    @classmethod
    def of(
        cls,
        plan: GatePlan,
        loss_fn: LossFn | LossHook | BatchLoss,
        groups: Groups | None,
        inputs: BatchSource,
        targets: BatchSource | None,
        output: Source | None,
    ) -> Objective:
        """With a reader of its own, which learns the groups' names of this data only.

        Raises:
            InputError: a loss over groups without groups.
        """
        reader = None if groups is None else replace(as_reader(groups))
        if isinstance(loss_fn, LossHook):
            loss_fn = loss_fn.on_batches(groups=groups, inputs=inputs, targets=AUTO if targets is None else targets)
        return cls(plan, loss_fn, reader, inputs, targets, output)

    @property
    def hook(self) -> LossHook | None:
        """The loss hook behind the loss, if it is one."""
        return self.loss_fn.hook if isinstance(self.loss_fn, BatchLoss) else None

    def outputs(self, batch: Any) -> Any:
        """What the loss is given of what the model returns, with gradients."""
        model = self.plan.model
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        inputs = moved(BatchReader(self.inputs).read_inputs(batch), device=parameter.device, dtype=parameter.dtype)
        returned = call(model, inputs, self.plan.forward_fn)
        return returned if self.output is None else pick(returned, self.output, NO_SUCH_OUTPUT)

    def loss(self, outputs: Any, batch: Any, step: int) -> torch.Tensor:
        """The mean loss of a batch, a scalar.

        Raises:
            InputError: it has another shape or is not finite.
        """
        whole = isinstance(self.loss_fn, BatchLoss) or self.targets is None
        device = next(p.device for p in self.plan.model.parameters())
        beside = moved(batch, device=device) if whole else self.truth(batch, device)
        loss = self.loss_fn(outputs, beside)
        samples = self.people(batch)
        if not isinstance(loss, torch.Tensor) or (loss.ndim and loss.shape[0] != samples):
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise InputError(LOSS_SHAPE.format(samples=samples, got=got))
        loss = loss.mean()
        if not torch.isfinite(loss.detach()):
            raise InputError(NOT_FINITE.format(loss=float(loss.detach()), step=step))
        return loss

    def truth(self, batch: Any, device: torch.device) -> Any:
        """The batch's targets."""
        return moved(BatchReader(self.inputs, AUTO if self.targets is None else self.targets).read_targets(batch),
                     device=device)  # fmt: skip

    def people(self, batch: Any) -> int:
        """How many samples a batch has."""
        return batch_size(BatchReader(self.inputs).read_inputs(batch))

    def codes(self, batch: Any) -> torch.Tensor:
        """The people's group codes, int64 ``[N]``; -1 everywhere without groups."""
        people = self.people(batch)
        return torch.full((people,), -1) if self.groups is None else self.groups.read(batch, people)

    def with_groups_of(self, *loaders: Iterable[Any]) -> tuple[Objective, dict[str, int]]:
        """The same with the groups of some data in a fixed order, and how many people of each there are.

        Codes are given in the order of names, so that nothing depends on the order of the data; the random numbers that
        going through the data takes are given back.
        """
        assert self.groups is not None
        found: dict[int, int] = {}
        for loader in loaders:
            with _given_back(loader):
                for batch in loader:
                    for code in self.codes(batch).tolist():
                        found[code] = found.get(code, 0) + 1
        names = [self.groups.known_names[code] for code in self.groups.order]
        counts = {self.groups.known_names[code]: found.get(code, 0) for code in self.groups.order}
        return replace(self, groups=replace(self.groups, names=names)), counts


class Stream:
    """A loader gone through again and again.

    Each pass starts from the random numbers of its moment, and these are saved with the place in the pass: a stream
    that is loaded yields what the saved one would have yielded, if the loader draws all its randomness from torch (its
    own ``generator`` included).

    Args:
        loader: yields batches.
        what: its argument's name, for messages.
        reader: tells how many people a batch has; empty batches are passed over.
    """

    def __init__(self, loader: Iterable[Any], what: str, objective: Objective) -> None:
        self._loader, self._what, self._objective = loader, what, objective
        self._iterator: Iterator[Any] | None = None
        self._passes = self._taken = 0
        self._start: dict[str, Any] = {}

    def next(self) -> Any:
        """The next batch with anybody in it.

        Raises:
            InputError: a pass without any.
        """
        started = self._iterator is None
        while True:
            if self._iterator is None:
                self._start = _random_state(self._loader)
                self._iterator, self._taken = iter(self._loader), 0
                self._passes += 1
            for batch in self._iterator:
                self._taken += 1
                if self._objective.people(batch):
                    return batch
            self._iterator = None
            if started:
                raise InputError(
                    NO_BATCH.format(what=self._what, people="person " if self._taken else "batch ", number=self._passes)
                )
            started = True

    def state_dict(self) -> dict[str, Any]:
        """The place: passes begun, batches taken of this one, and the random numbers it began with."""
        now = _random_state(self._loader)["loader"]
        return {"passes": self._passes, "taken": self._taken, "start": self._start, "now": now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place. The random numbers of the moment stay as they are, except those of the loader's own
        generator.

        Raises:
            InputError: the loader has fewer batches than were taken of the saved one.
        """
        self._passes, self._taken, self._start = state["passes"], state["taken"], state["start"]
        self._iterator = None
        if not self._taken:
            return
        before = torch.get_rng_state()
        _set_random_state(self._loader, self._start)
        self._iterator = iter(self._loader)
        for _ in range(self._taken):
            if next(self._iterator, self) is self:
                raise InputError(SHORTER.format(what=self._what, taken=self._taken))
        _set_random_state(self._loader, {"torch": before, "loader": state["now"]})


@contextmanager
def _given_back(loader: Any) -> Iterator[None]:
    before = _random_state(loader)
    try:
        yield
    finally:
        _set_random_state(loader, before)


def _random_state(loader: Any) -> dict[str, Any]:
    own = getattr(loader, "generator", None)
    return {
        "torch": torch.get_rng_state(),
        "loader": own.get_state() if isinstance(own, torch.Generator) else None,
    }


def _set_random_state(loader: Any, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    own = getattr(loader, "generator", None)
    if isinstance(own, torch.Generator) and state["loader"] is not None:
        own.set_state(state["loader"].cpu())
