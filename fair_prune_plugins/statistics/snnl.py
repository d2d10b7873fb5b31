"""How far each unit's feature map tells sensitive groups apart: the soft nearest neighbour loss by the group.

``SNNL = -mean over people i of log( sum over j of i's group exp(-d_ij / T) / sum over all j exp(-d_ij / T) )``, ``j``
never ``i`` itself, ``d`` the cosine distance of feature maps, ``T`` the temperature (Kong et al., MICCAI 2024,
arXiv:2405.08681; Frosst, Papernot & Hinton, ICML 2019, arXiv:1902.01889). The lower, the more alike are people of a
group to the unit, compared with people of other groups. The paper's code counts ``j = i`` above the line and not below
it, which shifts a unit's loss by how close its people are; here neither does.

**Where.** A unit's feature map is what its first consumer reads, in the order in which the model runs: after the norm
and the activation, like every gate. Where a unit is one number per person there (hidden units of an MLP, channels that
are averaged over positions before they are read) a direction says nothing, and ``d`` is the squared difference,
relative to its mean over the batch.

**Batches.** People are compared with those of their batch only, so the loss depends on who is in it: shuffle, and take
batches in which every group has several people. All units are measured on the same batches, so their order is not
at stake. A person without anybody of their group or of another in the batch is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.closing import channel_dim, with_first_input
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.structure import Site, UnitSet
from fair_prune_plugins.groups import UNKNOWN
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.store import GateStatistics
from fair_prune_plugins.statistics.units import checked_temperature
from fair_prune_plugins.statistics.walking import Groups, Seen, Walk

AT_A_TIME = 2**24
"""Pairs of people, times units, that are compared at a time."""

NOBODY_COMPARED = (
    "no batch has two people of one sensitive group and somebody of another, so nobody can be compared; shuffle the "
    "loader, or take larger batches"
)
NOT_FINITE = "what {path} reads is not finite on batch {batch}"


def soft_nearest_neighbours(features: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Every person's term of the loss, per unit.

    Args:
        features: ``[U, N, D]`` feature maps, flat.
        codes: int64 ``[N]`` group codes.
        temperature: above 0.

    Returns:
        ``[U, N]``, NaN for people without anybody of their group or of another.
    """
    others = ~torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    same = (codes[:, None] == codes[None, :]) & others
    compared = same.any(1) & (others & ~same).any(1)
    closeness = -_distances(features) / temperature
    terms = closeness.masked_fill(~others, -math.inf).logsumexp(2) - closeness.masked_fill(~same, -math.inf).logsumexp(
        2
    )
    return terms.masked_fill(~compared, math.nan)


def _distances(features: torch.Tensor) -> torch.Tensor:
    """``[U, N, N]``: cosine distances, 1 to whom nothing is seen of; of single numbers see the module."""
    if features.shape[2] > 1:
        directions = nn.functional.normalize(features, dim=2)
        return 1 - directions @ directions.mT
    square = (features - features.mT).square()
    people = features.shape[1]
    mean = square.sum((1, 2), keepdim=True) / max(people * (people - 1), 1)
    return square / mean.clamp_min(torch.finfo(square.dtype).tiny)


def collect_snnl(
    plan: GatePlan,
    loader: Iterable[Any],
    *,
    groups: Groups,
    inputs: BatchSource = AUTO,
    weights: BatchSource | None = None,
    temperature: float = 1.0,
    progress: bool = True,
    allow_empty: bool = False,
) -> GateStatistics:
    """Measure every unit's soft nearest neighbour loss by the sensitive group; forward passes only.

    Args:
        plan: the model's gate plan.
        loader: yields batches in which groups are mixed; see the module.
        groups: see :func:`~fair_prune_plugins.statistics.collect`, as for all that follow. People of unknown group are
            compared with nobody.
        inputs: see there.
        weights: see there; they weight people in the mean, not whom they are compared with.
        temperature: the lower, the more the nearest neighbours count.
        progress: show a progress bar.
        allow_empty: accept that nobody is compared.

    Returns:
        Statistics with the sums over people in ``snnl``; they add up, as those of gates do, which are NaN here.

    Raises:
        InputError: a temperature that is not above 0; as for :func:`~fair_prune_plugins.statistics.collect`; or nobody
            can be compared.
    """
    temperature = checked_temperature(temperature)
    walk = Walk(plan, loader, BatchReader(inputs, None, weights), groups, None)
    meter = _Meter(plan, temperature)
    seen = Seen()
    with walk.frozen(), meter.attached(), torch.no_grad():
        for people in walk.people("feature maps", progress=progress):
            meter.start(people.codes, people.weights, people.batch)
            walk.outputs(walk.inputs(people.inputs), people.batch)
            seen.add(people)
    if not allow_empty:
        walk.check_somebody(seen.everybody, seen.of_known_groups)
        if not meter.totals[1].any():
            raise InputError(NOBODY_COMPARED)
    return walk.without_gates(meter.columns, seen, snnl=meter.totals)


@dataclass(frozen=True)
class _Map:
    """Units that a consumer reads, each through equally many channels.

    Attributes:
        columns: int64 ``[u]``, their columns in the measurement.
        channels: int64 ``[u, r]``, the consumer's input channels that are theirs.
    """

    columns: torch.Tensor
    channels: torch.Tensor


class _Meter:
    """Measures feature maps while the model runs."""

    def __init__(self, plan: GatePlan, temperature: float) -> None:
        self.columns: dict[str, tuple[int, int]] = {}
        self.width = 0
        self._model, self._temperature = plan.model, temperature
        self._maps: dict[str, list[_Map]] = {}
        for group in plan.prunable:
            for units in group.unit_sets:
                self.columns[units.name] = self.width, units.size
                for site in (*group.consumers, *group.attentions):
                    self._maps.setdefault(site.path, []).extend(_maps(site, units, self.width))
                self.width += units.size
        self.totals = torch.zeros(2, self.width, dtype=torch.float64)
        self._waiting = torch.zeros(self.width, dtype=torch.bool)

    def start(self, codes: torch.Tensor, weights: torch.Tensor, batch: int) -> None:
        """Begin a batch."""
        self._known = (codes != UNKNOWN).nonzero().flatten()
        self._codes, self._weights, self._batch = codes[self._known], weights[self._known], batch
        self._waiting = torch.full((self.width,), len(self._known) > 2)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Read along until the context ends."""
        with ExitStack() as stack:
            for path, maps in self._maps.items():
                module = self._model.get_submodule(path)
                hook = self._hook(path, maps, channel_dim(module))
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _hook(self, path: str, maps: list[_Map], dim: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            def read(x: torch.Tensor) -> torch.Tensor:
                for one in maps:
                    self._read(path, x, one, dim)
                return x

            with_first_input(args, kwargs, read)

        return hook

    def _read(self, path: str, x: torch.Tensor, one: _Map, dim: int) -> None:
        new = self._waiting[one.columns]
        if not new.any():
            return  # an earlier consumer has read them
        columns, channels = one.columns[new], one.channels[new].to(x.device)
        self._waiting[columns] = False
        x = x.detach()[self._known.to(x.device)].movedim(dim, 1)
        x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        x = x if x.dtype == torch.float64 else x.float()
        codes, weights = self._codes.to(x.device), self._weights.to(x.device)
        step = max(AT_A_TIME // len(codes) ** 2, 1)
        for some, of in zip(columns.split(step), channels.split(step), strict=True):
            features = x[:, of.flatten()].reshape(len(x), len(of), -1).transpose(0, 1)
            if not torch.isfinite(features).all():
                raise InputError(NOT_FINITE.format(path=path, batch=self._batch))
            terms = soft_nearest_neighbours(features, codes, self._temperature).double()
            compared = ~terms.isnan()
            self.totals[0, some] += (terms.nan_to_num(0.0) @ weights).cpu()
            self.totals[1, some] += (compared.double() @ weights).cpu()


def _maps(site: Site, units: UnitSet, offset: int) -> list[_Map]:
    """A site's channels by unit; several maps if units have different numbers of channels there."""
    of = units.of_root[site.roots]
    counts = torch.bincount(of, minlength=units.size)
    found = []
    for repeat in counts[counts > 0].unique().tolist():
        mine = counts[of] == repeat
        order = torch.argsort(of[mine], stable=True)
        channels = site.channels[mine][order].reshape(-1, repeat)
        found.append(_Map(of[mine][order][::repeat] + offset, channels))
    return found
