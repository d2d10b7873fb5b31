"""Gates that are learned: one multiplicative number per unit, at the consumers, as parameters of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates import GatePlan
from fair_prune_plugins.gates.attention import multihead_attention
from fair_prune_plugins.gates.closing import channel_dim, replaced_forward, with_first_input
from fair_prune_plugins.learned_gates.sites import GateSite, gate_sites, weight_factors
from fair_prune_plugins.learned_gates.top_k import keep_highest

Form = Literal["unit", "sigmoid"]

NO_GATES = "no coupled group of the model can have learned gates:\n{plan}\n{open}"
OTHER_GATES = (
    "the saved gates are of another model or plan: they have {saved}, this model has {here}. Load them for the model "
    "that they were learned on, as it was before it was pruned"
)
WRONG_SIZE = "there are {columns} gates, got values of shape {shape}"
BAD_FORM = "form must be 'unit' (the parameters are the gates) or 'sigmoid', got {form!r}"


class LearnedGates(nn.Module):
    """Gates of a plan as trainable parameters.

    A gate multiplies its unit at the input of every consumer (see :mod:`fair_prune_plugins.learned_gates.sites`), so a
    gate below 1 of a unit that stays can be put into the consumers' columns without changing what the model computes
    (:meth:`fold`). At exactly 0 the unit is closed for its consumers; norms that mix channels still take their
    statistics over it (:attr:`mixed`), which removal changes.

    Args:
        plan: the model's gate plan. The gates hold it, and through it the model, but do not own the model.
        form: ``"unit"``: a parameter is a gate, in [0, 1]; ``"sigmoid"``: a gate is the sigmoid of a parameter.
        initial: what every gate is at first: in [0, 1], or inside (0, 1) for ``"sigmoid"``.

    Attributes:
        plan: the gate plan.
        scores: the parameters, ``[columns]``, of the model's floating type.
        columns: unit-set name to first column and number of columns.
        open: coupled groups that have no gates and stay as they are, with the reason.
        mixed: unit sets whose channels a norm mixes.

    Raises:
        UnsupportedModelError: no coupled group can have gates.
        InputError: an unknown form or an initial value out of range.
    """

    def __init__(self, plan: GatePlan, *, form: Form = "unit", initial: float = 1.0) -> None:
        super().__init__()
        if form not in ("unit", "sigmoid"):
            raise InputError(BAD_FORM.format(form=form))
        if not (0 < initial < 1 if form == "sigmoid" else 0 <= initial <= 1):
            raise InputError(f"initial must be a gate's value, got {initial!r} for form={form!r}")
        self.plan, self.form = plan, form
        by_group, self.columns, self.open = gate_sites(plan)
        if not self.columns:
            raise UnsupportedModelError(NO_GATES.format(plan=plan.describe(), open=self.open))
        self.groups = [g for g in plan.prunable if g.name in by_group]
        self.mixed = tuple(u.name for g in self.groups if g.norms for u in g.unit_sets)
        parameter = next(p for p in plan.model.parameters() if p.is_floating_point())
        value = torch.full((sum(size for _, size in self.columns.values()),), float(initial))
        value = value.logit() if form == "sigmoid" else value
        self.scores = nn.Parameter(value.to(device=parameter.device, dtype=parameter.dtype))
        self.sites = [s.to(parameter.device) for sites in by_group.values() for s in sites]
        self._now: torch.Tensor | None = None

    def values(self) -> torch.Tensor:
        """All gates, ``[columns]``, each in [0, 1]; differentiable by :attr:`scores`."""
        return self.scores.sigmoid() if self.form == "sigmoid" else self.scores

    def by_unit_set(self, values: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Gates (or anything else that is one number per gate) by unit set.

        Args:
            values: ``[columns]``; the gates if absent.
        """
        values = self.values() if values is None else values
        return {name: values[start : start + size] for name, (start, size) in self.columns.items()}

    def joined(self, by_unit_set: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The opposite of :meth:`by_unit_set`: ``[columns]``, on the gates' device."""
        return torch.cat([by_unit_set[name].to(self.scores.device) for name in self.columns])

    @torch.no_grad()
    def project(self) -> None:
        """Put every gate back into [0, 1] after an optimiser's step."""
        if self.form == "unit":
            self.scores.clamp_(0, 1)

    @torch.no_grad()
    def kept(self, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """The units with the largest gates.

        Args:
            counts: unit-set name to how many units to keep; all of them where it is not named.

        Returns:
            Unit-set name to bool ``[units]``, ``True`` where the unit is kept. Layers that hold only some of the units
            (a concatenation's inputs) keep at least their largest.
        """
        values = self.by_unit_set(self.scores.detach().double().cpu())
        parts = {u.name: g.parts(u) for g in self.groups for u in g.unit_sets}
        return {n: keep_highest(v, counts.get(n, len(v)), parts[n]) for n, v in values.items()}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the gates act in the model until the context ends, also if it ends with an exception."""
        model = self.plan.model
        with ExitStack() as stack:
            attentions: dict[str, list[GateSite]] = {}
            for site in self.sites:
                module = model.get_submodule(site.path)
                if site.kind == "attention":
                    attentions.setdefault(site.path, []).append(site)
                elif site.kind == "input":
                    hook = partial(self._at_input, site, channel_dim(module))
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                else:
                    stack.callback(
                        module.register_forward_hook(partial(self._at_output, site, channel_dim(module))).remove
                    )
            for path, sites in attentions.items():
                module = model.get_submodule(path)
                assert isinstance(module, nn.MultiheadAttention)
                gate = partial(self._in_attention, sites)
                size = module.embed_dim // module.num_heads
                stack.enter_context(replaced_forward(module, partial(multihead_attention, module, gate, size)))
            yield

    @contextmanager
    def using(self, values: torch.Tensor) -> Iterator[None]:
        """Let the attached gates have these values instead of :meth:`values`, e.g. rounded ones.

        Args:
            values: ``[columns]``; gradients flow into them.

        Raises:
            InputError: another number of values.
        """
        if values.shape != self.scores.shape:
            raise InputError(WRONG_SIZE.format(columns=len(self.scores), shape=tuple(values.shape)))
        before, self._now = self._now, values
        try:
            yield
        finally:
            self._now = before

    @torch.no_grad()
    def fold(self, values: torch.Tensor | None = None) -> None:
        """Put the gates into the model's weights: every consumer's columns of a unit are multiplied by its gate.

        Afterwards the model without gates computes what it computed with them, to the last rounding. The gates
        themselves stay what they are; detach them first.

        Args:
            values: ``[columns]``; the gates if absent.

        Raises:
            InputError: another number of values.
        """
        values = self.values() if values is None else values
        if values.shape != self.scores.shape:
            raise InputError(WRONG_SIZE.format(columns=len(self.scores), shape=tuple(values.shape)))
        for site in self.sites:
            for name, factor in weight_factors(self.plan.model, site, values).items():
                parameter = self.plan.model.get_parameter(name)
                parameter.mul_(factor.to(parameter))

    @property
    def folded_parameters(self) -> tuple[str, ...]:
        """Parameters that :meth:`fold` changes: the weights that gates multiply."""
        ones = torch.ones_like(self.scores)
        return tuple(dict.fromkeys(n for s in self.sites for n in weight_factors(self.plan.model, s, ones)))

    def unit_sums(self, entries: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Sums over the weights that each gate multiplies, ``[columns]`` (twice what it multiplies twice).

        Args:
            entries: parameter name to something shaped like the parameter; parameters that are not there count
                nothing.
        """
        with torch.enable_grad():
            ones = torch.ones_like(self.scores).requires_grad_(True)
            total = ones.sum() * 0
            product: dict[str, torch.Tensor] = {}
            for site in self.sites:
                for name, factor in weight_factors(self.plan.model, site, ones).items():
                    if name in entries:
                        product[name] = product[name] * factor if name in product else factor
            for name, factor in product.items():
                # At 1 the derivative of a product of gates by one of them is how often it multiplies the entry.
                total = total + (entries[name].detach() * factor).sum()
            (sums,) = torch.autograd.grad(total, ones)
        return sums

    def get_extra_state(self) -> dict[str, Any]:
        """Which gates these are."""
        return {"columns": {name: list(where) for name, where in self.columns.items()}, "form": self.form}

    def set_extra_state(self, state: Any) -> None:
        """Compare with the gates that are loaded.

        Raises:
            InputError: they are others.
        """
        if state != self.get_extra_state():
            raise InputError(OTHER_GATES.format(saved=state, here=self.get_extra_state()))

    def _gated(self, site: GateSite, dim: int, x: torch.Tensor) -> torch.Tensor:
        factor = site.factor(self.values() if self._now is None else self._now)
        shape = [1] * x.ndim
        shape[dim] = -1
        return x * factor.to(x.dtype).reshape(shape)

    def _at_input(self, site: GateSite, dim: int, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        return with_first_input(args, kwargs, lambda x: self._gated(site, dim, x))

    def _at_output(self, site: GateSite, dim: int, _module: nn.Module, _args: Any, output: torch.Tensor) -> Any:
        return self._gated(site, dim, output)

    def _in_attention(self, sites: list[GateSite], point: str, x: torch.Tensor) -> torch.Tensor:
        for site in sites:
            x = x if point == "output" else self._gated(site, -1, x)
        return x
